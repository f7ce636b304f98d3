"""Confidences made into probabilities: temperature scaling and isotonic regression, fitted on validation images.

Both are small functions of a confidence whose numbers can be kept as JSON, for example in an export's sidecar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import expit, logit

from meddet_yolo.evaluate.detections import Found
from meddet_yolo.evaluate.pool import Pool

__all__ = ["Isotonic", "Temperature", "from_dict", "hits_of", "recalibrated"]

_LEAST = 1e-7  # of a confidence and its complement, where a logarithm is taken
_HOTTEST = 100.0


@dataclass(frozen=True)
class Temperature:
    """Divide the logit of a confidence by a temperature; the order of boxes stays.

    Attributes:
        temperature: Above 1 for an over-confident detector.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, for the sigmoid of a detector.

    Examples:
        >>> Temperature(1.0)([0.2, 0.9]).round(3).tolist()
        [0.2, 0.9]
    """

    temperature: float

    @classmethod
    def fit(cls, scores: ArrayLike, hits: ArrayLike) -> Temperature:
        """Return the temperature of the greatest likelihood, between 0.01 and 100.

        Args:
            scores: (N,) confidences in [0, 1].
            hits: (N,) whether each box is a hit.

        Raises:
            ValueError: There is no box.
        """
        confidence, hit = _checked(scores, hits)
        logits = logit(np.clip(confidence, _LEAST, 1 - _LEAST))

        def loss(log_temperature: float) -> float:
            z = logits * np.exp(-log_temperature)
            return float(np.mean(np.logaddexp(0, z) - hit * z))

        found = minimize_scalar(
            loss, bounds=(-np.log(_HOTTEST), np.log(_HOTTEST)), method="bounded", options={"xatol": 1e-8}
        )
        return cls(float(np.exp(found.x)))

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities (N,) of confidences (N,)."""
        confidence = np.clip(np.asarray(scores, np.float64), _LEAST, 1 - _LEAST)
        return np.asarray(expit(logit(confidence) / self.temperature))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"kind": "temperature", "temperature": self.temperature}


@dataclass(frozen=True)
class Isotonic:
    """A rising function of the confidence, linear between its knots; boxes may come to be equal.

    Attributes:
        scores: Confidences of the knots, rising.
        probabilities: Their probabilities, rising.

    Source: B. Zadrozny and C. Elkan, "Transforming classifier scores into accurate multiclass probability estimates",
        KDD 2002.

    Examples:
        >>> Isotonic.fit([0.1, 0.2, 0.8, 0.9], [0, 1, 0, 1])([0.15, 0.9]).round(6).tolist()
        [0.25, 1.0]
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def fit(cls, scores: ArrayLike, hits: ArrayLike) -> Isotonic:
        """Return the rising function of the least squared error.

        Args:
            scores: (N,) confidences in [0, 1].
            hits: (N,) whether each box is a hit.

        Raises:
            ValueError: There is no box.
        """
        confidence, hit = _checked(scores, hits)
        knots, of, count = np.unique(confidence, return_inverse=True, return_counts=True)
        share = np.bincount(of.reshape(-1), hit) / count
        rising = np.clip(isotonic_regression(share, weights=count).x, 0.0, 1.0)
        ends = np.ones(len(knots), bool)  # of each level its two ends are all that it takes
        ends[1:-1] = (rising[1:-1] != rising[:-2]) | (rising[1:-1] != rising[2:])
        return cls(tuple(knots[ends].tolist()), tuple(rising[ends].tolist()))

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities (N,) of confidences (N,)."""
        return np.asarray(np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"kind": "isotonic", "scores": list(self.scores), "probabilities": list(self.probabilities)}


def from_dict(content: Mapping[str, Any]) -> Temperature | Isotonic:
    """Return what `to_dict` gave.

    Raises:
        ValueError: It is neither.

    Examples:
        >>> from_dict({"kind": "temperature", "temperature": 2.0})
        Temperature(temperature=2.0)
    """
    try:
        if content["kind"] == "temperature":
            return Temperature(float(content["temperature"]))
        if content["kind"] == "isotonic":
            return Isotonic(tuple(map(float, content["scores"])), tuple(map(float, content["probabilities"])))
    except (KeyError, TypeError):
        pass
    raise ValueError(f"{content!r} is no recalibration: expected what `to_dict` of Temperature or Isotonic gives")


def hits_of(pool: Pool, *, min_score: float = 0.0, iou: float = 0.5) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return confidence and hit of every found box, to fit on.

    Args:
        pool: Images of a validation set.
        min_score: Least confidence; the many boxes of nearly none would decide the fit.
        iou: Least IoU of a hit.
    """
    shown = pool.scores >= min_score
    return pool.scores[shown], pool.matches("iou", iou)[0][shown] >= 0


def recalibrated(found: Found, function: Temperature | Isotonic) -> Found:
    """Return detections whose scores are probabilities."""
    return Found(found.name, found.boxes, found.classes, function(found.scores))


def _checked(scores: ArrayLike, hits: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    confidence, hit = np.asarray(scores, np.float64), np.asarray(hits, np.float64)
    if confidence.shape != hit.shape or confidence.ndim != 1:
        raise ValueError(f"scores and hits must be (N,), got {confidence.shape} and {hit.shape}")
    if not len(confidence):
        raise ValueError("there are no boxes to fit a recalibration on")
    return confidence, hit
