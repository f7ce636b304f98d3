"""Free-response ROC: how much is found at how many false alarms per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pool

__all__ = ["FROC", "RATES"]

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which LUNA16 reads the sensitivity."""

_ENOUGH = 2  # so many times the false alarms that are needed are summed up first; seldom are more needed


@dataclass(frozen=True, eq=False)
class _Curve:
    """Hits and false alarms of one class, best score first, and the images of its labelled boxes."""

    hit_scores: NDArray[np.float64]
    hit_image: NDArray[np.int64]
    alarm_scores: NDArray[np.float64]
    alarm_image: NDArray[np.int64]
    truth_image: NDArray[np.int64]

    def sensitivity(self, weights: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sensitivity (rates,) at each of the rates; NaN without labelled boxes."""
        positives = weights.take(self.truth_image).sum()
        if positives == 0:
            return np.full(len(RATES), np.nan)
        allowed = np.array(RATES) * weights.sum()
        enough = int(_ENOUGH * RATES[-1] * len(weights))
        alarms = np.cumsum(weights.take(self.alarm_image[:enough]))
        if len(alarms) < len(self.alarm_image) and alarms[-1] <= allowed[-1]:
            alarms = np.cumsum(weights.take(self.alarm_image))
        # The threshold lies above the first false alarm that is one too many, and so above all of that score.
        excess = np.searchsorted(alarms, allowed, side="right")
        limits = np.append(self.alarm_scores[: len(alarms)], -np.inf)[excess]
        hits = np.concatenate([[0], np.cumsum(weights.take(self.hit_image))])
        return np.asarray(hits[np.searchsorted(-self.hit_scores, -limits)] / positives)

    def points(self, images: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return thresholds falling, false alarms per image and sensitivity of boxes at or above each."""
        thresholds = np.unique(np.concatenate([self.hit_scores, self.alarm_scores]))[::-1]
        alarms = np.searchsorted(-self.alarm_scores, -thresholds, side="right") / images
        found = np.searchsorted(-self.hit_scores, -thresholds, side="right")
        return thresholds, alarms, found / max(1, len(self.truth_image))


class FROC(Measure):
    """Sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image, and their mean.

    Definition: found boxes are hits or false alarms by `Pool.matches`. The sensitivity at a rate is the share of
    labelled boxes that are hit at the lowest threshold whose false alarms, divided by all images, do not exceed the
    rate; it is attained by that threshold, not interpolated between two (LUNA16's and CAMELYON's scripts interpolate).
    `FROC` is the mean over the seven rates, as in LUNA16. Scores without a class's name pool all classes, under one
    threshold.

    Scores: `sensitivity@0.125fp` to `sensitivity@8fp` and `FROC`, and each with `/NAME` for the classes.

    Args:
        names: Class names by index.
        hit: "iou" or "centre", see `Pool.matches`; LUNA16 and CAMELYON judge by the centre.
        iou: Least IoU of a hit.
        per_class: Whether to give the scores of each class, too.

    Source: A. A. A. Setio et al., "Validation, comparison, and combination of algorithms for automatic detection of
        pulmonary nodules in computed tomography images: the LUNA16 challenge", Medical Image Analysis 42, 2017;
        P. C. Bunch et al., "A free response approach to the measurement and characterization of radiographic-observer
        performance", Proc. SPIE 127, 1977.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> froc = FROC(["disc"])
        >>> boxes = [[0, 0, 10, 10], [20, 20, 30, 30]]
        >>> froc.update(Found("a", boxes, [0, 0], [0.4, 0.6]), Truth("a", boxes[:1], [0], (40, 40)))
        >>> froc.compute()["sensitivity@0.5fp"], froc.compute()["sensitivity@1fp"]
        (0.0, 1.0)
    """

    headline = ("FROC", "sensitivity@1fp")
    scales: ClassVar[Mapping[str, Scale]] = {"FROC": "share", "sensitivity": "share"}

    def __init__(self, names: Sequence[str], *, hit: str = "iou", iou: float = 0.5, per_class: bool = True) -> None:
        super().__init__(names)
        self.hit, self.iou, self.per_class = hit, iou, per_class
        self._curves: list[tuple[str, _Curve]] = []

    def prepare(self, pool: Pool) -> None:
        """Sort hits and false alarms, for all classes and for each."""
        match, alarm = pool.matches(self.hit, self.iou)
        everything = np.ones(len(pool.classes), bool), np.ones(len(pool.truth_classes), bool)
        masks = [("", everything)]
        if not self.per_class:
            pass
        elif len(self.names) > 1:
            masks += [(f"/{n}", (pool.classes == i, pool.truth_classes == i)) for i, n in enumerate(self.names)]
        else:
            masks += [(f"/{self.names[0]}", everything)]
        self._curves = []
        for name, (own, labelled) in masks:
            hit, miss = own & (match >= 0), own & alarm
            curve = _Curve(
                pool.scores[hit], pool.image[hit], pool.scores[miss], pool.image[miss], pool.truth_image[labelled]
            )
            self._curves.append((name, curve))

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the sensitivities."""
        scores: dict[str, float] = {}
        for name, curve in self._curves:
            values = curve.sensitivity(weights)
            own = {f"FROC{name}": float(values.mean())}
            own |= {f"sensitivity@{r:g}fp{name}": float(v) for r, v in zip(RATES, values, strict=True)}
            if np.isnan(values[0]):
                self.reasons |= dict.fromkeys(own, "no labelled box of this class" if name else "no labelled boxes")
            scores |= own
        return scores

    def details(self) -> dict[str, Any]:
        """Return the curve of all classes and of each: threshold, false positives per image, sensitivity."""
        self.compute()
        keys = ("threshold", "fp_per_image", "sensitivity")
        images = len(self._truth)
        curves = {
            name.removeprefix("/") or "all": dict(
                zip(keys, (p.tolist() for p in thinned(curve.points(images))), strict=True)
            )
            for name, curve in self._curves
            if len(curve.truth_image)
        }
        return {"hit": self.hit, "iou": self.iou if self.hit == "iou" else None, "curves": curves}


def thinned(curve: Sequence[NDArray[np.float64]], most: int = 1000) -> list[NDArray[np.float64]]:
    """Return a curve of at most about `most` points: its ends, and of each step of its last axis the first point."""
    length = len(curve[0])
    if length <= most:
        return list(curve)
    steps = np.flatnonzero(np.diff(curve[-1], prepend=np.nan) != 0)
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))]
    keep = np.unique(np.concatenate([[0], steps, [length - 1]]))
    return [axis[keep] for axis in curve]
