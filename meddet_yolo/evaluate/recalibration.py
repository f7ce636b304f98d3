"""Confidences made into probabilities: temperature scaling and isotonic regression, fitted on validation images.

What is fitted is a small function of a confidence; `meddet_yolo.trt.recalibration` keeps it in an export's sidecar.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from ultralytics.utils import LOGGER

from meddet_yolo.evaluate.detections import Found
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.trt.formats import format_of
from meddet_yolo.trt.recalibration import Isotonic, Recalibration, Temperature, stored

__all__ = ["FITS", "announced", "fit_isotonic", "fit_temperature", "hits_of", "probabilities", "recalibrated"]

_HOTTEST = 100.0


def fit_temperature(scores: ArrayLike, hits: ArrayLike) -> Temperature:
    """Return the temperature of the greatest likelihood, between 0.01 and 100.

    Args:
        scores: (N,) confidences in [0, 1].
        hits: (N,) whether each box is a hit.

    Raises:
        ValueError: There is no box.
    """
    from scipy.optimize import minimize_scalar  # takes time, and a training does not need it

    confidence, hit = _checked(scores, hits)
    logits = Temperature.logits(confidence)

    def loss(log_temperature: float) -> float:
        z = logits * np.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0, z) - hit * z))

    found = minimize_scalar(
        loss, bounds=(-np.log(_HOTTEST), np.log(_HOTTEST)), method="bounded", options={"xatol": 1e-8}
    )
    return Temperature(float(np.exp(found.x)))


def fit_isotonic(scores: ArrayLike, hits: ArrayLike) -> Isotonic:
    """Return the rising function of the least squared error.

    Args:
        scores: (N,) confidences in [0, 1].
        hits: (N,) whether each box is a hit.

    Raises:
        ValueError: There is no box.

    Examples:
        >>> fit_isotonic([0.1, 0.2, 0.8, 0.9], [0, 1, 0, 1])([0.15, 0.9]).round(6).tolist()
        [0.25, 1.0]
    """
    from scipy.optimize import isotonic_regression  # as above

    confidence, hit = _checked(scores, hits)
    knots, of, count = np.unique(confidence, return_inverse=True, return_counts=True)
    share = np.bincount(of.reshape(-1), hit) / count
    rising = np.clip(isotonic_regression(share, weights=count).x, 0.0, 1.0)
    ends = np.ones(len(knots), bool)  # of each level its two ends are all that it takes
    ends[1:-1] = (rising[1:-1] != rising[:-2]) | (rising[1:-1] != rising[2:])
    return Isotonic(tuple(knots[ends].tolist()), tuple(rising[ends].tolist()))


FITS: dict[str, Callable[[ArrayLike, ArrayLike], Recalibration]] = {
    "temperature": fit_temperature,
    "isotonic": fit_isotonic,
}


def hits_of(pool: Pool, *, min_score: float = 0.0, iou: float = 0.5) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return confidence and hit of every found box, to fit on.

    Args:
        pool: Images of a validation set.
        min_score: Least confidence; the many boxes of nearly none would decide the fit.
        iou: Least IoU of a hit.
    """
    shown = pool.scores >= min_score
    return pool.scores[shown], pool.matches("iou", iou)[0][shown] >= 0


def recalibrated(found: Found, function: Recalibration) -> Found:
    """Return detections whose scores are probabilities."""
    return Found(found.name, found.boxes, found.classes, function(found.scores))


def _checked(scores: ArrayLike, hits: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    confidence, hit = np.asarray(scores, np.float64), np.asarray(hits, np.float64)
    if confidence.shape != hit.shape or confidence.ndim != 1:
        raise ValueError(f"scores and hits must be (N,), got {confidence.shape} and {hit.shape}")
    if not len(confidence):
        raise ValueError("there are no boxes to fit a recalibration on")
    return confidence, hit


def announced(model: Any) -> Recalibration | None:
    """Return the recalibration in an exported model's sidecar and log it; None for other models.

    Args:
        model: The model's file, or what else Ultralytics' `model` may be.
    """
    path = Path(model) if isinstance(model, str | Path) else None
    function = stored(path) if path is not None and path.exists() and format_of(path) is not None else None
    if function is not None and path is not None:
        kind = function.to_dict()["kind"]
        LOGGER.info(f"{path.name}: confidences are made probabilities ({kind}, from its sidecar)")
    return function


def probabilities(confidence: torch.Tensor, function: Recalibration) -> torch.Tensor:
    """Return the probabilities (N,) of confidences (N,) in their type and on their device.

    Examples:
        >>> probabilities(torch.tensor([0.5, 0.9]), Temperature(1.0)).tolist()[0]
        0.5
    """
    return torch.as_tensor(function(confidence.cpu().numpy()), dtype=confidence.dtype, device=confidence.device)
