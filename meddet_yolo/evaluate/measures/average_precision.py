"""COCO's average precision and recall, exact, and quick to compute again for every resample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pool, greedy_match
from meddet_yolo.evaluate.ranked import RECALLS, Ranking, RankingList

__all__ = ["AREAS", "IOUS", "AveragePrecision"]

IOUS = np.linspace(0.5, 0.95, 10)
AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's bounds of a box's area, in pixels of the image, both included."""

_ALL = (0.0, 1e10)


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
        areas: Whether to give scores by area too, which takes twice as long.

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

    headline = ("mAP50-95", "mAP50")
    scales: ClassVar[Mapping[str, Scale]] = dict.fromkeys(
        ("mAP50-95", "mAP50", "mAP75", "recall", "AP50-95", "AP50"), "share"
    )

    def __init__(self, names: Sequence[str], *, max_det: int = 100, areas: bool = True) -> None:
        super().__init__(names)
        self.max_det = max_det
        self.areas = AREAS if areas else {}
        self._ranking = Ranking([])

    def prepare(self, pool: Pool) -> None:
        """Match the boxes at every threshold, for all areas and each range of them."""
        within = pool.rank < self.max_det
        pairs = pool.own_class_pairs
        pairs = pairs.where(within[pairs.found] & (pairs.iou >= IOUS[0]))
        size = (pool.boxes[:, 2:] - pool.boxes[:, :2]).prod(1)
        truth_size = (pool.truth_boxes[:, 2:] - pool.truth_boxes[:, :2]).prod(1)
        group = pool.image * max(1, len(self.names)) + pool.classes
        lists = []
        for low, high in (_ALL, *self.areas.values()):
            outside = (truth_size < low) | (truth_size > high)
            inside = within & (size >= low) & (size <= high)
            match = greedy_match(pairs, len(size), len(outside), group, IOUS, outside)
            for number in range(len(self.names)):
                own = pool.classes == number
                truth_image = pool.truth_image[(pool.truth_classes == number) & ~outside]
                base = np.flatnonzero(own & inside)
                for level in match:
                    mine = np.flatnonzero(own & (level >= 0))
                    hit = ~outside[level[mine]]
                    counts = hit | inside[mine]  # others are ignored, as what they match
                    place = mine[counts]
                    lists.append(
                        RankingList(
                            base, pool.image[base], place, pool.image[place], hit[counts], inside[place], truth_image
                        )
                    )
        self._ranking = Ranking(lists)

    def _curves(self, weights: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return precision (areas, classes, thresholds, recalls) and recall (areas, classes, thresholds)."""
        precision, recall = self._ranking.curves(weights)
        shape = (1 + len(self.areas), len(self.names), len(IOUS))
        return precision.reshape(*shape, len(RECALLS)), recall.reshape(shape)

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the scores; a class or area without labelled boxes is NaN, and left out of the means."""
        precision, recall = self._curves(weights)
        average = precision.mean(-1)
        known = ~np.isnan(recall[..., 0])
        means = [a[k].mean(0) if k.any() else np.full(len(IOUS), np.nan) for a, k in zip(average, known, strict=True)]
        scores = {"mAP50-95": float(means[0].mean()), "mAP50": float(means[0][0]), "mAP75": float(means[0][5])}
        scores["recall"] = float(recall[0][known[0]].mean()) if known[0].any() else float("nan")
        if not known[0].any():
            self.reasons |= dict.fromkeys(scores, "no labelled boxes")
        for area, mean, some in zip(self.areas, means[1:], known[1:], strict=True):
            scores[f"mAP50-95/{area}"] = float(mean.mean())
            if not some.any():
                self.reasons[f"mAP50-95/{area}"] = f"no labelled box is {area}"
        for name, own, some in zip(self.names, average[0], known[0], strict=True):
            both = {f"AP50-95/{name}": float(own.mean()), f"AP50/{name}": float(own[0])}
            if not some:
                self.reasons |= dict.fromkeys(both, "no labelled box of this class")
            scores |= both
        return scores

    def details(self) -> dict[str, Any]:
        """Return the precision-recall curve of every class at IoU 0.50, at COCO's 101 recalls."""
        self.compute()
        precision, recall = self._curves(np.ones(len(self._truth), np.int64))
        curves = {
            name: own[0].tolist()
            for name, own, reached in zip(self.names, precision[0], recall[0], strict=True)
            if not np.isnan(reached[0])
        }
        return {"recall": RECALLS.tolist(), "precision": curves}
