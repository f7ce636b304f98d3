"""What every detector does at every threshold that the page's slider can stand on, and its curves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.pool import Pool

__all__ = ["count_table", "curves", "slider_thresholds", "steps_reached"]

_FIRST, _STEPS = 2, 200  # the slider goes from 0.010 to 1 in steps of 0.005
_MOST_POINTS = 600  # of a curve, more than a plot has pixels

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def slider_thresholds(own: Iterable[float]) -> Floats:
    """Return the thresholds that the slider can be set to, rising: a grid, and those of the models.

    Args:
        own: The models' thresholds.

    Examples:
        >>> thresholds = slider_thresholds([0.25, 0.3172])
        >>> len(thresholds), thresholds[:3].tolist(), 0.3172 in thresholds
        (200, [0.01, 0.015, 0.02], True)
    """
    return np.unique(np.concatenate([np.arange(_FIRST, _STEPS + 1) / _STEPS, np.asarray(list(own), np.float64)]))


def steps_reached(thresholds: Floats, scores: Floats) -> NDArray[np.int64]:
    """Return how many of the thresholds each score reaches, so that a page compares whole numbers only.

    A box is shown at `thresholds[i]` if and only if its number is above i.

    Examples:
        >>> steps_reached(np.array([0.1, 0.5]), np.array([0.05, 0.1, 0.7])).tolist()
        [0, 1, 2]
    """
    return np.searchsorted(thresholds, scores, side="right").astype(np.int64)


def count_table(pool: Pool, classes: int, thresholds: Floats, *, hit: str, iou: float) -> list[dict[str, Any]]:
    """Count hits and false alarms at every threshold, for all classes together and for each.

    Args:
        pool: The images with what was found in them.
        classes: Number of classes.
        thresholds: (T,) least scores of boxes that count.
        hit: As in `Pool.matches`.
        iou: As in `Pool.matches`.

    Returns:
        1 + classes tables: `boxes` is the number of labelled boxes, `tp` and `fp` (T,) the counts; what is not hit is
        missed.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> boxes = [[0, 0, 9, 9], [20, 20, 29, 29]]
        >>> pool = Pool([Found("a", boxes, [0, 0], [0.7, 0.3])], [Truth("a", boxes[:1], [0], (64, 64))])
        >>> count_table(pool, 1, np.array([0.2, 0.5, 0.9]), hit="iou", iou=0.5)[0]
        {'boxes': 1, 'tp': [1, 1, 0], 'fp': [1, 0, 0]}
    """
    return [
        {"boxes": boxes, "tp": _reaching(hits, thresholds), "fp": _reaching(alarms, thresholds)}
        for hits, alarms, boxes in _groups(pool, classes, hit, iou)
    ]


def curves(pool: Pool, classes: int, *, hit: str, iou: float) -> list[dict[str, list[int]]]:
    """Return hits and false alarms while the threshold falls, for all classes together and for each.

    Only the corners are given: where a hit has just been added, and the point before the next. They draw a FROC curve
    and a curve of precision over recall exactly, up to 600 points; of more, every n-th pair is kept.

    Args:
        pool: As in `count_table`.
        classes: As in `count_table`.
        hit: As in `count_table`.
        iou: As in `count_table`.

    Returns:
        1 + classes curves of `tp` and `fp`.
    """
    result = []
    for hits, alarms, _ in _groups(pool, classes, hit, iou):
        thresholds = np.unique(np.concatenate([hits, alarms]))[::-1]
        tp = np.array(_reaching(hits, thresholds), np.int64)
        fp = np.array(_reaching(alarms, thresholds), np.int64)
        first = np.flatnonzero(np.diff(tp, prepend=0))
        if len(first) > _MOST_POINTS // 2:
            first = first[np.unique(np.linspace(0, len(first) - 1, _MOST_POINTS // 2).round().astype(int))]
        keep = np.unique(np.concatenate([first, first - 1, [len(tp) - 1]]).astype(int))
        keep = keep[keep >= 0]
        result.append({"tp": tp[keep].tolist(), "fp": fp[keep].tolist()})
    return result


def _groups(pool: Pool, classes: int, hit: str, iou: float) -> Iterator[tuple[Floats, Floats, int]]:
    """Yield the scores of hits and of false alarms, falling, and the number of labelled boxes."""
    match, alarm = pool.matches(hit, iou)
    everything: Flags = np.ones(len(pool.classes), bool)
    for number in (None, *range(classes)):
        own = everything if number is None else pool.classes == number
        boxes = len(pool.truth_classes) if number is None else int((pool.truth_classes == number).sum())
        yield pool.scores[own & (match >= 0)], pool.scores[own & alarm], boxes


def _reaching(falling: Floats, thresholds: Floats) -> list[int]:
    """Return the number of scores that are at or above each threshold."""
    counts: list[int] = np.searchsorted(-falling, -thresholds, side="right").tolist()
    return counts
