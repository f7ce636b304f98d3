"""Judging detectors: every measure with its interval over patients, models beside each other, subgroups."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from meddet_yolo.console import as_list
from meddet_yolo.evaluate.detection_files import SUFFIXES, read_detections
from meddet_yolo.evaluate.detections import Found, TruthSet, align
from meddet_yolo.evaluate.ground_truth import columns_of, truth_of
from meddet_yolo.evaluate.inference import find
from meddet_yolo.evaluate.measures import MEASURES, measure_class
from meddet_yolo.evaluate.measuring import (
    Judged,
    compare_with_first,
    judge_subgroups,
    make_measure,
    patients_of,
    scales_of,
    scores_of,
    with_reasons,
)
from meddet_yolo.evaluate.noise import STRENGTHS, NoiseResult, noise_robustness, short_names
from meddet_yolo.evaluate.page.cards import check_folder
from meddet_yolo.evaluate.page.page import write_page
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.evaluate.recalibration import FITS, hits_of, recalibrated
from meddet_yolo.evaluate.results import Evaluation, ModelResult, write
from meddet_yolo.evaluate.statistics import resample
from meddet_yolo.evaluate.thresholds import Threshold, choose_threshold
from meddet_yolo.trt.formats import format_of
from meddet_yolo.trt.recalibration import Recalibration, stored
from meddet_yolo.trt.recalibration import store as store_recalibration

__all__ = ["RequirementError", "evaluate", "evaluate_command"]


_FITTED_FROM = 0.05  # the many boxes of nearly no confidence would decide a recalibration


class RequirementError(ValueError):
    """A score does not meet what `require` asks for."""


def evaluate(
    model: str | Path | Sequence[str | Path],
    data: str | Path,
    *,
    split: str = "val",
    out: str | Path | None = None,
    measures: str | Sequence[str] | None = None,
    threshold: float | str = 0.25,
    choose_on: str = "val",
    recalibrate: str | None = None,
    store: bool = False,
    hit: str = "iou",
    iou: float = 0.5,
    table: str | Path | None = None,
    patient: str | None = None,
    subgroups: str | Sequence[str] | None = None,
    require: str | Sequence[str] | None = None,
    noise: str | Sequence[str] | None = None,
    sigma: float | Sequence[float] = STRENGTHS,
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
        choose_on: The split that a threshold is chosen, and a recalibration fitted, on.
        recalibrate: Make confidences probabilities before anything else: "temperature" or "isotonic". By default what
            an exported model has stored is applied, and nothing to other models.
        store: Write the recalibration into the sidecars of the exported models, where the runner finds it.
        hit: What a hit is: "iou" or "centre", see `Pool.matches`.
        iou: Least IoU of a hit.
        table: A CSV with a column of image names, and others with patients or what `subgroups` names.
        patient: Its column of patients. By default "patient" where it has one, else what `truth_of` finds.
        subgroups: Columns of `table`; the headline scores are given for each of their values.
        require: What has to hold, such as "sensitivity@1fp>=0.85": of the first model, the lower bound of the interval
            must not be below the number (with <=, the upper bound not above it).
        noise: Kinds of MRI noise under which checkpoints are measured, too, as by `noise_robustness`; none by default.
        sigma: Strengths of the noise.
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
    if recalibrate is not None and recalibrate not in FITS:
        raise ValueError(f"recalibrate={recalibrate} is unknown: use {' or '.join(FITS)}")
    if store and recalibrate is None:
        raise ValueError("store=true has nothing to store: add recalibrate=temperature or recalibrate=isotonic")
    if store and (bad := [s for s in sources if _is_detections(s) or format_of(s) is None]):
        raise ValueError(f"store=true: {bad[0]} is no exported model with a sidecar: export it first")
    if noise is not None and (bad := [s for s in sources if s.suffix != ".pt"]):
        raise ValueError(f"noise= needs checkpoints, which can be run on noisy images, got {bad[0]}")
    requirements = [_requirement(text) for text in as_list(require)]
    chosen_measures = [str(m) for m in as_list(measures)] or list(MEASURES)
    for name in chosen_measures:
        measure_class(name)  # refuses an unknown one before anything is computed
    options = {"imgsz": imgsz, "batch": batch, "device": device, "workers": workers}
    options = {key: value for key, value in options.items() if value is not None}
    columns = [str(c) for c in as_list(subgroups)]
    if columns and table is None:
        raise ValueError("subgroups= names columns of a table: add table=FILE.csv")
    if patient is not None and table is None:
        raise ValueError(f"patient={patient} names a column of a table: add table=FILE.csv")
    owners = {} if table is None else _patient_column(table, patient)
    truth = truth_of(data, split, **owners)
    folder = Path(out) if out is not None else Path("runs") / "evaluate" / f"{Path(data).stem}-{split}"
    check_folder(folder)
    common = {"hit": hit, "iou": iou}
    groups = patients_of(truth)
    how: dict[str, Any] = {"rounds": rounds, "seed": seed, "level": level}

    noisy: tuple[NoiseResult, ...] = ()
    if noise is not None:
        where = {"split": split, "save_dir": str(folder / "noise"), **options}
        noisy = noise_robustness(sources, data, noise=noise, sigma=sigma, seed=seed, **where).results

    judged: list[Judged] = []
    results: list[ModelResult] = []
    notes = list(truth.notes)
    for number, (name, source) in enumerate(zip(short_names(sources), sources, strict=True), start=1):
        LOGGER.info(
            f"[{number}/{len(sources)}] {name}: boxes in {len(truth)} images, then {rounds} resamples of the scores"
        )
        found, cached = _detections(source, data, split, truth, folder, options, first_class)
        pool = Pool(found, truth.images)

        @functools.cache
        def other(source: Path = source, pool: Pool = pool) -> Pool:
            return pool if choose_on == split else _other_pool(source, data, choose_on, folder, options, owners)

        function = _recalibration(recalibrate, source, other, iou)
        if function is not None:
            found = [recalibrated(f, function) for f in found]
            pool = Pool(found, truth.images)
            notes.append(f"{name}: its confidences were made probabilities by {_told(function)}")
            if recalibrate is not None and choose_on == split:
                notes.append(f"{name}: it was recalibrated on the images it is judged on, so it looks too good there")
        if store and function is not None:
            store_recalibration(source, function)
        at, chosen = _threshold(threshold, other, function, common)
        if chosen is not None and choose_on == split:
            notes.append(f"{name}: its threshold was chosen on the images it is judged on, so it looks too good there")
        made = [make_measure(m, truth.names, {**common, "threshold": at}, pool) for m in chosen_measures]
        reasons: dict[str, str] = {}
        for one in made:
            one.compute()
            reasons |= one.reasons
        samples = resample(functools.partial(scores_of, made), groups, scales=scales_of(made), **how)
        scores = with_reasons(samples.intervals(), reasons)
        details = {m: one.details() for m, one in zip(chosen_measures, made, strict=True)}
        results.append(
            ModelResult(
                name=name, source=str(source), threshold=at, chosen=chosen, scores=scores, boxes=sum(map(len, found)),
                details={key: value for key, value in details.items() if value}, cached=cached,
            )
        )  # fmt: skip
        judged.append(Judged(name, found, at, pool, samples))

    headline = tuple(key for m in chosen_measures for key in measure_class(m).headline)
    unmet = [text for check in requirements if (text := _unmet(check, results[0]))]
    LOGGER.info(f"comparisons, subgroups and the page in {folder}")
    result = Evaluation(
        data=truth.source,
        names=truth.names,
        images=len(truth),
        patients=len(set(truth.patients)) if truth.patients is not None else None,
        boxes={n: sum(int((t.classes == i).sum()) for t in truth.images) for i, n in enumerate(truth.names)},
        models=tuple(results),
        comparisons=compare_with_first(judged, truth, chosen_measures, common, groups, how),
        subgroups=judge_subgroups(judged, truth, table, columns, chosen_measures, common, how),
        noise=noisy,
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


def _other_pool(
    source: Path,
    data: str | Path,
    split: str,
    folder: Path,
    options: Mapping[str, Any],
    owners: Mapping[str, Any],
) -> Pool:
    """Return what a model finds in the split on which thresholds are chosen."""
    if _is_detections(source):
        raise ValueError(
            f"threshold= or recalibrate= is chosen on split {split}, of which {source} tells nothing: give a number as "
            "threshold=, or the split that is judged as choose_on="
        )
    truth = truth_of(data, split, **owners)
    return Pool(find(source, data, split, truth, cache=folder / "predictions", **options)[0], truth.images)


def _threshold(
    threshold: float | str,
    other: Callable[[], Pool],
    function: Recalibration | None,
    common: Mapping[str, Any],
) -> tuple[float, Threshold | None]:
    """Return a model's threshold, and how it was chosen on another pool."""
    if isinstance(threshold, (int, float)) and not isinstance(threshold, bool):
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} must lie in [0, 1]")
        return float(threshold), None
    pool = other()
    if function is not None:
        pool = Pool([recalibrated(f, function) for f in pool.found_list], pool.truth_list)
    chosen = choose_threshold(str(threshold), pool, **common)
    return chosen.threshold, chosen


def _recalibration(kind: str | None, source: Path, other: Callable[[], Pool], iou: float) -> Recalibration | None:
    """Return a model's recalibration: fitted, or else the one that its export holds."""
    if kind is None:
        return stored(source) if not _is_detections(source) and format_of(source) is not None else None
    return FITS[kind](*hits_of(other(), min_score=_FITTED_FROM, iou=iou))


def _told(function: Recalibration) -> str:
    content = function.to_dict()
    if content["kind"] == "temperature":
        return f"a temperature of {content['temperature']:.3f}"
    return f"isotonic regression with {len(content['scores'])} knots"


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
