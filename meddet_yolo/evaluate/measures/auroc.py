"""Whether an image, or a patient, has a finding at all: area under the ROC curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.measures import Measure
from meddet_yolo.evaluate.pool import Pool

__all__ = ["AUROC"]


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Units in groups of equal score, the lowest first."""

    group: NDArray[np.int64]
    positive: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> _Ranking:
        """Rank units by score."""
        return cls(np.unique(scores, return_inverse=True)[1].reshape(-1), positive)

    def area(self, weights: NDArray[Any]) -> float:
        """Return the area under the curve; NaN where all units are alike."""
        count = int(self.group.max(initial=-1)) + 1
        positive = np.bincount(self.group, weights * self.positive, count)
        negative = np.bincount(self.group, weights * ~self.positive, count)
        pairs = positive.sum() * negative.sum()
        if pairs == 0:
            return float("nan")
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / pairs)


class AUROC(Measure):
    """Area under the ROC curve per image and per patient: how well scores tell those with a finding from those without.

    Definition: an image is positive for a class if it has a labelled box of it; its score is the highest of the boxes
    of that class found in it, 0 without any. A patient is positive if one of his images is; his score is the highest of
    theirs. The area is the share of pairs of a positive and a negative in which the positive scores higher, ties
    counting half. Where boxes lie is of no account. Scores without a class's name ask for any finding.

    Where every image (or patient) has the finding, or none has, the area is undefined; so is that of patients where
    they are unknown. A patient counts as often as his most counted image.

    Scores: `AUROC/image` and `AUROC/patient`, and each with `/NAME` for the classes.

    Args:
        names: Class names by index.
        per_class: Whether to give the areas of each class, too.

    Source: J. A. Hanley and B. J. McNeil, "The meaning and use of the area under a receiver operating characteristic
        (ROC) curve", Radiology 143(1), 1982.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Found, Truth
        >>> auroc = AUROC(["disc"])
        >>> box = [[0, 0, 4, 4]]
        >>> auroc.update(Found("a", box, [0], [0.9]), Truth("a", box, [0], (8, 8), "p1"))
        >>> auroc.update(Found("b", box, [0], [0.2]), Truth("b", [], [], (8, 8), "p2"))
        >>> auroc.compute()["AUROC/patient"]
        1.0
    """

    headline = ("AUROC/image", "AUROC/patient")
    scales: ClassVar[Mapping[str, Scale]] = {"AUROC": "share"}

    def __init__(self, names: Sequence[str], *, per_class: bool = True) -> None:
        super().__init__(names)
        self.per_class = per_class
        self._images: list[tuple[str, _Ranking]] = []
        self._patients: list[tuple[str, _Ranking]] = []
        self._owner: NDArray[np.int64] | None = None

    def prepare(self, pool: Pool) -> None:
        """Rank images and patients, for any class and for each."""
        shape = (len(self.names), len(pool))
        best = np.zeros(shape)
        np.maximum.at(best, (pool.classes, pool.image), pool.scores)
        there = np.zeros(shape, bool)
        there[pool.truth_classes, pool.truth_image] = True
        best, there = np.vstack([best.max(0), best]), np.vstack([there.any(0), there])
        names = ("", *(f"/{name}" for name in self.names))
        if not self.per_class:
            names, best, there = names[:1], best[:1], there[:1]
        self._images = [(n, _Ranking.of(b, t)) for n, b, t in zip(names, best, there, strict=True)]
        patients = [image.patient for image in pool.truth_list]
        self._owner, self._patients = None, []
        if None in patients:
            return
        self._owner = np.unique(np.array(patients, np.str_), return_inverse=True)[1].reshape(-1)
        count = int(self._owner.max(initial=-1)) + 1
        for name, b, t in zip(names, best, there, strict=True):
            score, positive = np.zeros(count), np.zeros(count, bool)
            np.maximum.at(score, self._owner, b)
            np.logical_or.at(positive, self._owner, t)
            self._patients.append((name, _Ranking.of(score, positive)))

    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the areas."""
        scores = {f"AUROC/image{name}": ranking.area(weights) for name, ranking in self._images}
        self._explain(scores, self._images, "image")
        if self._owner is None:
            unknown = {f"AUROC/patient{name}": float("nan") for name, _ in self._images}
            self.reasons |= dict.fromkeys(unknown, "patients are unknown")
            return scores | unknown
        times = np.zeros(int(self._owner.max(initial=-1)) + 1, weights.dtype)
        np.maximum.at(times, self._owner, weights)
        per_patient = {f"AUROC/patient{name}": ranking.area(times) for name, ranking in self._patients}
        self._explain(per_patient, self._patients, "patient")
        return scores | per_patient

    def _explain(self, scores: dict[str, float], rankings: list[tuple[str, _Ranking]], unit: str) -> None:
        """Note why areas are undefined."""
        for (key, value), (name, ranking) in zip(scores.items(), rankings, strict=True):
            if np.isnan(value):
                what = f"a box of class {name[1:]}" if name else "a box"
                who = f"every {unit} has" if ranking.positive.all() else f"no {unit} has"
                self.reasons[key] = f"{who} {what}, so there is nothing to tell apart"
