"""What a detector does at one confidence threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pool

__all__ = ["OperatingPoint", "threshold_of"]


def threshold_of(threshold: float | Mapping[str, float], name: str) -> float:
    """Return a class's threshold: its own, or the one for all.

    Raises:
        ValueError: There is none, or it does not lie in [0, 1].

    Examples:
        >>> threshold_of(0.3, "disc"), threshold_of({"disc": 0.4}, "disc")
        (0.3, 0.4)
    """
    value = threshold.get(name) if isinstance(threshold, Mapping) else threshold
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"threshold={value!r} of class {name}: expected a number in [0, 1]")
    return float(value)


class OperatingPoint(Measure):
    """Sensitivity, precision, F1 and false alarms per image of the boxes at or above a threshold.

    Definition: hits and false alarms by `Pool.matches`. Sensitivity is hits / labelled boxes, precision is hits /
    (hits + false alarms), F1 their harmonic mean; false alarms are divided by all images, with findings or without.
    Precision is undefined where nothing is found. Scores without a class's name pool all classes.

    Scores: `sensitivity`, `precision`, `F1` and `fp_per_image`, and each with `/NAME` for the classes.

    Args:
        names: Class names by index.
        threshold: Least score, one for all classes or one for each by name; 0.25 is what `predict` shows.
        hit: "iou" or "centre", see `Pool.matches`.
        iou: Least IoU of a hit.

    Source: C. J. van Rijsbergen, "Information Retrieval", 2nd edition, 1979 (F measure).

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> point = OperatingPoint(["disc"], threshold=0.5)
        >>> boxes = [[0, 0, 10, 10], [20, 20, 30, 30]]
        >>> point.update(Found("a", boxes, [0, 0], [0.9, 0.6]), Truth("a", boxes[:1], [0], (40, 40)))
        >>> {k: round(v, 3) for k, v in point.compute().items() if "/" not in k}
        {'sensitivity': 1.0, 'precision': 0.5, 'F1': 0.667, 'fp_per_image': 1.0}
    """

    headline = ("sensitivity", "precision", "F1", "fp_per_image")
    scales: ClassVar[Mapping[str, Scale]] = {
        **dict.fromkeys(("sensitivity", "precision", "F1"), "share"),
        "fp_per_image": "positive",
    }

    def __init__(
        self,
        names: Sequence[str],
        *,
        threshold: float | Mapping[str, float] = 0.25,
        hit: str = "iou",
        iou: float = 0.5,
    ) -> None:
        super().__init__(names)
        self.thresholds = [threshold_of(threshold, name) for name in self.names]
        self.hit, self.iou = hit, iou
        self._counts = np.zeros((3, 0, 0), np.int64)

    def prepare(self, pool: Pool) -> None:
        """Count hits, false alarms and labelled boxes (3, classes, images)."""
        match, alarm = pool.matches(self.hit, self.iou)
        shown = pool.scores >= np.array(self.thresholds)[pool.classes]
        cells = (len(self.names), len(pool))
        self._counts = np.zeros((3, *cells), np.int64)
        for row, keep in enumerate((shown & (match >= 0), shown & alarm)):
            np.add.at(self._counts[row], (pool.classes[keep], pool.image[keep]), 1)
        np.add.at(self._counts[2], (pool.truth_classes, pool.truth_image), 1)

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the scores."""
        sums = self._counts @ weights
        images = float(weights.sum())
        scores: dict[str, float] = {}
        for name, (hits, alarms, there) in zip(
            ("", *(f"/{n}" for n in self.names)), (sums.sum(1), *sums.T), strict=True
        ):
            values = {
                "sensitivity": _share(hits, there),
                "precision": _share(hits, hits + alarms),
                "F1": _share(2 * hits, hits + alarms + there) if there else float("nan"),
                "fp_per_image": _share(alarms, images),
            }
            why = {"sensitivity": "no labelled boxes", "precision": "nothing found at this threshold"}
            why["F1"] = why["sensitivity"]
            for key, value in values.items():
                scores[f"{key}{name}"] = value
                if np.isnan(value):
                    self.reasons[f"{key}{name}"] = why.get(key, "no images")
        return scores

    def details(self) -> dict[str, Any]:
        """Return the thresholds and how many hits, false alarms and misses there are at them."""
        self.compute()
        hits, alarms, there = self._counts.sum(2).tolist()
        table = {
            name: {"threshold": t, "hits": h, "false_alarms": a, "missed": n - h}
            for name, t, h, a, n in zip(self.names, self.thresholds, hits, alarms, there, strict=True)
        }
        return {"hit": self.hit, "iou": self.iou if self.hit == "iou" else None, "classes": table}


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
