"""Measures of a detector, each in a file of its own, by name in `MEASURES`.

A new one is a subclass of `Measure` in a new file and a line in the table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.pool import Pool

__all__ = ["MEASURES", "Measure", "measure", "measure_class"]

MEASURES: dict[str, str] = {
    "average_precision": "meddet_yolo.evaluate.measures.average_precision:AveragePrecision",
    "froc": "meddet_yolo.evaluate.measures.froc:FROC",
    "operating_point": "meddet_yolo.evaluate.measures.operating_point:OperatingPoint",
    "box_size": "meddet_yolo.evaluate.measures.box_size:BoxSize",
    "auroc": "meddet_yolo.evaluate.measures.auroc:AUROC",
    "calibration": "meddet_yolo.evaluate.measures.calibration:Calibration",
    "error_types": "meddet_yolo.evaluate.measures.error_types:ErrorTypes",
    "localisation": "meddet_yolo.evaluate.measures.localisation:Localisation",
    "counts": "meddet_yolo.evaluate.measures.counts:Counts",
}
"""Module and class of each measure."""


class Measure(ABC):
    """Something that is computed from what was found in images and what is there.

    Boxes are matched once, by `prepare`; `score` only sums up, so that it can be called for every resample of a
    bootstrap.

    Args:
        names: Class names by index.

    Attributes:
        headline: Those of its scores that sum it up: models are compared by them, and subgroups.
        scales: What its scores are, for their intervals, by their names up to the first `/` or `@`; see
            `intervals.interval`. Others are any numbers.
        reasons: Why scores are undefined (NaN), or have no interval, by their names; filled by `compute` without
            weights.
    """

    headline: ClassVar[tuple[str, ...]] = ()
    scales: ClassVar[Mapping[str, Scale]] = {}

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.reasons: dict[str, str] = {}
        self._found: list[Found] = []
        self._truth: list[Truth] = []
        self._pool: Pool | None = None
        self._prepared = False

    def update(self, found: Found, truth: Truth) -> None:
        """Take in one image."""
        self._found.append(found)
        self._truth.append(truth)
        self._pool, self._prepared = None, False

    def adopt(self, pool: Pool) -> None:
        """Take in all images of a pool, which several measures may share, in place of those so far."""
        self._found, self._truth = list(pool.found_list), list(pool.truth_list)
        self._pool, self._prepared = pool, False

    def compute(self, weights: NDArray[Any] | Sequence[int] | None = None) -> dict[str, float]:
        """Return the scores by name, NaN where one is undefined.

        Args:
            weights: (n_images,) how often each image counts, whole numbers of at least 0; once each by default.

        Raises:
            ValueError: Weights that do not fit the images.
        """
        if self._pool is None:
            self._pool = Pool(self._found, self._truth)
        if not self._prepared:
            self.prepare(self._pool)
            self._prepared = True
        if weights is None:
            self.reasons = {}
            return self.score(np.ones(len(self._pool), np.int64))
        counts = np.asarray(weights)
        if counts.shape != (len(self._pool),) or (counts < 0).any():
            raise ValueError(f"weights must be {len(self._pool)} numbers of at least 0, got shape {counts.shape}")
        return self.score(counts)

    @abstractmethod
    def prepare(self, pool: Pool) -> None:
        """Match boxes and lay out what `score` sums up."""

    @abstractmethod
    def score(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return the scores, always of the same names, for how often each image counts."""

    def details(self) -> dict[str, Any]:
        """Return curves and tables behind the scores, as plain values for JSON; none by default."""
        return {}


def measure_class(name: str) -> type[Measure]:
    """Return a measure's class.

    Raises:
        ValueError: There is no such measure.
    """
    if name not in MEASURES:
        raise ValueError(f"measures={name} is no measure: expected some of {', '.join(MEASURES)}")
    module, kind = MEASURES[name].split(":")
    found: type[Measure] = getattr(import_module(module), kind)
    return found


def measure(name: str, names: Sequence[str], **options: Any) -> Measure:
    """Return a measure of the table.

    Args:
        name: Its name in `MEASURES`.
        names: Class names by index.
        **options: The measure's own.

    Raises:
        ValueError: There is no such measure.

    Examples:
        >>> type(measure("average_precision", ["disc"])).__name__
        'AveragePrecision'
    """
    return measure_class(name)(names, **options)
