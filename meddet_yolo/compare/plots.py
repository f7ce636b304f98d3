"""The pictures of a comparison: differences with their intervals, and accuracy, speed and size as bubbles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meddet_yolo.compare.scores import SCORES, Comparison, Row
from meddet_yolo.plotting import PALETTE, legend_entry, panels

__all__ = ["plot_bubbles", "plot_differences", "plot_sizes"]


def plot_differences(comparison: Comparison, path: Path) -> Path | None:
    """Draw each method's difference to the baseline with its interval, one row a method, one panel a student.

    Returns:
        The path; None where there is no difference to show.
    """
    students = [s for s in dict.fromkeys(row.student for row in comparison.rows) if _compared(comparison, s)]
    if not students:
        return None
    most = max(len(_compared(comparison, student)) for student in students)
    figure, axes = panels(len(students), 5.4)
    rows_of_panels = -(-len(students) // (2 if len(students) == 4 else min(len(students), 3)))
    figure.set_figheight((0.42 * most + 1.4) * rows_of_panels)
    for axis, student in zip(axes, students, strict=False):
        rows = _compared(comparison, student)
        for place, row in enumerate(rows):
            interval = row.to_baseline[SCORES[0]]
            sure = interval.low > 0 or interval.high < 0
            colour = PALETTE[2] if sure and interval.value > 0 else PALETTE[1] if sure else "0.45"
            axis.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2)
            axis.plot(interval.value, place, "o", color=colour, markersize=7)
        axis.axvline(0, color="0.3", linewidth=1)
        axis.set_yticks(range(len(rows)), [row.method for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(f"difference of {SCORES[0]} to {comparison.baseline}, 95 % interval over patients")
        axis.set_title(student)
    figure.savefig(path)
    return path


def plot_bubbles(comparison: Comparison, path: Path) -> Path | None:
    """Draw accuracy against speed, the area of a bubble being the number of parameters; teachers have a dashed edge.

    Returns:
        The path; None where nothing was measured.
    """
    rows = [row for row in comparison.rows if row.scores and row.milliseconds_per_image and row.parameters]
    if not rows:
        return None
    figure, (axis, *_) = panels(1, 6.6)
    largest = max(row.parameters or 0 for row in rows)
    colours = {row.name: PALETTE[i % len(PALETTE)] for i, row in enumerate(rows)}
    entries: list[Any] = []
    for row in sorted(rows, key=lambda row: -(row.parameters or 0)):
        score = row.scores[SCORES[0]]
        x = 1000 / (row.milliseconds_per_image or 1)
        area = max(1800 * (row.parameters or 0) / largest, 25)
        edge = "--" if not row.method else "-"
        axis.plot([x, x], [score.low, score.high], color=colours[row.name], linewidth=1, alpha=0.7)
        axis.scatter(x, score.value, s=area, color=colours[row.name], alpha=0.5, edgecolor="black", linestyle=edge)
        entries.append(
            legend_entry(f"{row.name}, {(row.parameters or 0) / 1e6:.2f} M parameters", color=colours[row.name])
        )
    axis.margins(x=0.2, y=0.15)
    axis.set_xlim(left=max(axis.get_xlim()[0], 0.0))
    axis.legend(handles=entries, fontsize=7, loc="best", frameon=True, framealpha=0.8)
    axis.set_xlabel("images per second, one at a time")
    axis.set_ylabel(f"{SCORES[0]}, 95 % interval over patients")
    figure.savefig(path)
    return path


def plot_sizes(points: Sequence[tuple[str, Mapping[str, Any], float]], path: Path) -> Path:
    """Draw speed against parameters, the area of a bubble being the operations; the legend tells the mean precision.

    Args:
        points: Of each model its name, its row of a comparison's JSON, and its multiply-adds in 10^9.
        path: The picture to write.
    """
    figure, (axis, *_) = panels(1, 6.6)
    largest = max(operations for *_, operations in points)
    entries = []
    for i, (label, row, operations) in enumerate(sorted(points, key=lambda point: -point[2])):
        colour = PALETTE[i % len(PALETTE)]
        x, y = row["parameters"] / 1e6, 1000 / row["milliseconds_per_image"]
        axis.scatter(x, y, s=max(2000 * operations / largest, 25), color=colour, alpha=0.5, edgecolor="black")
        score = row["scores"].get(SCORES[0], {}).get("value")
        known = "" if score is None else f", {SCORES[0]} {score:.3f}"
        axis.annotate(str(i + 1), (x, y), ha="center", va="center", fontsize=8)  # there are more than colours
        entries.append(legend_entry(f"{i + 1} {label}, {operations:.1f} G multiply-adds{known}", color=colour))
    axis.margins(x=0.2, y=0.2)
    axis.legend(handles=entries, fontsize=7, loc="best", frameon=True, framealpha=0.8)
    axis.set_xlabel("parameters, millions")
    axis.set_ylabel("images per second, one at a time")
    figure.savefig(path)
    return path


def _compared(comparison: Comparison, student: str) -> Sequence[Row]:
    """Return the rows of a student that have a difference to the baseline."""
    return [row for row in comparison.rows if row.student == student and SCORES[0] in row.to_baseline]
