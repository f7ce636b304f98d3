"""The boxes of many images in flat arrays, and which found box overlaps which labelled one, worked out once.

Measures match boxes on a pool without a loop over images, and sum up again for every resample of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.detections import Found, Truth

__all__ = ["Pairs", "Pool", "greedy_match", "rank_in_groups"]

_CHUNK = 400_000  # pairs looked at in one go: tens of megabytes

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Found boxes that overlap labelled ones of their image.

    Attributes:
        found: (P,) indices of found boxes, rising.
        truth: (P,) indices of labelled boxes, rising for each found box.
        iou: (P,) their intersection over union, above 0.
    """

    found: Integers
    truth: Integers
    iou: Floats

    def where(self, keep: Flags | Integers) -> Pairs:
        """Return those for which `keep` (P,) is true, or those of its indices in its order."""
        return Pairs(self.found[keep], self.truth[keep], self.iou[keep])


class Pool:
    """All boxes of a list of images; found boxes are sorted by score, the best first, equal ones as they came.

    Args:
        found: What was found, an entry an image.
        truth: What is there, in the same order.

    Attributes:
        images: Number of images.
        truth_list: The images as they were given.
        found_list: What was found, as it was given.
        boxes: (D, 4) found boxes in pixels.
        classes: (D,) their classes.
        scores: (D,) their scores, falling.
        image: (D,) their images' places in the list.
        truth_boxes: (G, 4) labelled boxes in pixels, image by image.
        truth_classes: (G,) their classes.
        truth_image: (G,) their images' places in the list.

    Raises:
        ValueError: The two lists do not name the same images.

    Examples:
        >>> truth = Truth("a", [[0, 0, 10, 10]], [0], (16, 16))
        >>> pool = Pool([Found("a", [[0, 0, 2, 2], [0, 0, 10, 5]], [0, 1], [0.1, 0.7])], [truth])
        >>> pool.scores.tolist(), pool.pairs.iou.tolist()
        ([0.7, 0.1], [0.5, 0.04])
    """

    def __init__(self, found: Sequence[Found], truth: Sequence[Truth]) -> None:
        if [f.name for f in found] != [t.name for t in truth]:
            raise ValueError("found and truth must name the same images in the same order: see `align`")
        self.found_list, self.truth_list = tuple(found), tuple(truth)
        self.images = len(self.truth_list)
        self._matches: dict[tuple[str, float], tuple[Integers, Flags]] = {}
        counts = [len(f) for f in found]
        scores = _joined([f.scores for f in found], np.float64)
        order = np.argsort(-scores, kind="stable")
        self.scores = scores[order]
        self.boxes = _joined([f.boxes for f in found], np.float64, (0, 4))[order]
        self.classes = _joined([f.classes for f in found], np.int64)[order]
        self.image = np.repeat(np.arange(self.images), counts)[order]
        self.truth_boxes = _joined([t.boxes for t in truth], np.float64, (0, 4))
        self.truth_classes = _joined([t.classes for t in truth], np.int64)
        self.truth_image = np.repeat(np.arange(self.images), [len(t) for t in truth])

    def __len__(self) -> int:
        """Return the number of images."""
        return self.images

    @cached_property
    def _blocks(self) -> tuple[Integers, Integers]:
        """First labelled box of each image, and their number."""
        counts = np.bincount(self.truth_image, minlength=self.images)
        return np.cumsum(counts) - counts, counts

    @cached_property
    def pairs(self) -> Pairs:
        """All found boxes with the labelled ones of their image that they overlap, whatever the classes."""
        starts, counts = self._blocks
        number = counts[self.image]
        parts: list[Pairs] = []
        bounds = np.searchsorted(np.cumsum(number), np.arange(_CHUNK, int(number.sum()) + _CHUNK, _CHUNK))
        edges = np.unique(np.concatenate([[0], bounds + 1, [len(number)]]).clip(0, len(number)))
        for a, b in pairwise(edges.tolist()):
            some = number[a:b]
            found = np.repeat(np.arange(a, b), some)
            within = np.arange(len(found)) - np.repeat(np.cumsum(some) - some, some)
            truth = starts[self.image[found]] + within
            iou = _iou(self.boxes[found], self.truth_boxes[truth])
            parts.append(Pairs(found, truth, iou).where(iou > 0))
        return Pairs(
            _joined([p.found for p in parts], np.int64),
            _joined([p.truth for p in parts], np.int64),
            _joined([p.iou for p in parts], np.float64),
        )

    @cached_property
    def own_class_pairs(self) -> Pairs:
        """Pairs of one class."""
        pairs = self.pairs
        return pairs.where(self.classes[pairs.found] == self.truth_classes[pairs.truth])

    @cached_property
    def centre_pairs(self) -> Pairs:
        """Pairs of one class in which the found box's centre lies in the labelled box, its edge included."""
        pairs = self.own_class_pairs
        boxes, truth = self.boxes[pairs.found], self.truth_boxes[pairs.truth]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        return pairs.where(((centre >= truth[:, :2]) & (centre <= truth[:, 2:])).all(1))

    def matches(self, hit: str = "iou", iou: float = 0.5) -> tuple[Integers, Flags]:
        """Match found boxes to labelled ones of their class, the best score first, each labelled box once.

        Args:
            hit: "iou": a hit has an IoU of at least `iou`; what finds a box that is found already is a false alarm.
                "centre": the found box's centre lies in the labelled one; what finds it again counts for nothing.
            iou: Least IoU of a hit, in (0, 1].

        Returns:
            (D,) the labelled box of each found one, -1 where there is none; and (D,) whether it is a false alarm.

        Raises:
            ValueError: `hit` or `iou` is not one of these.
        """
        if hit not in ("iou", "centre"):
            raise ValueError(f"hit={hit} is unknown: expected iou or centre")
        if not 0 < iou <= 1:
            raise ValueError(f"iou must lie in (0, 1], got {iou!r}")
        key = (hit, iou)
        if key not in self._matches:
            pairs = self.own_class_pairs if hit == "iou" else self.centre_pairs
            least = np.array([iou if hit == "iou" else 0.0])
            match = greedy_match(pairs, len(self.scores), len(self.truth_image), self.image, least)[0]
            alarm = match < 0
            if hit == "centre":
                alarm[pairs.found] = False
            self._matches[key] = match, alarm
        return self._matches[key]

    @cached_property
    def rank(self) -> Integers:
        """(D,) place of every found box among those of its image and class, from 0 for the best."""
        classes = int(self.classes.max(initial=0)) + 1
        return rank_in_groups(self.image * classes + self.classes)


def _joined(parts: Sequence[NDArray], kind: type, empty: tuple[int, ...] = (0,)) -> NDArray:
    """Return arrays one after another."""
    return np.concatenate(parts).astype(kind, copy=False) if parts else np.zeros(empty, kind)


def _iou(a: Floats, b: Floats) -> Floats:
    """Return the intersection over union of boxes (P, 4) with boxes (P, 4); 0 where both have no area."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    both = np.clip(sides, 0, None).prod(1)
    either = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def rank_in_groups(group: Integers) -> Integers:
    """Return every element's place among those of its group, in their order.

    Examples:
        >>> rank_in_groups(np.array([7, 3, 7, 7, 3])).tolist()
        [0, 0, 1, 2, 1]
    """
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(group) else np.zeros(0, bool)
    starts = np.flatnonzero(first)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
    return rank


def greedy_match(
    pairs: Pairs, found: int, truth: int, group: Integers, thresholds: Floats, ignored: Flags | None = None
) -> Integers:
    """Match found boxes to labelled ones as COCO does: the best score first, each to the free box of the most overlap.

    Every labelled box is matched once at most. A found box takes an ignored one only where it reaches no other; of
    equally good ones it takes the last.

    Args:
        pairs: Which may match; `pairs.found` counts from the best score.
        found: Number of found boxes.
        truth: Number of labelled boxes.
        group: (found,) groups whose boxes cannot meet, such as images; speeds the matching up.
        thresholds: (T,) least `pairs.iou` of a match.
        ignored: (truth,) labelled boxes to avoid.

    Returns:
        (T, found) the labelled box of each, -1 where there is none.

    Examples:
        >>> pairs = Pairs(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0.6, 0.8, 0.9]))
        >>> greedy_match(pairs, 2, 2, np.zeros(2, int), np.array([0.5, 0.7])).tolist()
        [[1, -1], [1, -1]]
    """
    result = np.full((len(thresholds), found), -1, np.int64)
    pairs = pairs.where(pairs.iou >= thresholds.min(initial=2))
    if not len(pairs.found):
        return result
    boxes, of_box = np.unique(pairs.found, return_inverse=True)
    turn = rank_in_groups(group[boxes])[of_box.reshape(-1)]
    order = np.asarray(np.argsort(turn, kind="stable"), np.int64)
    at, turns = pairs.where(order), turn[order]
    free = np.ones((truth, len(thresholds)), bool)
    for a, b in _runs(turns):
        own, their, iou = at.found[a:b], at.truth[a:b], at.iou[a:b]
        starts = np.flatnonzero(np.concatenate([[True], own[1:] != own[:-1]]))
        usable = free[their] & (iou[:, None] >= thresholds)
        best = _last_of_best(usable if ignored is None else usable & ~ignored[their][:, None], iou, starts)
        if ignored is not None:
            best = np.where(best < 0, _last_of_best(usable & ignored[their][:, None], iou, starts), best)
        box, level = np.nonzero(best >= 0)
        taken = their[best[box, level]]
        free[taken, level] = False
        result[level, own[starts][box]] = taken
    return result


def _runs(ordered: Integers) -> list[tuple[int, int]]:
    """Return begin and end of each run of equal values."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(ordered)]])
    return list(pairwise(edges.tolist()))


def _last_of_best(usable: Flags, iou: Floats, starts: Integers) -> Integers:
    """Return for each segment and threshold the last pair of the greatest overlap, -1 where none is usable."""
    value = np.where(usable, iou[:, None], -1.0)
    best = np.maximum.reduceat(value, starts, axis=0)
    of = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(iou))))
    place = np.where(usable & (value == best[of]), np.arange(len(iou))[:, None], -1)
    return np.asarray(np.maximum.reduceat(place, starts, axis=0))
