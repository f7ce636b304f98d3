"""The results of an evaluation, and how they are told: as text, Markdown and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from meddet_yolo.evaluate.noise import MEASURES as NOISE_MEASURES
from meddet_yolo.evaluate.noise import NoiseResult
from meddet_yolo.evaluate.statistics import Interval
from meddet_yolo.evaluate.thresholds import Threshold

__all__ = ["Comparison", "Evaluation", "ModelResult", "Subgroup", "as_dict", "as_markdown", "as_text", "write"]

_RESEARCH = (
    "For research only: this is no medical device, and nothing here may be the basis of a decision on a patient."
)


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """What was measured of one model.

    Attributes:
        name: Its name in the report.
        source: The file that it, or its detections, came from.
        threshold: The confidence threshold of scores that need one.
        chosen: How the threshold was chosen, with what it gave there; None for a number that was given.
        scores: Every score by name.
        details: Curves and tables by measure, as plain values.
        boxes: Number of boxes found.
        cached: Whether the predictions were there already.
    """

    name: str
    source: str
    threshold: float
    chosen: Threshold | None
    scores: dict[str, Interval]
    details: dict[str, dict[str, Any]]
    boxes: int
    cached: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences `first` - `second` of two models' scores on the same images.

    Attributes:
        first: Name of a model.
        second: Name of another.
        differences: By score, with interval and p-value.
        corrected: p-values corrected for all differences of the evaluation, by Holm's method.
    """

    first: str
    second: str
    differences: dict[str, Interval]
    corrected: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """Headline scores on the images that have one value in a column of a table.

    Attributes:
        column: The column.
        value: The value.
        images: Number of images.
        patients: Number of patients; None where unknown.
        boxes: Number of labelled boxes.
        scores: By model, then by score.
    """

    column: str
    value: str
    images: int
    patients: int | None
    boxes: int
    scores: dict[str, dict[str, Interval]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All results of an evaluation.

    Attributes:
        data: The data set and its split, in words.
        names: Class names.
        images: Number of images.
        patients: Number of patients; None where unknown.
        boxes: Number of labelled boxes of each class.
        models: One for each model.
        comparisons: Each further model against the first.
        subgroups: By column and value.
        noise: Accuracy under noise of rising strength, by kind, model and strength; empty where it was not asked for.
        headline: Names of the scores that sum up each measure.
        settings: What a reader needs to repeat it.
        unmet: Requirements that are not met, in words.
        notes: What a reader should know.
        out: Folder of `evaluation.json` and `evaluation.md`.
    """

    data: str
    names: tuple[str, ...]
    images: int
    patients: int | None
    boxes: dict[str, int]
    models: tuple[ModelResult, ...]
    comparisons: tuple[Comparison, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    noise: tuple[NoiseResult, ...] = ()
    headline: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    out: Path | None = None

    def __str__(self) -> str:
        """Return the headline scores for a terminal and where the files are."""
        return as_text(self)


def write(result: Evaluation, folder: Path) -> None:
    """Write `evaluation.json` and `evaluation.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_dict(result), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    (folder / "evaluation.md").write_text(as_markdown(result), encoding="utf-8")


def as_dict(result: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain values for JSON; what is not a finite number is None."""
    content = asdict(result)
    content["out"] = str(result.out) if result.out is not None else None
    content["versions"] = {name: version(name) for name in ("meddet-yolo", "ultralytics", "numpy")}
    plain: dict[str, Any] = _plain(content)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def as_text(result: Evaluation) -> str:
    """Return the headline scores as a table for a terminal, notes, and where the files are."""
    rows = [("", *(m.name for m in result.models)), *_rows(result, result.headline)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{c.first} - {c.second}: {key} {d}" for c in result.comparisons for key, d in c.differences.items()]
    lines = [_of_data(result), *lines, *(f"note: {note}" for note in result.notes)]
    return "\n".join([*lines, f"saved to {result.out}"] if result.out is not None else lines)


def as_markdown(result: Evaluation) -> str:
    """Return an evaluation as Markdown."""
    names = [m.name for m in result.models]
    level = f"{result.settings.get('level', 0.95):.0%}"
    parts = [
        "# Evaluation",
        _of_data(result),
        f"In brackets: {level} intervals by bootstrap over {_unit(result)} ({result.settings.get('rounds')} rounds, "
        f"seed {result.settings.get('seed')}). A hit: {_hit(result)}.",
        *(f"**Note:** {note}." for note in result.notes),
        *(f"**Requirement not met:** {text}." for text in result.unmet),
        _table(("score", *names), _rows(result, result.headline)),
        "Confidence thresholds: " + "; ".join(_threshold(m) for m in result.models) + ".",
    ]
    if result.comparisons:
        rows = [
            (f"{c.first} - {c.second}", key, _short(d), _p(d.p), _p(c.corrected.get(key)))
            for c in result.comparisons
            for key, d in c.differences.items()
        ]
        parts += [
            "## Differences",
            "On the same resamples; p by permutation of the two models' outputs, patient by patient; corrected for all "
            "rows by Holm's method.",
            _table(("models", "score", "difference", "p", "p corrected"), rows),
        ]
    if result.subgroups:
        lines = [
            (s.column, s.value, str(s.images), "unknown" if s.patients is None else str(s.patients), str(s.boxes), name,
             key, _short(interval))
            for s in result.subgroups
            for name, scores in s.scores.items()
            for key, interval in scores.items()
            if math.isfinite(interval.value)
        ]  # fmt: skip
        head = ("column", "value", "images", "patients", "boxes", "model", "score", "value")
        parts += ["## Subgroups", _table(head, lines)]
    if result.noise:
        told = [
            (r.noise, r.model, f"{r.sigma:g}", *(f"{getattr(r, m):.3f}" for m in NOISE_MEASURES)) for r in result.noise
        ]
        parts += ["## Under noise", "As `meddet val` measures: see docs/mri-noise.md. No intervals."]
        parts += [_table(("noise", "model", "strength", *NOISE_MEASURES.values()), told)]
    every = [key for key in result.models[0].scores if key not in result.headline]
    parts += ["## All scores", _table(("score", *names), _rows(result, every))]
    parts += [f"Definitions: docs/evaluate.md. {_RESEARCH}"]
    return "\n\n".join(parts) + "\n"


def _of_data(result: Evaluation) -> str:
    patients = "unknown patients" if result.patients is None else f"{result.patients} patients"
    boxes = ", ".join(f"{count} {name}" for name, count in result.boxes.items())
    return f"{result.data}: {result.images} images of {patients}, boxes: {boxes}"


def _unit(result: Evaluation) -> str:
    return "images, because patients are unknown: too narrow" if result.patients is None else "patients"


def _hit(result: Evaluation) -> str:
    iou = result.settings.get("iou")
    return f"IoU of {iou} or more" if result.settings.get("hit") == "iou" else "centre in the labelled box"


def _threshold(model: Any) -> str:
    text = f"{model.name} {model.threshold:.3f}"
    if model.chosen is not None:
        text += f" (chosen: sensitivity {model.chosen.sensitivity:.3f}, precision {model.chosen.precision:.3f} there)"
    return text


def _rows(result: Evaluation, keys: Iterable[str]) -> list[tuple[str, ...]]:
    return [(key, *(_short(m.scores[key]) for m in result.models)) for key in keys]


def _short(interval: Interval) -> str:
    return str(Interval(**{**vars(interval), "p": None}))


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)
