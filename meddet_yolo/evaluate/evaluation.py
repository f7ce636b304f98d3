"""Judging detectors: every measure with its interval over patients, models beside each other, subgroups."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from meddet_yolo.console import as_list
from meddet_yolo.evaluate.detection_files import SUFFIXES, read_detections
from meddet_yolo.evaluate.detections import Found, Truth, TruthSet, align
from meddet_yolo.evaluate.ground_truth import columns_of, read_column, truth_of
from meddet_yolo.evaluate.inference import find
from meddet_yolo.evaluate.measures import MEASURES, Measure, measure, measure_class
from meddet_yolo.evaluate.noise import short_names
from meddet_yolo.evaluate.page.page import write_page
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.evaluate.results import Comparison, Evaluation, ModelResult, Subgroup, write
from meddet_yolo.evaluate.statistics import Interval, Samples, holm, paired_all, resample
from meddet_yolo.evaluate.thresholds import Threshold, choose_threshold

__all__ = ["RequirementError", "evaluate", "evaluate_command"]

_MOST_GROUPS = 20


class RequirementError(ValueError):
    """A score does not meet what `require` asks for."""


@dataclass(frozen=True, eq=False)
class _Judged:
    """A model's detections, its measures and their resampled scores."""

    name: str
    found: list[Found]
    threshold: float
    pool: Pool
    samples: Samples


def evaluate(
    model: str | Path | Sequence[str | Path],
    data: str | Path,
    *,
    split: str = "val",
    out: str | Path | None = None,
    measures: str | Sequence[str] | None = None,
    threshold: float | str = 0.25,
    choose_on: str = "val",
    hit: str = "iou",
    iou: float = 0.5,
    table: str | Path | None = None,
    patient: str | None = None,
    subgroups: str | Sequence[str] | None = None,
    require: str | Sequence[str] | None = None,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    private: bool = False,
    first_class: int | None = None,
    imgsz: int | None = None,
    batch: int | None = None,
    device: str | int | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Judge one or several detectors on a part of a data set; the command `meddet evaluate`.

    Predictions are kept in `out/predictions` under a hash of the model, the images and the options, so that a second
    evaluation of the same model computes measures alone.

    Args:
        model: Checkpoints, ONNX, OpenVINO or engine files, or files of detections (see `read_detections`), one or
            several; the first is the one that others are compared with.
        data: The data set's YAML.
        split: Its part, "val" or "test".
        out: Folder to write to; by default `runs/evaluate/DATA-SPLIT`.
        measures: Names of `meddet_yolo.evaluate.measures.MEASURES`; all by default.
        threshold: Confidence threshold of the scores that need one: a number, "f1" for the one of the best F1, or
            "sensitivity=0.9" for the highest that finds so much; both for each model on the split `choose_on`.
        choose_on: The split that a threshold is chosen on.
        hit: What a hit is: "iou" or "centre", see `Pool.matches`.
        iou: Least IoU of a hit.
        table: A CSV with a column of image names, and others with patients or what `subgroups` names.
        patient: Its column of patients. By default "patient" where it has one, else what `truth_of` finds.
        subgroups: Columns of `table`; the headline scores are given for each of their values.
        require: What has to hold, such as "sensitivity@1fp>=0.85": of the first model, the lower bound of the interval
            must not be below the number (with <=, the upper bound not above it).
        rounds: Resamples.
        seed: Their seed.
        level: Confidence of the intervals.
        private: Leave the pictures out of the page.
        first_class: As in `read_detections`.
        imgsz: Image size of the models; by default that of their training or export.
        batch: Images a batch.
        device: As in Ultralytics.
        workers: Processes that load images.

    Returns:
        The results; they are also written to `out` as JSON, as Markdown and as a page.

    Raises:
        FileNotFoundError: A model, table or split is not there.
        ValueError: An argument that is none, or detections that do not fit the data set.

    Examples:
        >>> result = evaluate(["student.pt", "teacher.pt"], "d.yaml", split="test")  # doctest: +SKIP
        >>> print(result.models[0].scores["sensitivity@1fp"])  # doctest: +SKIP
        0.812 (0.774 to 0.845)
    """
    sources = [Path(str(m)) for m in as_list(str(model) if isinstance(model, Path) else model)]
    if not sources:
        raise ValueError("model= names no model: give a checkpoint, an exported model or a file of detections")
    requirements = [_requirement(text) for text in as_list(require)]
    chosen_measures = [str(m) for m in as_list(measures)] or list(MEASURES)
    for name in chosen_measures:
        measure_class(name)  # refuses an unknown one before anything is computed
    options = {"imgsz": imgsz, "batch": batch, "device": device, "workers": workers}
    options = {key: value for key, value in options.items() if value is not None}
    columns = [str(c) for c in as_list(subgroups)]
    if columns and table is None:
        raise ValueError("subgroups= names columns of a table: add table=FILE.csv")
    owners = {} if table is None else _patient_column(table, patient)
    truth = truth_of(data, split, **owners)
    folder = Path(out) if out is not None else Path("runs") / "evaluate" / f"{Path(data).stem}-{split}"
    common = {"hit": hit, "iou": iou}
    groups = _groups(truth)
    how: dict[str, Any] = {"rounds": rounds, "seed": seed, "level": level}

    judged: list[_Judged] = []
    results: list[ModelResult] = []
    notes = list(truth.notes)
    for name, source in zip(short_names(sources), sources, strict=True):
        found, cached = _detections(source, data, split, truth, folder, options, first_class)
        pool = Pool(found, truth.images)
        at, chosen = _threshold(threshold, source, data, split, choose_on, pool, folder, options, common, owners)
        if chosen is not None and choose_on == split:
            notes.append(f"{name}: its threshold was chosen on the images it is judged on, so it looks too good there")
        made = [_measure(m, truth.names, {**common, "threshold": at}, pool) for m in chosen_measures]
        reasons: dict[str, str] = {}
        for one in made:
            one.compute()
            reasons |= one.reasons
        samples = resample(functools.partial(_scores, made), groups, **how)
        scores = {
            key: replace(interval, reason=reasons.get(key, interval.reason))
            for key, interval in samples.intervals().items()
        }
        details = {m: one.details() for m, one in zip(chosen_measures, made, strict=True)}
        results.append(
            ModelResult(
                name=name, source=str(source), threshold=at, chosen=chosen, scores=scores, boxes=sum(map(len, found)),
                details={key: value for key, value in details.items() if value}, cached=cached,
            )
        )  # fmt: skip
        judged.append(_Judged(name, found, at, pool, samples))

    headline = tuple(key for m in chosen_measures for key in measure_class(m).headline)
    unmet = [text for check in requirements if (text := _unmet(check, results[0]))]
    result = Evaluation(
        data=truth.source,
        names=truth.names,
        images=len(truth),
        patients=len(set(truth.patients)) if truth.patients is not None else None,
        boxes={n: sum(int((t.classes == i).sum()) for t in truth.images) for i, n in enumerate(truth.names)},
        models=tuple(results),
        comparisons=_comparisons(judged, truth, chosen_measures, common, groups, how),
        subgroups=_subgroups(judged, truth, table, columns, chosen_measures, common, how),
        headline=headline,
        settings={"split": split, **common, **how, "measures": chosen_measures, **options},
        unmet=tuple(unmet),
        notes=tuple(dict.fromkeys(notes)),
        out=folder,
    )
    write(result, folder)
    write_page(result, truth, [one.pool for one in judged], folder, private=private)
    return result


@functools.wraps(evaluate)
def evaluate_command(*args: Any, **kwargs: Any) -> None:
    """Evaluate, print the headline scores, and fail where a requirement is not met.

    Raises:
        RequirementError: A requirement is not met.
    """
    result = evaluate(*args, **kwargs)
    print(result)
    if result.unmet:
        raise RequirementError("; ".join(result.unmet))


# Reading --------------------------------------------------------------------------------------------------------------


def _patient_column(table: str | Path, patient: str | None) -> dict[str, Any]:
    """Return where patients are, as arguments of `truth_of`."""
    if patient is None and "patient" not in columns_of(table):
        return {}
    return {"patients": table, "patient_column": patient or "patient"}


def _detections(
    source: Path,
    data: str | Path,
    split: str,
    truth: TruthSet,
    folder: Path,
    options: Mapping[str, Any],
    first_class: int | None,
) -> tuple[list[Found], bool]:
    """Return what was found in every image, and whether that was known already."""
    if _is_detections(source):
        return align(read_detections(source, truth, first_class=first_class), truth, str(source)), True
    return find(source, data, split, truth, cache=folder / "predictions", **options)


def _is_detections(source: Path) -> bool:
    if source.is_dir():
        return not any(source.glob("*.xml"))  # an OpenVINO folder has one
    return source.suffix.lower() in SUFFIXES


def _threshold(
    threshold: float | str,
    source: Path,
    data: str | Path,
    split: str,
    choose_on: str,
    pool: Pool,
    folder: Path,
    options: Mapping[str, Any],
    common: Mapping[str, Any],
    owners: Mapping[str, Any],
) -> tuple[float, Threshold | None]:
    """Return a model's threshold, and how it was chosen."""
    if isinstance(threshold, (int, float)) and not isinstance(threshold, bool):
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} must lie in [0, 1]")
        return float(threshold), None
    if choose_on != split:
        if _is_detections(source):
            raise ValueError(
                f"threshold={threshold} is chosen on split {choose_on}, of which {source} tells nothing: give a number"
            )
        other = truth_of(data, choose_on, **owners)
        found, _ = find(source, data, choose_on, other, cache=folder / "predictions", **options)
        pool = Pool(found, other.images)
    chosen = choose_threshold(str(threshold), pool, **common)
    return chosen.threshold, chosen


# Measuring ------------------------------------------------------------------------------------------------------------


def _groups(truth: TruthSet) -> Sequence[str | None]:
    """Return the patient of every image, None for all where they are unknown."""
    return truth.patients or [None] * len(truth)


def _measure(name: str, names: Sequence[str], options: Mapping[str, Any], pool: Pool) -> Measure:
    """Return a measure of a pool, with those of the options that it takes."""
    takes = inspect.signature(measure_class(name)).parameters
    made = measure(name, names, **{key: value for key, value in options.items() if key in takes})
    made.adopt(pool)
    return made


def _scores(measures: Sequence[Measure], weights: np.ndarray) -> dict[str, float]:
    return {key: value for one in measures for key, value in one.compute(weights).items()}


def _comparisons(
    judged: Sequence[_Judged],
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
        made: list[Measure] = []
        keys: list[str] = []
        for name in measures:
            if own := measure_class(name).headline:
                made.append(_of_two(pair, truth, name, common))
                keys += own

        def score(weights: np.ndarray, made: list[Measure] = made, keys: list[str] = keys) -> dict[str, float]:
            everything = _scores(made, weights.reshape(-1))
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


def _of_two(pair: tuple[_Judged, _Judged], truth: TruthSet, name: str, common: Mapping[str, Any]) -> Measure:
    """Return a measure over the images of two models, one's after the other's, in which weights choose between them."""
    takes = inspect.signature(measure_class(name)).parameters
    found: list[Found] = []
    images: list[Truth] = []
    for number, one in enumerate(pair):
        for f, t in zip(one.found, truth.images, strict=True):
            # Each model has its threshold, so what is below it is left out beforehand.
            kept = f.above(one.threshold) if "threshold" in takes else f
            label = f"{number}/{t.name}"
            found.append(replace(kept, name=label))
            images.append(replace(t, name=label, patient=None if t.patient is None else f"{number}/{t.patient}"))
    options = {**common, "threshold": 0.0, "areas": False}
    return _measure(name, truth.names, options, Pool(found, images))


def _subgroups(
    judged: Sequence[_Judged],
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
                options = {**common, "threshold": one.threshold, "areas": False}
                made = [_measure(m, truth.names, options, pool) for m in measures if measure_class(m).headline]
                scores[one.name] = _headline(made, _groups(part), how)
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
        everything = _scores(made, weights)
        return {key: everything[key] for key in keys}

    intervals = resample(score, groups, **how).intervals()
    return {key: replace(i, reason=reasons.get(key, i.reason)) for key, i in intervals.items()}


# Requirements ---------------------------------------------------------------------------------------------------------

_REQUIREMENT = re.compile(r"\s*([^<>=\s]+)\s*(>=|<=)\s*([-+.\deE]+)\s*")


def _requirement(text: Any) -> tuple[str, str, float]:
    """Return score, comparison and number of a requirement."""
    match = _REQUIREMENT.fullmatch(str(text))
    try:
        if match is not None:
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    raise ValueError(f"require={text} is no requirement: expected for example sensitivity@1fp>=0.85")


def _unmet(check: tuple[str, str, float], result: ModelResult) -> str:
    """Return why a requirement is not met; empty where it is."""
    name, relation, bound = check
    if name not in result.scores:
        near = ", ".join(key for key in result.scores if "/" not in key)
        raise ValueError(f"require={name}{relation}{bound:g}: there is no score {name}; there are {near}")
    interval = result.scores[name]
    limit = interval.low if relation == ">=" else interval.high
    if limit >= bound if relation == ">=" else limit <= bound:  # false for NaN
        return ""
    return f"{result.name}: {name} is {interval}, required {relation} {bound:g}"
