"""Which share of small, middling and large findings is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pool

__all__ = ["BoxSize"]

_THIRDS = ("smallest", "middle", "largest")


class BoxSize(Measure):
    """Sensitivity at a threshold on the thirds of the labelled boxes by size, our own decision.

    Definition: a box's size is the root of its area in pixels. The bounds are the terciles of the sizes of all labelled
    boxes; a box on a bound belongs to the smaller ones, so that with many equal sizes the thirds differ. Hits are those
    of `Pool.matches`. COCO's fixed areas (below 32^2 and above 96^2 pixels, in `average_precision`) are made for
    photographs; findings in an MRI often all lie in one of them.

    Scores: `found/smallest`, `found/middle` and `found/largest`, each in [0, 1].

    Args:
        names: Class names by index.
        threshold: Least score of a box that counts.
        hit: "iou" or "centre", see `Pool.matches`.
        iou: Least IoU of a hit.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> there = [[0, 0, 2, 2], [10, 0, 14, 4], [20, 0, 30, 10]]
        >>> sizes = BoxSize(["disc"])
        >>> sizes.update(Found("a", there[1:], [0, 0], [0.9, 0.9]), Truth("a", there, [0, 0, 0], (40, 40)))
        >>> sizes.compute()
        {'found/smallest': 0.0, 'found/middle': 1.0, 'found/largest': 1.0}
    """

    scales: ClassVar[Mapping[str, Scale]] = {"found": "share"}

    def __init__(self, names: Sequence[str], *, threshold: float = 0.25, hit: str = "iou", iou: float = 0.5) -> None:
        super().__init__(names)
        self.threshold, self.hit, self.iou = threshold, hit, iou
        self._counts = np.zeros((2, len(_THIRDS), 0), np.int64)
        self._bounds: list[float] = []

    def prepare(self, pool: Pool) -> None:
        """Count found and labelled boxes (2, thirds, images)."""
        self._counts = np.zeros((2, len(_THIRDS), len(pool)), np.int64)
        size = np.sqrt((pool.truth_boxes[:, 2:] - pool.truth_boxes[:, :2]).prod(1))
        self._bounds = np.quantile(size, [0, 1 / 3, 2 / 3, 1]).tolist() if len(size) else []
        third = np.searchsorted(self._bounds[1:3], size, side="left") if len(size) else np.zeros(0, np.int64)
        match, _ = pool.matches(self.hit, self.iou)
        found = np.unique(match[(match >= 0) & (pool.scores >= self.threshold)])
        np.add.at(self._counts[0], (third[found], pool.truth_image[found]), 1)
        np.add.at(self._counts[1], (third, pool.truth_image), 1)

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the shares."""
        scores = {}
        for name, found, there in zip(_THIRDS, *(self._counts @ weights), strict=True):
            scores[f"found/{name}"] = float(found / there) if there else float("nan")
            if not there:
                self.reasons[f"found/{name}"] = "no labelled boxes of this size"
        return scores

    def details(self) -> dict[str, Any]:
        """Return the bounds in pixels, and of each third how many boxes are labelled and found."""
        self.compute()
        found, there = self._counts.sum(2).tolist()
        return {
            "bounds": self._bounds,
            "thirds": {n: {"boxes": t, "found": f} for n, f, t in zip(_THIRDS, found, there, strict=True)},
        }
