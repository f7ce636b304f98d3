"""A comparison for readers: a table for the terminal, Markdown, JSON, and two pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meddet_yolo.benchmark.report import describe
from meddet_yolo.compare.files import write_json
from meddet_yolo.compare.plots import plot_bubbles, plot_differences
from meddet_yolo.compare.scores import SCORES, Comparison, Row
from meddet_yolo.evaluate.statistics import Interval

__all__ = ["as_text", "write_report"]

_COLUMNS = (
    "student",
    "method",
    "runs",
    *SCORES,
    "difference to {baseline}",
    "difference to the best",
    "s/step",
    "peak MB",
    "ms/image",
    "parameters",
)


def as_text(comparison: Comparison) -> str:
    """Return the table for a terminal."""
    rows = [_header(comparison), *map(_cells, comparison.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *_remarks(comparison)])


def write_report(out: Path, comparison: Comparison, settings: Mapping[str, Any]) -> Path:
    """Write `compare.md`, `compare.json`, `differences.png` and `bubbles.png`.

    Args:
        out: Folder of the comparison.
        comparison: Its table.
        settings: What was compared with what, for the record.

    Returns:
        Path of `compare.md`.
    """
    machine = describe(None)
    pictures = [
        picture
        for picture in (
            plot_differences(comparison, out / "differences.png"),
            plot_bubbles(comparison, out / "bubbles.png"),
        )
        if picture is not None
    ]
    rows = [_header(comparison), ("---",) * len(_COLUMNS), *map(_cells, comparison.rows)]
    lines = ["# Comparison", "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    lines += [f"- {remark}" for remark in _remarks(comparison)]
    lines += [f"- machine: {machine['cpu']}, {machine['cores']} cores"]
    lines += ["- versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items())]
    lines += ["", *(f"- {key}: {value}" for key, value in settings.items())]
    lines += [line for picture in pictures for line in ("", f"![{picture.stem}]({picture.name})")]
    page = out / "compare.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {**asdict(comparison), "settings": dict(settings), "machine": machine}
    write_json(out / "compare.json", _plain(content))
    return page


def _header(comparison: Comparison) -> tuple[str, ...]:
    return tuple(column.format(baseline=comparison.baseline) for column in _COLUMNS)


def _cells(row: Row) -> tuple[str, ...]:
    runs = f"{row.finished}/{row.planned}" + (f", {len(row.failed)} failed" if row.failed else "")
    return (
        row.student,
        row.method or "(teacher)",
        runs,
        *(_interval(row.scores.get(name)) for name in SCORES),
        _interval(row.to_baseline.get(SCORES[0]), sign=True),
        _interval(row.to_best.get(SCORES[0]), sign=True),
        "" if row.seconds_per_step is None else f"{row.seconds_per_step:.3g}",
        "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:.0f}",
        "" if row.milliseconds_per_image is None else f"{row.milliseconds_per_image:.1f}",
        "" if row.parameters is None else f"{row.parameters / 1e6:.2f} M",
    )


def _interval(interval: Interval | None, *, sign: bool = False) -> str:
    """Return a number with its interval.

    Examples:
        >>> _interval(Interval(0.5, 0.4, 0.625)), _interval(Interval(-0.02, -0.04, 0.01), sign=True)
        ('0.500 [0.400, 0.625]', '-0.020 [-0.040, +0.010]')
    """
    if interval is None or not math.isfinite(interval.value):
        return ""
    form = "{:+.3f}" if sign else "{:.3f}"
    text = form.format(interval.value)
    return (
        f"{text} [{form.format(interval.low)}, {form.format(interval.high)}]" if math.isfinite(interval.low) else text
    )


def _remarks(comparison: Comparison) -> list[str]:
    """Say what the numbers are, and what is missing."""
    remarks = []
    if comparison.images:
        folds = "" if len(comparison.folds) == comparison.of_folds else (
            f", folds {', '.join(map(str, comparison.folds))} of {comparison.of_folds} only: runs are left to do"
        )  # fmt: skip
        seeds = sorted({seed for row in comparison.rows if row.method for seed in row.seeds})
        remarks.append(
            f"{comparison.images} images of {comparison.patients} patients, each held out from the training it is "
            f"measured with{folds}; seeds {', '.join(map(str, seeds))}"
        )
        remarks.append(
            f"COCO's mAP and recall of all folds together, mean over seeds; 95 % intervals over patients "
            f"({comparison.rounds} resamples), differences on the same resamples"
        )
        uneven = [r for r in comparison.rows if r.method and r.seeds and r.seeds != seeds]
        remarks += [f"{row.name}: seeds {', '.join(map(str, row.seeds))} only" for row in uneven]
        remarks.append(
            "s/step: median seconds of a training step without loading data, with other runs at the same time; "
            "ms/image: from an image to its boxes, all models in turns"
        )
    else:
        remarks.append("no fold is finished by every method that was begun: no scores yet")
    for row in comparison.rows:
        remarks += [f"failed: {name}: {reason}" for name, reason in row.failed.items()]
        left = row.planned - row.finished - len(row.failed)
        if left:
            remarks.append(f"{row.name}: {left} of {row.planned} runs are left to do")
    return [*remarks, *(f"warning: {note}" for note in comparison.notes)]


def _plain(value: Any) -> Any:
    """Return a value for JSON, which has neither NaN nor paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
