"""What is computed of judged detectors: measures, differences to the first, subgroups."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from meddet_yolo.evaluate.detections import Found, Truth, TruthSet
from meddet_yolo.evaluate.ground_truth import read_column
from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure, measure, measure_class
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.evaluate.results import Comparison, Subgroup
from meddet_yolo.evaluate.statistics import Interval, Samples, holm, paired_all, resample

__all__ = [
    "Judged",
    "compare_with_first",
    "judge_subgroups",
    "make_measure",
    "patients_of",
    "scales_of",
    "scores_of",
    "with_reasons",
]

_MOST_GROUPS = 20
_HEADLINE = {"areas": False, "per_class": False}  # measures' options that leave out what is no headline


@dataclass(frozen=True, eq=False)
class Judged:
    """A model's detections, its measures and their resampled scores."""

    name: str
    found: list[Found]
    threshold: float
    pool: Pool
    samples: Samples


def patients_of(truth: TruthSet) -> Sequence[str | None]:
    """Return the patient of every image, None for all where they are unknown."""
    return truth.patients or [None] * len(truth)


def make_measure(name: str, names: Sequence[str], options: Mapping[str, Any], pool: Pool) -> Measure:
    """Return a measure of a pool, with those of the options that it takes."""
    takes = inspect.signature(measure_class(name)).parameters
    made = measure(name, names, **{key: value for key, value in options.items() if key in takes})
    made.adopt(pool)
    return made


def scores_of(measures: Sequence[Measure], weights: np.ndarray) -> dict[str, float]:
    """Return the scores of measures for weights (n_images,)."""
    return {key: value for one in measures for key, value in one.compute(weights).items()}


def scales_of(measures: Sequence[Measure]) -> dict[str, Scale]:
    """Return what the scores of measures are, by name; any numbers are left out."""
    known = ((key, one.scales.get(re.split("[/@]", key)[0])) for one in measures for key in one.compute())
    return {key: scale for key, scale in known if scale is not None}


def with_reasons(intervals: Mapping[str, Interval], reasons: Mapping[str, str]) -> dict[str, Interval]:
    """Return intervals with the reasons of measures why there is no score, or no interval."""
    nan = float("nan")
    return {
        key: replace(one, low=nan, high=nan, reason=reasons[key]) if key in reasons else one
        for key, one in intervals.items()
    }


def compare_with_first(
    judged: Sequence[Judged],
    truth: TruthSet,
    measures: Sequence[str],
    common: Mapping[str, Any],
    groups: Sequence[str | None],
    how: Mapping[str, Any],
) -> tuple[Comparison, ...]:
    """Compare every further model with the first, by the headline scores."""
    differences = []
    for other in judged[1:]:
        pair = (other, judged[0])
        pools: dict[bool, Pool] = {}
        made: list[Measure] = []
        keys: list[str] = []
        for name in measures:
            if own := measure_class(name).headline:
                cut = "threshold" in inspect.signature(measure_class(name)).parameters
                if cut not in pools:
                    pools[cut] = _of_two(pair, truth, cut)
                made.append(make_measure(name, truth.names, {**common, "threshold": 0.0, **_HEADLINE}, pools[cut]))
                keys += own

        def score(weights: np.ndarray, made: list[Measure] = made, keys: list[str] = keys) -> dict[str, float]:
            everything = scores_of(made, weights.reshape(-1))
            return {key: everything[key] for key in keys}

        samples = other.samples.only(keys) - judged[0].samples.only(keys)
        differences.append((other.name, paired_all(score, groups, samples=samples, **how)))
    tested = [(i, key) for i, (_, found) in enumerate(differences) for key, d in found.items() if d.p is not None]
    corrected = holm([float(differences[i][1][key].p or 0.0) for i, key in tested])
    result = []
    for i, (name, found) in enumerate(differences):
        p_values = {key: p for (j, key), p in zip(tested, corrected, strict=True) if j == i}
        result.append(Comparison(first=name, second=judged[0].name, differences=found, corrected=p_values))
    return tuple(result)


def _of_two(pair: tuple[Judged, Judged], truth: TruthSet, cut: bool) -> Pool:
    """Return the images of two models, one's after the other's, for weights that choose between them.

    Each model has its threshold; with `cut`, what is below it is left out beforehand.
    """
    found: list[Found] = []
    images: list[Truth] = []
    for number, one in enumerate(pair):
        for f, t in zip(one.found, truth.images, strict=True):
            kept = f.above(one.threshold) if cut else f
            label = f"{number}/{t.name}"
            found.append(replace(kept, name=label))
            images.append(replace(t, name=label, patient=None if t.patient is None else f"{number}/{t.patient}"))
    return Pool(found, images)


def judge_subgroups(
    judged: Sequence[Judged],
    truth: TruthSet,
    table: str | Path | None,
    columns: Sequence[str],
    measures: Sequence[str],
    common: Mapping[str, Any],
    how: Mapping[str, Any],
) -> tuple[Subgroup, ...]:
    """Give the headline scores for the values of columns."""
    result = []
    for column in columns:
        values = read_column(str(table), column)
        of_image = [values.get(Path(image.name).name, "unknown") for image in truth.images]
        if len(set(of_image)) > _MOST_GROUPS:
            raise ValueError(
                f"{table}: {column} has {len(set(of_image))} values on these images, expected at most {_MOST_GROUPS}: "
                "put numbers into ranges first"
            )
        if set(of_image) == {"unknown"}:
            raise ValueError(f"{table} has no {column} for any image of {truth.source}, such as {truth.images[0].name}")
        for value in sorted(set(of_image)):
            keep = [v == value for v in of_image]
            part = truth.subset(keep)
            scores = {}
            for one in judged:
                found = [f for f, kept in zip(one.found, keep, strict=True) if kept]
                pool = Pool(found, part.images)
                options = {**common, "threshold": one.threshold, **_HEADLINE}
                made = [make_measure(m, truth.names, options, pool) for m in measures if measure_class(m).headline]
                scores[one.name] = _headline(made, patients_of(part), how)
            patients = None if part.patients is None else len(set(part.patients))
            boxes = sum(map(len, part.images))
            result.append(
                Subgroup(
                    column=column, value=value, images=len(part), patients=patients, boxes=boxes, scores=scores
                )
            )  # fmt: skip
    return tuple(result)


def _headline(made: Sequence[Measure], groups: Sequence[str | None], how: Mapping[str, Any]) -> dict[str, Interval]:
    """Return the headline scores with their intervals."""
    reasons: dict[str, str] = {}
    for one in made:
        one.compute()
        reasons |= one.reasons
    keys = [key for one in made for key in one.headline]

    def score(weights: np.ndarray) -> dict[str, float]:
        everything = scores_of(made, weights)
        return {key: everything[key] for key in keys}

    return with_reasons(resample(score, groups, scales=scales_of(made), **how).intervals(), reasons)
