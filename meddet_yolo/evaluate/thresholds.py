"""Which confidence threshold to set, chosen on one set of images to be applied to another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from meddet_yolo.evaluate.pool import Pool

__all__ = ["Threshold", "best_f1", "choose_threshold", "least_sensitivity"]


class Threshold(NamedTuple):
    """A threshold with what it gives on the images that it was chosen on."""

    threshold: float
    sensitivity: float
    precision: float
    f1: float


def _points(pool: Pool, hit: str, iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return thresholds, falling, and hits and false alarms at each."""
    match, alarm = pool.matches(hit, iou)
    thresholds, last = np.unique(-pool.scores, return_index=True)
    ends = np.append(last[1:], len(pool.scores)) - 1
    return -thresholds, np.cumsum(match >= 0)[ends], np.cumsum(alarm)[ends]


def best_f1(pool: Pool, *, hit: str = "iou", iou: float = 0.5) -> Threshold:
    """Return the threshold of the greatest F1 over all classes, the highest of equals.

    Args:
        pool: Images to choose on.
        hit: As in `Pool.matches`.
        iou: As in `Pool.matches`.

    Raises:
        ValueError: Without labelled or found boxes there is nothing to choose by.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> truth = [Truth("a", [[0, 0, 9, 9]], [0], (64, 64))]
        >>> best_f1(Pool([Found("a", [[0, 0, 9, 9], [20, 20, 29, 29]], [0, 0], [0.7, 0.3])], truth)).threshold
        0.7
    """
    thresholds, hits, alarms, there = _checked(pool, hit, iou)
    f1 = 2 * hits / (hits + alarms + there)
    return _at(int(np.argmax(f1)), thresholds, hits, alarms, there)


def least_sensitivity(pool: Pool, sensitivity: float, *, hit: str = "iou", iou: float = 0.5) -> Threshold:
    """Return the highest threshold that finds at least a share of the labelled boxes.

    Args:
        pool: Images to choose on.
        sensitivity: The share, in (0, 1].
        hit: As in `Pool.matches`.
        iou: As in `Pool.matches`.

    Raises:
        ValueError: It is not attained at any threshold, or there is nothing to choose by.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> truth = [Truth("a", [[0, 0, 9, 9]], [0], (64, 64))]
        >>> least_sensitivity(Pool([Found("a", [[0, 0, 9, 9]], [0], [0.7])], truth), 0.9).threshold
        0.7
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"the sensitivity to choose a threshold by must lie in (0, 1], got {sensitivity!r}")
    thresholds, hits, alarms, there = _checked(pool, hit, iou)
    enough = np.flatnonzero(hits / there >= sensitivity)
    if not len(enough):
        raise ValueError(
            f"no threshold has a sensitivity of {sensitivity:g}: the detections have {hits[-1] / there:.3f} at most"
        )
    return _at(int(enough[0]), thresholds, hits, alarms, there)


def choose_threshold(rule: str, pool: Pool, *, hit: str = "iou", iou: float = 0.5) -> Threshold:
    """Return the threshold that a rule names: "f1" or "sensitivity=0.9".

    Raises:
        ValueError: The rule is none, or cannot be met.
    """
    name, _, value = rule.partition("=")
    if name == "f1" and not value:
        return best_f1(pool, hit=hit, iou=iou)
    try:
        if name == "sensitivity":
            share = float(value)
            return least_sensitivity(pool, share, hit=hit, iou=iou)
    except ValueError as error:
        if "convert" not in str(error):
            raise
    raise ValueError(f"threshold={rule} is no rule: expected a number, f1, or sensitivity=0.9 and the like")


def _checked(pool: Pool, hit: str, iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    there = len(pool.truth_image)
    if not there or not len(pool.scores):
        raise ValueError(
            f"no threshold can be chosen: {'nothing is found' if there else 'there are no labelled boxes'}"
        )
    return *_points(pool, hit, iou), there


def _at(place: int, thresholds: np.ndarray, hits: np.ndarray, alarms: np.ndarray, there: int) -> Threshold:
    shown = hits[place] + alarms[place]
    return Threshold(
        float(thresholds[place]),
        float(hits[place] / there),
        float(hits[place] / shown) if shown else float("nan"),
        float(2 * hits[place] / (shown + there)),
    )
