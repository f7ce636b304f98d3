"""Whether a confidence is a probability: detection expected calibration error and the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pool

__all__ = ["Calibration", "bin_of"]

_ENOUGH = 10  # boxes a bin; intervals of 8 held the truth in 84 % of simulated sets, of 12 in 94 %


def bin_of(values: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Return the bin of values in [0, 1] among `bins` equal ones, each without its upper edge but the last.

    Examples:
        >>> bin_of(np.array([0.0, 0.19, 0.2, 1.0]), 5).tolist()
        [0, 0, 1, 4]
    """
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1).astype(np.int64)


class Calibration(Measure):
    """Detection expected calibration error (D-ECE) over confidence, over confidence and position, and over size.

    Definition: boxes of at least `min_score` are sorted into bins; D-ECE is the mean over boxes of the difference
    between their bin's precision and its mean confidence, as absolute values. `D-ECE` has bins of confidence alone;
    `D-ECE/position` of confidence and the centre's x and y; `D-ECE/size` of confidence, width and height, all relative
    to the image. A hit is a hit by `Pool.matches`.

    D-ECE of finer bins is greater by chance alone: compare a number only with the same number of another model on the
    same images. With fewer than 10 boxes a bin on average, chance makes much of it, and it has no interval.

    Scores: `D-ECE`, `D-ECE/position`, `D-ECE/size`, and `confidence_gap`: mean confidence minus precision, above 0 for
    an over-confident detector.

    Args:
        names: Class names by index.
        min_score: Least score of a box that is judged. The many boxes of nearly no confidence would hide the others.
        bins: Bins of the confidence where it is alone.
        fine_bins: Bins of each of the three where there are three.
        iou: Least IoU of a hit.

    Source: F. Küppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR Workshops 2020.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> calibration = Calibration(["disc"])
        >>> boxes = [[0, 0, 10, 10], [20, 20, 30, 30]]
        >>> calibration.update(Found("a", boxes, [0, 0], [0.75, 0.75]), Truth("a", boxes[:1], [0], (40, 40)))
        >>> calibration.compute()["D-ECE"], calibration.compute()["confidence_gap"]
        (0.25, 0.25)
    """

    headline = ("D-ECE",)
    scales: ClassVar[Mapping[str, Scale]] = {"D-ECE": "distance"}

    def __init__(
        self,
        names: Sequence[str],
        *,
        min_score: float = 0.25,
        bins: int = 10,
        fine_bins: int = 5,
        iou: float = 0.5,
    ) -> None:
        super().__init__(names)
        self.min_score, self.bins, self.fine_bins, self.iou = min_score, bins, fine_bins, iou
        self._image = np.zeros(0, np.int64)
        self._hit = np.zeros(0, bool)
        self._scores = np.zeros(0)
        self._classes = np.zeros(0, np.int64)
        self._cells: dict[str, NDArray[np.int64]] = {}

    def prepare(self, pool: Pool) -> None:
        """Sort boxes into bins."""
        match, _ = pool.matches("iou", self.iou)
        shown = pool.scores >= self.min_score
        self._image, self._scores, self._hit = pool.image[shown], pool.scores[shown], match[shown] >= 0
        self._classes = pool.classes[shown]
        sizes = np.array([t.size for t in pool.truth_list], float).reshape(-1, 2)[self._image][:, ::-1]
        boxes = pool.boxes[shown]
        centre = np.clip((boxes[:, :2] + boxes[:, 2:]) / 2 / sizes, 0, 1)
        side = np.clip((boxes[:, 2:] - boxes[:, :2]) / sizes, 0, 1)
        self._cells = {"D-ECE": bin_of(self._scores, self.bins)}
        fine = bin_of(self._scores, self.fine_bins) * self.fine_bins**2
        for name, pair in (("D-ECE/position", centre), ("D-ECE/size", side)):
            self._cells[name] = fine + bin_of(pair, self.fine_bins) @ np.array([self.fine_bins, 1])

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the errors."""
        times = weights.take(self._image).astype(float)
        total = times.sum()
        if not total:
            names = (*self._cells, "confidence_gap") if self._cells else ()
            self.reasons |= dict.fromkeys(names, f"nothing found with a confidence of {self.min_score:g} or more")
            return dict.fromkeys(names, float("nan"))
        for name, cell in self._cells.items():
            boxes = total / np.count_nonzero(np.bincount(cell, times))
            if boxes < _ENOUGH:
                self.reasons[name] = f"{boxes:.1f} boxes a bin, of which chance makes much of it: {_ENOUGH} are needed"
        gap = times * (self._scores - self._hit)  # summed over a bin: its boxes x (confidence - precision)
        scores = {name: float(np.abs(np.bincount(cell, gap)).sum() / total) for name, cell in self._cells.items()}
        return {**scores, "confidence_gap": float(gap.sum() / total)}

    def details(self) -> dict[str, Any]:
        """Return the reliability diagram, for all classes and for each: boxes, mean confidence, precision of a bin."""
        self.compute()
        table = {"all": self._diagram(np.ones(len(self._hit), bool))}
        table |= {name: self._diagram(self._classes == i) for i, name in enumerate(self.names)}
        return {"min_score": self.min_score, "edges": np.linspace(0, 1, self.bins + 1).tolist(), "classes": table}

    def _diagram(self, own: NDArray[np.bool_]) -> dict[str, list[Any]]:
        cell = self._cells["D-ECE"][own]
        boxes = np.bincount(cell, minlength=self.bins)
        sums = [np.bincount(cell, v[own], self.bins) for v in (self._scores, self._hit.astype(float))]
        means = [[s / n if n else None for s, n in zip(v.tolist(), boxes.tolist(), strict=True)] for v in sums]
        return {"boxes": boxes.tolist(), "confidence": means[0], "precision": means[1]}
