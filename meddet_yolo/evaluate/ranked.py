"""Precision over recall of many ranked lists at once, for any weights of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RECALLS", "Ranking", "RankingList"]

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision."""

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RankingList:
    """A list of found boxes, the best first, of which most are false alarms and only the others are told.

    Precision is greatest just after a hit, so that it is needed only there; false alarms are counted.

    Attributes:
        base: (B,) places, rising, of the boxes that count as false alarms unless an entry takes them out.
        base_image: (B,) their images.
        place: (M,) places, rising, of the entries: hits, and boxes that are neither hit nor false alarm.
        image: (M,) their images.
        hit: (M,) whether they are hits.
        taken: (M,) whether they are in the base and to be taken out of it.
        truth_image: (G,) images of the boxes that are to be found.
    """

    base: Integers
    base_image: Integers
    place: Integers
    image: Integers
    hit: Flags
    taken: Flags
    truth_image: Integers


class Ranking:
    """Several lists, laid out so that all are summed up together.

    Args:
        lists: The lists. Lists that share a base (the same array) share its sums.

    Examples:
        >>> one, none = np.array([0]), np.zeros(0, np.int64)
        >>> hit = RankingList(np.arange(2), np.zeros(2, int), one, one, one > -1, one > -1, one)  # a hit, a false alarm
        >>> precision, recall = Ranking([hit]).curves(np.ones(1, np.int64))
        >>> precision.mean().round(6).item(), recall.tolist()
        (1.0, [1.0])
    """

    def __init__(self, lists: Sequence[RankingList]) -> None:
        bases: dict[int, int] = {}
        images: list[Integers] = []
        length = 0
        starts, places = [], []
        for item in lists:
            key = id(item.base)
            if key not in bases:
                bases[key] = length
                length += len(item.base)
                images.append(item.base_image)
            starts.append(np.full(len(item.place), bases[key]))
            places.append(bases[key] + np.searchsorted(item.base, item.place, side="right"))
        self._base_image = _join(images)
        self._base_start, self._base_end = _join(starts), _join(places)
        self._image = _join([item.image for item in lists])
        self._hit = _join([item.hit for item in lists])
        self._taken = _join([item.taken for item in lists])
        sizes = [len(item.place) for item in lists]
        self._count = len(lists)
        self._of = np.repeat(np.arange(self._count), sizes)
        self._ends = np.array(list(accumulate(sizes)), np.int64)
        self._starts = self._ends - np.array(sizes, np.int64)
        self._truth_image = _join([item.truth_image for item in lists])
        self._truth_ends = np.array(list(accumulate(len(item.truth_image) for item in lists)), np.int64)

    def curves(self, weights: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the interpolated precision (lists, 101) at `RECALLS` and the greatest recall (lists,).

        Both are NaN for a list with nothing to be found.
        """
        weights = weights.astype(np.int64, copy=False)
        there = np.diff(_sums(weights.take(self._truth_image))[self._truth_ends], prepend=0)
        own = weights.take(self._image)  # several times as fast as weights[...]
        hits = self._within(own * self._hit)
        base = _sums(weights.take(self._base_image))
        alarms = base.take(self._base_end) - base.take(self._base_start) - self._within(own * self._taken)
        precision = hits / (hits + alarms + np.spacing(1))
        # The best from each entry to its list's end; the shift keeps lists apart.
        shift = 2.0 * (self._count - self._of)
        best = np.maximum.accumulate((precision + shift)[::-1])[::-1] - shift
        needed = _needed(there)
        far = int(there.max(initial=0)) + 2
        lists = np.arange(self._count)
        at = np.searchsorted(hits + far * self._of, needed + far * lists[:, None])
        reached = at < self._ends[:, None]
        sampled = np.where(reached, np.append(best, 0.0)[np.where(reached, at, len(best))], 0.0)
        total = np.where(self._ends > self._starts, np.append(hits, 0)[self._ends - 1], 0)
        nothing = there == 0
        sampled[nothing] = np.nan
        return sampled, np.divide(total, there, out=np.full(self._count, np.nan), where=~nothing)

    def _within(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return running sums over the entries of each list."""
        sums = _sums(values)
        return sums[1:] - sums.take(self._starts).take(self._of)


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _sums(values: NDArray[Any]) -> NDArray[Any]:
    """Return running sums that begin with 0."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _needed(there: Integers) -> Integers:
    """Return the least number of hits (lists, 101) that reaches each recall, by the division that COCO compares."""
    whole = np.maximum(there, 1)[:, None]
    count = np.ceil(RECALLS * whole).astype(np.int64)
    count -= (count - 1) / whole >= RECALLS
    count += count / whole < RECALLS
    return np.maximum(count, 0)
