"""COCO's average precision and recall, exact, and quick to compute again for every resample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pool, greedy_match

__all__ = ["AREAS", "IOUS", "AveragePrecision"]

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's bounds of a box's area, in pixels of the image, both included."""

_ALL = (0.0, 1e10)


@dataclass(frozen=True, eq=False)
class _Class:
    """The boxes of one class and range of areas, as far as precision needs them.

    Precision is greatest just after a hit, so it is needed only at boxes that might be one; the others are counted.

    Attributes:
        image: (C,) images of the found boxes that reach a labelled one at the least IoU, the best score first.
        hit: (T, C) whether each is a hit.
        miss: (T, C) whether each is a false alarm; those that match an ignored box are neither.
        rest_image: (R,) images of the other found boxes, all false alarms.
        rest_before: (C,) how many of the others have a better score.
        truth_image: (G,) images of the labelled boxes.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    miss: NDArray[np.bool_]
    rest_image: NDArray[np.int64]
    rest_before: NDArray[np.int64]
    truth_image: NDArray[np.int64]

    def curve(self, weights: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return recall (T, C) and interpolated precision (T, C); None without labelled boxes."""
        positives = weights[self.truth_image].sum()
        if positives == 0:
            return None
        own = weights[self.image]
        hits = np.cumsum(self.hit * own, 1, dtype=np.float64)
        rest = np.concatenate([[0], np.cumsum(weights[self.rest_image])])[self.rest_before]
        misses = np.cumsum(self.miss * own, 1, dtype=np.float64) + rest
        precision = hits / (hits + misses + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        return hits / positives, precision

    def score(self, weights: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return average precision (T,) and the greatest recall (T,); None without labelled boxes."""
        curve = self.curve(weights)
        if curve is None:
            return None
        recall, precision = curve
        average = np.zeros(len(recall))
        if not recall.shape[1]:
            return average, average.copy()
        for level, (r, p) in enumerate(zip(recall, precision, strict=True)):
            reached = p[np.searchsorted(r, RECALLS[r[-1] >= RECALLS])]
            average[level] = reached.sum() / len(RECALLS)
        return average, recall[:, -1]


class AveragePrecision(Measure):
    """COCO's mAP family: precision averaged over recall, IoU thresholds and classes.

    Definition: found boxes of a class are ranked by score over all images, at most `max_det` an image and class; each
    is a hit if it reaches a free labelled box of its class with an IoU of at least the threshold (greedily, best score
    first). Precision at a recall is the best at that recall or a higher one; it is averaged over the 101 recalls 0,
    0.01 ... 1 (`AP`), over thresholds 0.50, 0.55 ... 0.95 and over the classes that have labelled boxes. By area,
    labelled boxes outside the range are ignored, as are found boxes that match one of these, or nothing and are
    themselves outside. `recall` is the mean over the classes and thresholds of the recall of all boxes, COCO's AR100.

    It differs from Ultralytics' mAP, which interpolates precision linearly between the points of the curve, averages by
    trapezoids, and takes at most `max_det` boxes an image over all classes.

    Scores: `mAP50-95`, `mAP50`, `mAP75`, `recall`, `mAP50-95/small`, `/medium`, `/large`, and for each class
    `AP50-95/NAME` and `AP50/NAME`.

    Args:
        names: Class names by index.
        max_det: Most boxes of an image and class.

    Source: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and the reference implementation
        pycocotools, with which it agrees to rounding.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> ap = AveragePrecision(["disc"])
        >>> ap.update(Found("a", [[0, 0, 10, 9]], [0], [0.8]), Truth("a", [[0, 0, 10, 10]], [0], (16, 16)))
        >>> scores = ap.compute()
        >>> round(scores["mAP50"], 3), round(scores["mAP50-95"], 3)
        (1.0, 0.9)
    """

    def __init__(self, names: Sequence[str], *, max_det: int = 100) -> None:
        super().__init__(names)
        self.max_det = max_det
        self._parts: dict[tuple[str, int], _Class] = {}

    def prepare(self, pool: Pool) -> None:
        """Match the boxes at every threshold, for all areas and each range of them."""
        within = pool.rank < self.max_det
        pairs = pool.own_class_pairs
        pairs = pairs.where(within[pairs.found] & (pairs.iou >= IOUS[0]))
        near = np.zeros(len(pool.scores), bool)
        near[pairs.found] = True
        size = (pool.boxes[:, 2:] - pool.boxes[:, :2]).prod(1)
        truth_size = (pool.truth_boxes[:, 2:] - pool.truth_boxes[:, :2]).prod(1)
        group = pool.image * max(1, len(self.names)) + pool.classes
        for area, (low, high) in {"": _ALL, **AREAS}.items():
            outside = (truth_size < low) | (truth_size > high)
            inside = (size >= low) & (size <= high)
            match = greedy_match(pairs, len(size), len(outside), group, IOUS, outside)
            free = match < 0
            ignored = np.where(free, ~inside, outside[match] if len(outside) else False)
            for number in range(len(self.names)):
                own = within & (pool.classes == number)
                mine, rest = np.flatnonzero(own & near), np.flatnonzero(own & ~near & inside)
                self._parts[area, number] = _Class(
                    image=pool.image[mine],
                    hit=~free[:, mine] & ~ignored[:, mine],
                    miss=free[:, mine] & ~ignored[:, mine],
                    rest_image=pool.image[rest],
                    rest_before=np.searchsorted(rest, mine),
                    truth_image=pool.truth_image[(pool.truth_classes == number) & ~outside],
                )

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the scores; a class or area without labelled boxes is NaN, and left out of the means."""
        scores: dict[str, float] = {}
        per_class: dict[str, float] = {}
        for area in ("", *AREAS):
            results = [self._parts[area, number].score(weights) for number in range(len(self.names))]
            known = [result for result in results if result is not None]
            average = np.mean([r[0] for r in known], 0) if known else np.full(len(IOUS), np.nan)
            if area:
                scores[f"mAP50-95/{area}"] = float(average.mean())
                if not known:
                    self.reasons[f"mAP50-95/{area}"] = f"no labelled box is {area}"
                continue
            scores |= {"mAP50-95": float(average.mean()), "mAP50": float(average[0]), "mAP75": float(average[5])}
            scores["recall"] = float(np.mean([r[1] for r in known])) if known else np.nan
            if not known:
                self.reasons |= dict.fromkeys(scores, "no labelled boxes")
            for name, result in zip(self.names, results, strict=True):
                per_class[f"AP50-95/{name}"] = float("nan") if result is None else float(result[0].mean())
                per_class[f"AP50/{name}"] = float("nan") if result is None else float(result[0][0])
                if result is None:
                    self.reasons |= dict.fromkeys((f"AP50-95/{name}", f"AP50/{name}"), "no labelled box of this class")
        return {**scores, **per_class}

    def details(self) -> dict[str, Any]:
        """Return the precision-recall curve of every class at IoU 0.50, at COCO's 101 recalls."""
        self.compute()
        curves = {}
        assert self._pool is not None
        for number, name in enumerate(self.names):
            curve = self._parts["", number].curve(np.ones(len(self._pool), np.int64))
            if curve is None:
                continue
            recall, precision = curve[0][0], np.append(curve[1][0], 0.0)
            curves[name] = precision[np.searchsorted(recall, RECALLS)].tolist()
        return {"recall": RECALLS.tolist(), "precision": curves}
