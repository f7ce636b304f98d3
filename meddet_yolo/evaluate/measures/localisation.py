"""How exactly boxes lie, in pixels and, where the pixel spacing is known, in millimetres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pool

__all__ = ["Localisation"]


class Localisation(Measure):
    """Distance between found and labelled boxes, over the hits at a threshold.

    Definition: hits by `Pool.matches` among boxes at or above the threshold. The centre's error is the Euclidean
    distance of the two boxes' centres; an edge's is the mean absolute distance of the four edges. In millimetres,
    distances along x and y are multiplied with the spacing of columns and rows first; only images whose spacing is
    known count. All are means over hits. Our own choice of what to tell; what is not hit has no place and is left out,
    so read them beside the sensitivity.

    Scores: `centre_px`, `edge_px`, `IoU`, `centre_mm`, `edge_mm`.

    Args:
        names: Class names by index.
        threshold: Least score.
        iou: Least IoU of a hit.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> place = Localisation(["disc"])
        >>> truth = Truth("a", [[0, 0, 10, 10]], [0], (40, 40), spacing=(0.5, 2.0))
        >>> place.update(Found("a", [[1, 0, 11, 10]], [0], [0.9]), truth)
        >>> scores = place.compute()
        >>> scores["centre_px"], scores["centre_mm"], scores["edge_px"]
        (1.0, 2.0, 0.5)
    """

    headline = ("centre_px", "centre_mm")
    scales: ClassVar[Mapping[str, Scale]] = {
        **dict.fromkeys(("centre_px", "edge_px", "centre_mm", "edge_mm"), "positive"),
        "IoU": "share",
    }

    def __init__(self, names: Sequence[str], *, threshold: float = 0.25, iou: float = 0.5) -> None:
        super().__init__(names)
        self.threshold, self.iou = threshold, iou
        self._image = np.zeros(0, np.int64)
        self._known = np.zeros(0, bool)
        self._values: dict[str, NDArray[np.float64]] = {}

    def prepare(self, pool: Pool) -> None:
        """Measure every hit."""
        match, _ = pool.matches("iou", self.iou)
        hits = np.flatnonzero((match >= 0) & (pool.scores >= self.threshold))
        found, there = pool.boxes[hits], pool.truth_boxes[match[hits]]
        self._image = pool.image[hits]
        nowhere = (np.nan, np.nan)
        spacing = np.array([t.spacing or nowhere for t in pool.truth_list], float).reshape(-1, 2)
        scale = spacing[self._image][:, ::-1]  # along x, along y
        self._known = np.isfinite(scale).all(1)
        edges = found - there
        centres = (edges[:, :2] + edges[:, 2:]) / 2
        pairs = pool.own_class_pairs
        matched = match[pairs.found] == pairs.truth
        iou = np.zeros(len(match))
        iou[pairs.found[matched]] = pairs.iou[matched]
        self._values = {
            "centre_px": np.hypot(*centres.T),
            "edge_px": np.abs(edges).mean(1),
            "IoU": iou[hits],
            "centre_mm": np.hypot(*(centres * scale).T),
            "edge_mm": np.abs(edges * np.tile(scale, 2)).mean(1),
        }

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the means."""
        times = weights.take(self._image)
        scores = {}
        for name, values in self._values.items():
            own = self._known if name.endswith("_mm") else slice(None)
            total = times[own].sum()
            scores[name] = float(times[own] @ values[own] / total) if total else float("nan")
            if not total:
                spaced = len(times) > 0 and name.endswith("_mm")
                self.reasons[name] = "the pixel spacing is unknown" if spaced else "nothing is hit at this threshold"
        return scores
