"""How well the number of boxes in an image is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pool

__all__ = ["Counts"]


class Counts(Measure):
    """Difference between the numbers of boxes found and labelled in an image, wherever they lie; our own choice.

    Scores: `count_error`, the mean absolute difference per image, classes apart; `count_bias`, the mean difference,
    above 0 where too much is found.

    Args:
        names: Class names by index.
        threshold: Least score of a box that counts.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> counts = Counts(["disc"])
        >>> counts.update(Found("a", [[0, 0, 4, 4]], [0], [0.9]), Truth("a", [], [], (8, 8)))
        >>> counts.compute()
        {'count_error': 1.0, 'count_bias': 1.0}
    """

    headline = ("count_error",)
    scales: ClassVar[Mapping[str, Scale]] = {"count_error": "positive"}

    def __init__(self, names: Sequence[str], *, threshold: float = 0.25) -> None:
        super().__init__(names)
        self.threshold = threshold
        self._difference = np.zeros((0, 0), np.int64)

    def prepare(self, pool: Pool) -> None:
        """Count boxes by class and image."""
        self._difference = np.zeros((len(self.names), len(pool)), np.int64)
        shown = pool.scores >= self.threshold
        np.add.at(self._difference, (pool.classes[shown], pool.image[shown]), 1)
        np.subtract.at(self._difference, (pool.truth_classes, pool.truth_image), 1)

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the means over images."""
        images = weights.sum()
        if not images:
            undefined = dict.fromkeys(("count_error", "count_bias"), float("nan"))
            self.reasons |= dict.fromkeys(undefined, "no images")
            return undefined
        error, bias = np.abs(self._difference).sum(0) @ weights, self._difference.sum(0) @ weights
        return {"count_error": float(error / images), "count_bias": float(bias / images)}
