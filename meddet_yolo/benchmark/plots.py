"""The pictures of a benchmark: accuracy against latency with the Pareto front, and the paper's bubbles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddet_yolo.plotting import PALETTE, legend_entry, panels

if TYPE_CHECKING:
    from meddet_yolo.benchmark.report import Result

__all__ = ["pareto_front", "plot_bubbles", "plot_tradeoff"]

_MARKERS = {"pytorch": "o", "onnxruntime": "s", "openvino": "D", "tensorrt": "^", "rtx": "v"}
_FILLED = {"fp32": "full", "fp16": "left", "int8": "none", "fp8": "none"}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (cost, value) that no other beats in both, cheapest first.

    Examples:
        >>> pareto_front([(1.0, 0.5), (2.0, 0.4), (3.0, 0.9), (1.0, 0.6)])
        [3, 2]
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


def plot_tradeoff(results: Sequence[Result], path: Path) -> Path:
    """Draw mAP against latency with the Pareto front; parameters against latency where there is no mAP.

    One panel an input size and batch; colour tells the model, the marker the back end, its filling the precision.
    """
    groups = sorted({(r.imgsz, r.batch) for r in results})
    with_map = [r for r in results if r.map50_95 is not None]
    figure, axes = panels(len(groups), 5.4)
    colours = _colours(with_map or results)
    for axis, group in zip(axes, groups, strict=False):
        shown = [r for r in (with_map or results) if (r.imgsz, r.batch) == group]
        points = [(r.p50() or 0.0, (r.map50_95 or 0.0) if with_map else (r.parameters or 0) / 1e6) for r in shown]
        for r, (x, y) in zip(shown, points, strict=True):
            low, _, high = r.latency["total"]["round_medians_ms"]
            axis.plot([low, high], [y, y], color=colours[r.model], linewidth=1, alpha=0.6)
            axis.plot(
                x, y, _MARKERS.get(r.backend, "o"), color=colours[r.model], fillstyle=_FILLED.get(r.precision, "full"),
                markersize=9, markerfacecoloralt="white",
            )  # fmt: skip
        if with_map and shown:
            front = [points[i] for i in pareto_front(points)]
            axis.step(*zip(*front, strict=True), where="post", color="0.6", linestyle="--", linewidth=1, zorder=0)
        axis.set_xscale("log")
        if with_map:
            low, high = axis.get_ylim()
            spare = max(0.05 - (high - low), 0) / 2  # a difference of thousandths must not fill the picture
            axis.set_ylim(low - spare, high + spare)
        axis.set_xlabel("milliseconds from images to boxes (median)")
        axis.set_ylabel("mAP50-95" if with_map else "parameters (millions)")
        axis.set_title(f"{group[0]} px, batch {group[1]}")
        _plain_ticks(axis)
    _legend(figure, with_map or results, colours, front=bool(with_map))
    figure.savefig(path)
    return path


def plot_bubbles(results: Sequence[Result], path: Path) -> Path:
    """Draw images per second against parameters, the area of a bubble being the GFLOPs, as the MedDet paper does.

    One panel a back end, precision, input size and batch; exported files, whose size is unknown, are left out.
    """
    known = [r for r in results if r.parameters and r.gflops and r.images_per_second]
    groups = sorted({(r.imgsz, r.batch, r.backend, r.precision) for r in known})
    figure, axes = panels(max(len(groups), 1), 4.6)
    colours = _colours(results)
    largest = max((r.gflops or 0.0 for r in known), default=1.0)
    for axis, group in zip(axes, groups, strict=False):
        shown = [r for r in known if (r.imgsz, r.batch, r.backend, r.precision) == group]
        entries: list[Any] = []
        for r in sorted(shown, key=lambda r: -(r.gflops or 0.0)):
            x, y = (r.parameters or 0) / 1e6, r.images_per_second or 0.0
            area = max(2500 * (r.gflops or 0.0) / largest, 12)
            axis.scatter(x, y, s=area, color=colours[r.model], alpha=0.55, edgecolor="black", linewidth=0.7)
            entries.append(legend_entry(f"{r.model}, {r.gflops:.1f} GFLOPs", color=colours[r.model], alpha=0.55))
        axis.set_yscale("log")
        axis.margins(x=0.25, y=0.35)
        axis.set_xlim(left=max(axis.get_xlim()[0], 0.0))
        axis.legend(handles=entries, fontsize=7, loc="best", frameon=True, framealpha=0.8)
        axis.set_xlabel("parameters (millions)")
        axis.set_ylabel("images per second")
        axis.set_title(f"{group[2]} {group[3]}, {group[0]} px, batch {group[1]}", fontsize=10)
        _plain_ticks(axis, x=False)
    figure.savefig(path)
    return path


def _colours(results: Sequence[Result]) -> dict[str, str]:
    names = list(dict.fromkeys(r.model for r in results))
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def _plain_ticks(axis: Any, x: bool = True) -> None:
    """Write the numbers of a logarithmic axis as numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    which = axis.xaxis if x else axis.yaxis
    which.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    which.set_major_formatter(formatter)
    which.set_minor_formatter(NullFormatter())


def _legend(figure: Any, results: Sequence[Result], colours: dict[str, str], front: bool) -> None:
    """Explain colours, markers and fillings under the panels."""
    entries = [legend_entry(name, color=colour) for name, colour in colours.items()]
    entries += [legend_entry(b, marker=m) for b, m in _MARKERS.items() if any(r.backend == b for r in results)]
    precisions = [p for p in _FILLED if any(r.precision == p for r in results)]
    if len(precisions) > 1:
        entries += [legend_entry(p, fillstyle=_FILLED[p], marker="o", markerfacecoloralt="white") for p in precisions]
    if front:
        entries.append(legend_entry("Pareto front", marker="", linestyle="--"))
    columns = max(2, int(figure.get_figwidth() // 1.9))
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
