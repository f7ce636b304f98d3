"""An evaluation in sentences, for readers who do not know its measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from meddet_yolo.evaluate.results import Comparison, Evaluation, ModelResult
from meddet_yolo.evaluate.statistics import Interval

__all__ = ["SIGNIFICANT", "about_comparison", "about_intervals", "about_model", "percent", "plain", "undefined"]

_SMALL_GAP = 0.02
SIGNIFICANT = 0.05
_TRIED_WITH = 10  # the fewest patients of benchmarks/interval_coverage.py


def percent(interval: Interval) -> str:
    """Return a share with its interval in per cent.

    Examples:
        >>> percent(Interval(0.823, 0.74, 0.9))
        '82.3 % (74.0 to 90.0 %)'
    """
    return _told(interval, lambda v: f"{100 * v:.1f}", " %")


def plain(interval: Interval) -> str:
    """Return a number with its interval.

    Examples:
        >>> plain(Interval(2.674, 2.329, float("nan")))
        '2.67'
    """
    return _told(interval, lambda v: f"{v:.2f}", "")


def _told(interval: Interval, text: Callable[[float], str], unit: str) -> str:
    value = text(interval.value) + unit
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        return f"{value} ({text(interval.low)} to {text(interval.high)}{unit})"
    return value


def about_model(model: ModelResult) -> list[str]:
    """Return what a model does, one sentence for each of the scores that were computed and are defined."""
    known = {key: i for key, i in model.scores.items() if math.isfinite(i.value)}
    lines = []
    if "sensitivity" in known and "fp_per_image" in known:
        alarms = plain(known["fp_per_image"])
        lines.append(
            f"At a confidence of {model.threshold:.3f} or more it finds {percent(known['sensitivity'])} of the "
            f"labelled boxes, with {alarms} false alarms per image."
        )
    if "precision" in known:
        lines.append(f"Of the boxes that it shows there, {percent(known['precision'])} are right.")
    if "sensitivity@1fp" in known:
        lines.append(
            f"Allowed one false alarm per image on average, it finds {percent(known['sensitivity@1fp'])} of the boxes."
        )
    if "AUROC/patient" in known:
        lines.append(
            f"Of a patient with a finding and one without, it gives the former the higher score in "
            f"{percent(known['AUROC/patient'])} of all pairs."
        )
    if "D-ECE" in known and "confidence_gap" in known:
        gap = known["confidence_gap"].value
        how = "about right" if abs(gap) < _SMALL_GAP else "too high" if gap > 0 else "too low"
        lines.append(
            f"Its confidences are {how} on average (confidence minus precision {gap:+.2f}); within bins of confidence "
            f"they are off by {plain(known['D-ECE'])}."
        )
    return lines


def about_comparison(comparison: Comparison, keys: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return score, difference with interval, corrected p-value and verdict of each score that both models have.

    Args:
        comparison: Two models.
        keys: Names of the scores.
    """
    rows = []
    for key in keys:
        difference = comparison.differences.get(key)
        if difference is None or not math.isfinite(difference.value):
            continue
        p = comparison.corrected.get(key, difference.p)
        told = f"{difference.value:+.3f}"
        if math.isfinite(difference.low):
            told += f" ({difference.low:+.3f} to {difference.high:+.3f})"
        shown = "unknown" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"
        rows.append((key, told, shown, "differs" if p is not None and p < SIGNIFICANT else "may be chance"))
    return rows


def about_intervals(result: Evaluation) -> str:
    """Return what the intervals mean, and what they rest on."""
    level = float(result.settings.get("level", 0.95))
    told = f"{100 * level:g} %"
    how = f"{result.settings.get('rounds')} bootstrap rounds, seed {result.settings.get('seed')}"
    if result.patients is None:
        return (
            f"In brackets: {told} intervals over images ({how}). Whose image each is, is unknown; images of one "
            "patient are alike, so these intervals are too narrow."
        )
    few = ""
    if result.patients < _TRIED_WITH:
        few = f" That was tried with {_TRIED_WITH} patients and more; with {result.patients} they are a rough guide."
    return (
        f"In brackets: {told} intervals ({how}). Were the {result.patients} patients drawn anew from where they "
        f"come from, about {told} of such intervals would hold the value for all patients there.{few}"
    )


def undefined(result: Evaluation) -> dict[str, list[str]]:
    """Return the headline scores that no model has, by the reason."""
    reasons: dict[str, list[str]] = {}
    for key in result.headline:
        scores = [model.scores[key] for model in result.models if key in model.scores]
        if scores and not any(math.isfinite(score.value) for score in scores):
            reasons.setdefault(scores[0].reason or "not defined on these images", []).append(key)
    return reasons
