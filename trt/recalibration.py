"""Confidences made into probabilities, and kept in the sidecar of an export for whoever reads it.

A detector's confidence says which box is surer, not how sure. `meddet evaluate recalibrate=temperature` fits a function
on validation images (`meddet_yolo.evaluate.recalibration`); with `store=true` it goes into the sidecar of the exported
model, and the runner then gives probabilities. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meddet_yolo.trt.engine_file import EngineFileError, read_sidecar, sidecar_path, update_sidecar

__all__ = ["Isotonic", "Recalibration", "Temperature", "from_dict", "store", "stored"]

_LEAST = 1e-7  # of a confidence and its complement, where a logarithm is taken
_KEY = "meddet_recalibration"


@dataclass(frozen=True)
class Temperature:
    """Divide the logit of a confidence by a temperature; the order of boxes stays.

    Attributes:
        temperature: Above 0; above 1 for an over-confident detector.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, for the sigmoid of a detector.

    Examples:
        >>> Temperature(1.0)([0.2, 0.9]).round(3).tolist()
        [0.2, 0.9]
    """

    temperature: float

    def __post_init__(self) -> None:
        """Refuse what is no temperature."""
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"a temperature must be a number above 0, got {self.temperature}")

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities (N,) of confidences (N,)."""
        return 1 / (1 + np.exp(-self.logits(scores) / self.temperature))

    def least(self, probability: float) -> float:
        """Return the least confidence of at least a probability, 0..1.

        Examples:
            >>> round(Temperature(2.0).least(0.6), 4), round(float(Temperature(2.0)([0.6923])[0]), 4)
            (0.6923, 0.6)
        """
        return float(Temperature(1 / self.temperature)([probability])[0]) if 0 < probability < 1 else float(probability)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"kind": "temperature", "temperature": self.temperature}

    @staticmethod
    def logits(scores: ArrayLike) -> NDArray[np.float64]:
        """Return the logits of confidences, finite for 0 and 1, too."""
        confidence = np.clip(np.asarray(scores, np.float64), _LEAST, 1 - _LEAST)
        return np.asarray(np.log(confidence) - np.log1p(-confidence))


@dataclass(frozen=True)
class Isotonic:
    """A rising function of the confidence, linear between its knots; boxes may come to be equal.

    Attributes:
        scores: Confidences of the knots, rising.
        probabilities: Their probabilities, rising, 0..1.

    Source: B. Zadrozny and C. Elkan, "Transforming classifier scores into accurate multiclass probability estimates",
        KDD 2002.

    Examples:
        >>> Isotonic((0.2, 0.6), (0.1, 0.9))([0.0, 0.4, 1.0]).round(6).tolist()
        [0.1, 0.5, 0.9]
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse knots that are none."""
        x, y = np.asarray(self.scores, np.float64), np.asarray(self.probabilities, np.float64)
        # Comparisons with NaN are false, so that NaN is refused, too.
        if not (
            len(x) == len(y) > 0 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all() and 0 <= y[0] <= y[-1] <= 1
        ):
            raise ValueError("knots must be as many rising confidences as rising probabilities in 0..1, at least one")

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities (N,) of confidences (N,)."""
        return np.asarray(np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities))

    def least(self, probability: float) -> float:
        """Return the least confidence of at least a probability: 0 where all have it, 1 where none has.

        Examples:
            >>> rising = Isotonic((0.2, 0.6), (0.1, 0.9))
            >>> rising.least(0.05), round(rising.least(0.5), 6), rising.least(0.95)
            (0.0, 0.4, 1.0)
        """
        after = int(np.searchsorted(self.probabilities, probability))
        if after == 0:
            return 0.0
        if after == len(self.scores):
            return 1.0
        return float(
            np.interp(probability, self.probabilities[after - 1 : after + 1], self.scores[after - 1 : after + 1])
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"kind": "isotonic", "scores": list(self.scores), "probabilities": list(self.probabilities)}


Recalibration = Temperature | Isotonic


def from_dict(content: Mapping[str, Any]) -> Recalibration:
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


def store(model: str | Path, function: Recalibration) -> Path:
    """Write a recalibration into the sidecar of an exported model, in place of one that is there.

    Args:
        model: An `*.engine` or `*.onnx` file or an OpenVINO folder of `meddet export`.
        function: The recalibration.

    Returns:
        The sidecar.

    Raises:
        EngineFileError: There is no sidecar. None is made, for it would vouch for a file of others.
    """
    file = _described(model)
    if not sidecar_path(file).is_file():
        raise EngineFileError(
            f"{model} has no sidecar {sidecar_path(file).name} to store a recalibration in: make it with meddet export"
        )
    return update_sidecar(file, {_KEY: function.to_dict()})


def stored(model: str | Path) -> Recalibration | None:
    """Return the recalibration in the sidecar of an exported model; None where there is none.

    Raises:
        EngineFileError: The sidecar is damaged, or what it holds is no recalibration.
    """
    file = _described(model)
    content = read_sidecar(file).get(_KEY)
    if content is None:
        return None
    try:
        return from_dict(content)
    except ValueError as error:
        raise EngineFileError(f"{sidecar_path(file)}: {error}") from error


def _described(model: str | Path) -> Path:
    """Return the file that the sidecar of a model describes: OpenVINO's is that of the weights."""
    path = Path(model)
    if path.is_dir():
        return next(iter(sorted(path.glob("*.bin"))), path)
    return path.with_suffix(".bin") if path.suffix.lower() == ".xml" else path
