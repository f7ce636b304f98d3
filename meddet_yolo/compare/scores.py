"""What the runs of a comparison came to: scores pooled over folds with intervals, differences on the same patients.

A score of a method is computed on the boxes of all folds together, for each seed, and averaged over the seeds. Its
interval comes from resampling patients; in each resample all methods are scored on the same patients, so that the
interval of a difference is that of pairs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.compare.files import FOUND, RESULT, RUNS, read_json
from meddet_yolo.compare.plan import Plan, RunSpec
from meddet_yolo.compare.predictions import load_predictions
from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure, measure
from meddet_yolo.evaluate.statistics import Interval, bootstrap_all

__all__ = ["SCORES", "Comparison", "Row", "score_runs"]

SCORES = ("mAP50-95", "mAP50", "recall")


@dataclass
class Row:
    """A method with a student, or a teacher, in the table.

    Attributes:
        student: Name of the student or teacher.
        method: Name of the method; empty for a teacher.
        planned: Number of its runs.
        finished: How many of them are finished.
        failed: Those that failed, with the reason.
        seeds: Seeds that its scores are averaged over.
        scores: Its scores with intervals; empty where nothing is finished.
        by_seed: The scores of each seed.
        to_baseline: Differences of its scores to those of the baseline with this student.
        to_best: Differences to the method with the best mAP50-95 with this student.
        seconds_per_step: Median over its runs of the seconds of a training step, without loading data.
        peak_memory_bytes: Most memory of its runs' trainings.
        parameters: Parameters of the model.
        milliseconds_per_image: Median time from an image to its boxes, all models measured in turns.
    """

    student: str
    method: str
    planned: int
    finished: int
    failed: dict[str, str] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    scores: dict[str, Interval] = field(default_factory=dict)
    by_seed: dict[int, dict[str, float]] = field(default_factory=dict)
    to_baseline: dict[str, Interval] = field(default_factory=dict)
    to_best: dict[str, Interval] = field(default_factory=dict)
    seconds_per_step: float | None = None
    peak_memory_bytes: int | None = None
    parameters: int | None = None
    milliseconds_per_image: float | None = None

    @property
    def name(self) -> str:
        """Its name in pictures."""
        return f"{self.student} {self.method}" if self.method else f"teacher {self.student}"


@dataclass
class Comparison:
    """The table of a comparison.

    Attributes:
        rows: Methods by student, then the teachers.
        baseline: The method that others are compared with.
        best: The method with the best mAP50-95, by student.
        folds: The folds that are pooled.
        of_folds: Number of folds of the plan.
        images: Number of images that the scores are of.
        patients: Number of their patients.
        rounds: Resamples behind the intervals.
        notes: What a reader should know.
    """

    rows: list[Row]
    baseline: str
    best: dict[str, str]
    folds: list[int]
    of_folds: int
    images: int
    patients: int
    rounds: int
    notes: list[str]


def score_runs(
    out: Path, plan: Plan, names: Sequence[str], failed: Mapping[str, str], *, rounds: int = 1000
) -> Comparison:
    """Score what is finished of a comparison.

    Args:
        out: Its folder.
        plan: Its plan.
        names: Class names by index.
        failed: Runs that failed, with the reason.
        rounds: Resamples of the patients.
    """
    groups: dict[tuple[str, str], list[RunSpec]] = {}
    for spec in sorted(plan.runs(), key=lambda spec: spec.kind == "teacher"):
        groups.setdefault((spec.student, spec.method), []).append(spec)
    results = {
        spec.name: read_json(out / RUNS / spec.name / RESULT)
        for specs in groups.values()
        for spec in specs
        if (out / RUNS / spec.name / RESULT).is_file()
    }
    rows = [_row(key, specs, results, failed) for key, specs in groups.items()]
    folds = _folds_to_pool(plan, groups.values(), results, failed)
    pooled = _Pooled(out, names)
    for row, specs in zip(rows, groups.values(), strict=True):
        row.seeds = _complete_seeds(specs, folds, results)
        for seed in row.seeds:
            pooled.add(row.name, [s.name for s in specs if s.seed == seed and s.fold in folds])
    methods = [method.name for method in plan.methods]
    comparison = Comparison(
        rows=rows,
        baseline="none" if "none" in methods else methods[0],
        best={},
        folds=sorted(folds),
        of_folds=plan.folds,
        images=len(pooled.patients),
        patients=len(set(pooled.patients)),
        rounds=rounds,
        notes=list(plan.warnings),
    )
    if pooled.patients:
        _score(comparison, pooled)
    return comparison


def _row(key: tuple[str, str], specs: Sequence[RunSpec], results: Mapping[str, Any], failed: Mapping[str, str]) -> Row:
    """Return a row with what its runs took."""
    done = [results[spec.name] for spec in specs if spec.name in results]
    row = Row(*key, planned=len(specs), finished=len(done))
    row.failed = {spec.name: failed[spec.name] for spec in specs if spec.name in failed}
    if not done:
        return row
    steps = [r["seconds_per_step"] for r in done if r.get("seconds_per_step")]
    row.seconds_per_step = statistics.median(steps) if steps else None
    row.peak_memory_bytes = max((r.get("peak_memory_bytes") or 0 for r in done), default=0) or None
    row.parameters = done[0].get("parameters")
    return row


def _folds_to_pool(
    plan: Plan,
    groups: Iterable[Sequence[RunSpec]],
    results: Mapping[str, Any],
    failed: Mapping[str, str],
) -> set[int]:
    """Return the folds that are pooled: all, or while runs are left those in which every method begun has a run.

    So the methods of a comparison that is under way are scored on the same images, too.
    """
    every = set(range(plan.folds))
    begun = [specs for specs in groups if any(spec.name in results for spec in specs)]
    if not any(spec.name not in results and spec.name not in failed for specs in begun for spec in specs):
        return every
    if all(_complete_seeds(specs, every, results) for specs in begun):
        return every
    return {fold for fold in every if all(_complete_seeds(specs, {fold}, results) for specs in begun)}


def _complete_seeds(specs: Sequence[RunSpec], folds: set[int], results: Mapping[str, Any]) -> list[int]:
    """Return the seeds of which the runs of all these folds are finished."""
    lacking = {spec.seed for spec in specs if spec.fold in folds and spec.name not in results}
    return sorted({spec.seed for spec in specs} - lacking) if folds else []


class _Pooled:
    """The boxes of every row and seed, all on the same images in the same order."""

    def __init__(self, out: Path, names: Sequence[str]) -> None:
        self._out, self._names = out, names
        self.measures: dict[str, list[Measure]] = {}
        self.patients: list[str] = []
        self._images: list[str] = []

    def add(self, row: str, runs: Sequence[str]) -> None:
        """Take in one seed of a row: the runs of all folds.

        Raises:
            ValueError: If its images are not those of the others.
        """
        boxes: list[tuple[Found, Truth]] = []
        for run in runs:
            boxes += load_predictions(self._out / RUNS / run / FOUND)
        boxes.sort(key=lambda pair: pair[0].name)
        images = [found.name for found, _ in boxes]
        if self._images and images != self._images:
            raise ValueError(f"{self._out}: the runs of {row} have other images than the others: remove its folders")
        self._images, self.patients = images, [str(truth.patient) for _, truth in boxes]
        average_precision = measure("average_precision", self._names)
        for found, truth in boxes:
            average_precision.update(found, truth)
        self.measures.setdefault(row, []).append(average_precision)

    def score(self, weights: NDArray[np.int64]) -> dict[str, dict[str, float]]:
        """Return the scores of every row, averaged over its seeds, for how often each image counts."""
        result = {}
        for row, seeds in self.measures.items():
            values = [one.compute(weights) for one in seeds]
            result[row] = {name: float(np.mean([value[name] for value in values])) for name in SCORES}
        return result


def _score(comparison: Comparison, pooled: _Pooled) -> None:
    """Fill in the scores and differences."""
    rows = [row for row in comparison.rows if row.seeds]
    once = pooled.score(np.ones(len(pooled.patients), np.int64))
    pairs: dict[str, tuple[str, str]] = {}
    for row in rows:
        row.by_seed = {
            seed: {name: value for name, value in one.compute().items() if name in SCORES}
            for seed, one in zip(row.seeds, pooled.measures[row.name], strict=True)
        }
        if not row.method:
            continue
        same = [other for other in rows if other.method and other.student == row.student]
        best = max(same, key=lambda other: once[other.name]["mAP50-95"])
        comparison.best[row.student] = best.method
        if best is not row:
            pairs[f"{row.name} to best"] = (row.name, best.name)
        base = next((other for other in same if other.method == comparison.baseline), None)
        if base is not None and base is not row:
            pairs[f"{row.name} to baseline"] = (row.name, base.name)

    def scores(weights: NDArray[np.int64]) -> dict[str, float]:
        values = pooled.score(weights)
        flat = {f"{row} | {name}": value for row in values for name, value in values[row].items()}
        for pair, (a, b) in pairs.items():
            flat |= {f"{pair} | {name}": values[a][name] - values[b][name] for name in SCORES}
        return flat

    scales: dict[str, Scale] = {f"{row.name} | {name}": "share" for row in rows for name in SCORES}
    intervals = bootstrap_all(scores, pooled.patients, rounds=comparison.rounds, scales=scales)
    for row in rows:
        row.scores = {name: intervals[f"{row.name} | {name}"] for name in SCORES}
        for kind, target in (("baseline", row.to_baseline), ("best", row.to_best)):
            if f"{row.name} to {kind}" in pairs:
                target.update({name: intervals[f"{row.name} to {kind} | {name}"] for name in SCORES})
