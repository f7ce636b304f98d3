"""What kind of errors cost a detector its precision, after TIDE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pairs, Pool, rank_in_groups
from meddet_yolo.evaluate.ranked import Ranking, RankingList

__all__ = ["ERRORS", "ErrorTypes"]

ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(6)
_HIT = -1


@dataclass(frozen=True, eq=False)
class _Errors:
    """What each found box is: judged at all, its kind, a hit once mended, of which labelled box of another class."""

    within: NDArray[np.bool_]
    kind: NDArray[np.int64]
    mended: NDArray[np.bool_]
    missed: NDArray[np.bool_]  # of labelled boxes
    turns: NDArray[np.int64]


class ErrorTypes(Measure):
    """Errors by kind: how many an image, and how much AP50 would gain without them.

    Definition: of the boxes of an image, at most `max_det` of the best, those that match no labelled box of their class
    at an IoU of 0.5 are errors, of the first kind that fits:

    - localisation: the best IoU with a labelled box of their class is at least 0.1 and below 0.5;
    - classification: IoU of at least 0.5 with a box of another class;
    - duplicate: IoU of at least 0.5 with a box of their class, which a better one has taken;
    - background: no IoU of more than 0.1 with anything;
    - both: the rest, class and place wrong.

    A labelled box is missed if nothing matches it, and no localisation or classification error is about it. An error is
    mended by making it a hit (localisation, classification, if the box it is about is free and it is the best about it)
    or by taking it away (the others; a missed box is taken from what is to be found). `dAP/KIND` is the gain of the
    mean of AP50 over classes when only that kind is mended; the kinds' gains do not add up.

    Scores: `dAP/KIND` in [0, 1], and `errors/KIND` per image, of boxes at or above `threshold`, where a missed box is
    one that nothing above the threshold is about.

    Args:
        names: Class names by index.
        threshold: Least score of the errors that are counted; gains take all boxes.
        max_det: Most boxes of an image.

    Source: D. Bolya, S. Foley, J. Hays, J. Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors",
        ECCV 2020.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> errors = ErrorTypes(["disc", "other"])
        >>> box = [[0, 0, 10, 10]]
        >>> errors.update(Found("a", box, [1], [0.9]), Truth("a", box, [0], (40, 40)))
        >>> {k: round(v, 6) for k, v in errors.compute().items() if v}
        {'errors/classification': 1.0, 'dAP/classification': 1.0}
    """

    IOU, BACKGROUND_IOU = 0.5, 0.1

    scales: ClassVar[Mapping[str, Scale]] = {"errors": "positive", "dAP": "positive"}

    def __init__(self, names: Sequence[str], *, threshold: float = 0.25, max_det: int = 100) -> None:
        super().__init__(names)
        self.threshold, self.max_det = threshold, max_det
        self._counts = np.zeros((len(ERRORS), 0), np.int64)
        self._ranking = Ranking([])

    def prepare(self, pool: Pool) -> None:
        """Sort the errors, of all boxes for the gains and of those above the threshold for the counts."""
        within = rank_in_groups(pool.image) < self.max_det
        kind, about, missed = self._sort(pool, within)
        shown = within & (pool.scores >= self.threshold)
        kind_shown, _, missed_shown = self._sort(pool, shown)
        self._counts = np.zeros((len(ERRORS), len(pool)), np.int64)
        wrong = np.flatnonzero(shown & (kind_shown != _HIT))
        np.add.at(self._counts, (kind_shown[wrong], pool.image[wrong]), 1)
        np.add.at(self._counts[_MISSED], pool.truth_image[missed_shown], 1)
        mended = self._mended(pool, within, kind, about)
        # Once mended, a classification error counts for the class of the box that it is about.
        turns = np.where((kind == _CLASSIFICATION) & mended, about, -1)
        errors = _Errors(within, kind, mended, missed, turns)
        self._ranking = Ranking(
            [item for number in range(len(self.names)) for item in self._lists(pool, errors, number)]
        )

    def _sort(self, pool: Pool, own: NDArray[np.bool_]) -> tuple[NDArray, NDArray, NDArray]:
        """Return each found box's kind of error, the labelled box it is about, and which labelled ones are missed."""
        found, there = len(pool.scores), len(pool.truth_image)
        match = np.where(own, pool.matches("iou", self.IOU)[0], -1)
        used = np.zeros(there, bool)
        used[match[match >= 0]] = True
        pairs = pool.pairs.where(own[pool.pairs.found])
        same = pool.classes[pairs.found] == pool.truth_classes[pairs.truth]
        best, _ = _best(pairs, found)
        best_same, which_same = _best(pairs.where(same), found)
        best_other, which_other = _best(pairs.where(~same), found)
        best_used, _ = _best(pairs.where(same & used[pairs.truth]), found)
        kind = np.full(found, _BOTH)
        kind[best <= self.BACKGROUND_IOU] = _BACKGROUND
        kind[best_used >= self.IOU] = _DUPLICATE
        kind[best_other >= self.IOU] = _CLASSIFICATION
        kind[(best_same >= self.BACKGROUND_IOU) & (best_same < self.IOU)] = _LOCALISATION
        kind[match >= 0] = _HIT
        about = np.full(found, -1)
        about[kind == _LOCALISATION] = which_same[kind == _LOCALISATION]
        about[kind == _CLASSIFICATION] = which_other[kind == _CLASSIFICATION]
        about[~own] = -1
        near = used.copy()
        near[about[about >= 0]] = True
        return kind, about, ~near

    def _mended(self, pool: Pool, own: NDArray, kind: NDArray, about: NDArray) -> NDArray[np.bool_]:
        """Return which errors become hits when mended: the best about each labelled box that nothing matches."""
        match = np.where(own, pool.matches("iou", self.IOU)[0], -1)
        free = np.ones(len(pool.truth_image), bool)
        free[match[match >= 0]] = False
        candidates = np.flatnonzero((about >= 0) & (kind != _HIT))
        candidates = candidates[free[about[candidates]]]
        first = np.unique(about[candidates], return_index=True)[1]  # found boxes are sorted by score
        becomes = np.zeros(len(kind), bool)
        becomes[candidates[first]] = True
        return becomes

    def _lists(self, pool: Pool, errors: _Errors, number: int) -> list[RankingList]:
        """Return a class's boxes as they are, and with each kind of error mended."""
        own = errors.within & (pool.classes == number)
        turned = errors.turns >= 0
        turned[turned] = pool.truth_classes[errors.turns[turned]] == number
        base, quiet = np.flatnonzero(own), np.flatnonzero(own & (errors.kind != _BACKGROUND))
        labelled = pool.truth_classes == number
        lists = []
        for mended in (None, *range(len(ERRORS))):
            hit = own & (errors.kind == _HIT)
            taken = hit.copy()
            to_find = labelled
            if mended == _MISSED:
                to_find = labelled & ~errors.missed
            elif mended is not None and mended != _BACKGROUND:
                taken |= own & (errors.kind == mended)
            if mended == _LOCALISATION:
                hit = hit | (own & (errors.kind == _LOCALISATION) & errors.mended)
            elif mended == _CLASSIFICATION:
                hit = hit | turned
            place = np.flatnonzero(hit | taken)
            rest = quiet if mended == _BACKGROUND else base
            image, truth_image = pool.image[place], pool.truth_image[to_find]
            lists.append(RankingList(rest, pool.image[rest], place, image, hit[place], taken[place], truth_image))
        return lists

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return counts per image and gains."""
        images = weights.sum()
        counts = self._counts @ weights / images if images else np.full(len(ERRORS), np.nan)
        scores = {f"errors/{name}": float(value) for name, value in zip(ERRORS, counts, strict=True)}
        if not images:
            self.reasons |= dict.fromkeys(scores, "no images")
        precision = self._ranking.curves(weights)[0].mean(-1).reshape(len(self.names), 1 + len(ERRORS))
        known = precision[~np.isnan(precision[:, 0])]
        gains = np.full(len(ERRORS), np.nan)
        if len(known):
            # Where a class is missed altogether, taking that away leaves nothing to be found, and nothing to be wrong.
            gains = np.nan_to_num(known[:, 1:], nan=1.0).mean(0) - known[:, 0].mean()
            gains[np.abs(gains) < 1e-12] = 0.0  # rounding
        else:
            self.reasons |= dict.fromkeys((f"dAP/{name}" for name in ERRORS), "no labelled boxes")
        return scores | {f"dAP/{name}": float(value) for name, value in zip(ERRORS, gains, strict=True)}


def _best(pairs: Pairs, found: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the greatest IoU of each found box, 0 without any, and the (first) labelled box it is with."""
    best, which = np.zeros(found), np.full(found, -1)
    np.maximum.at(best, pairs.found, pairs.iou)
    top = np.flatnonzero(pairs.iou == best[pairs.found])[::-1]
    which[pairs.found[top]] = pairs.truth[top]  # of several, the last write is the first pair
    return best, which
