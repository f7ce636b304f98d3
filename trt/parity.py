"""The parity gate: an exported model must say what the original says, or nothing is built from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TOLERANCES", "Parity", "ParityError", "Tolerance", "check_parity", "compare"]

Array = npt.NDArray[np.float32]
Predict = Callable[[Array], Array]


class ParityError(RuntimeError):
    """An exported model that does not say what the original says."""


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that the gate lets pass.

    Attributes:
        boxes: In units of the image's longer side.
        scores: Absolute.
        confidence: Boxes are compared where the original's best score is at least this: where rounding is allowed,
            the box of an anchor that sees nothing means nothing.
    """

    boxes: float
    scores: float
    confidence: float = 0.0


# For FP32 the accuracy that float32 arithmetic has; for the others several times what trained students show (see
# docs/tensorrt.md). Quantization is judged by accuracy on a data set; its gate only stops what is plainly broken.
TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-4),
    "fp16": Tolerance(5e-3, 1e-2, 0.1),
    "bf16": Tolerance(1e-2, 0.1, 0.1),
    "int8": Tolerance(0.05, 0.3, 0.25),
    "fp8": Tolerance(0.05, 0.3, 0.25),
}


@dataclass(frozen=True)
class Parity:
    """Differences between two models on the same images.

    Attributes:
        boxes: Largest difference of a coordinate, in units of the image's longer side.
        scores: Largest difference of a score.
        images: How many images were compared.
        tolerance: What was allowed.
    """

    boxes: float
    scores: float
    images: int
    tolerance: Tolerance

    @property
    def holds(self) -> bool:
        """Whether both differences are within the tolerance (never true for NaN)."""
        return self.boxes <= self.tolerance.boxes and self.scores <= self.tolerance.scores

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain values for a sidecar."""
        return asdict(self)


def check_parity(reference: Predict, exported: Predict, images: Array, tolerance: Tolerance, what: str) -> Parity:
    """Run two models on the same images and compare boxes and scores.

    Args:
        reference: Original; (B, C, H, W) float32 images in [0, 1] -> raw (B, 4 + nc, A) or selected (B, N, 6) output.
        exported: The model in question, with the same signature.
        images: Images of shape (N, C, H, W).
        tolerance: Largest differences allowed.
        what: The names of the two models for the message.

    Returns:
        The differences.

    Raises:
        ParityError: If they are larger than the tolerance, the outputs' shapes differ or a value is not finite.
    """
    expected, got = reference(images), exported(images)
    if expected.shape != got.shape:
        raise ParityError(f"{what}: outputs of shape {expected.shape} and {got.shape}; nothing was built")
    if not np.isfinite(expected).all():
        raise ParityError(f"{what}: the original's output is not finite, so nothing can be compared; nothing was built")
    boxes, scores = compare(expected, got, max(images.shape[2:]), tolerance.confidence)
    parity = Parity(boxes, scores, len(images), tolerance)
    if not parity.holds:
        raise ParityError(
            f"{what} disagree on {len(images)} images: boxes by {boxes:.2g} of the image's side (allowed "
            f"{tolerance.boxes:.2g}), scores by {scores:.2g} (allowed {tolerance.scores:.2g}); nothing was built"
        )
    return parity


def compare(expected: Array, got: Array, size: int, confidence: float = 0.0) -> tuple[float, float]:
    """Largest differences of boxes (in units of `size` pixels) and of scores between two outputs.

    Args:
        expected: Raw output (B, 4 + nc, A) of boxes and class scores per anchor, or (B, N, 6) rows of corners, score
            and class, best first.
        got: Output of the same shape.
        size: Longer side of the images in pixels.
        confidence: Boxes of a lower score than this are not compared; their scores are.

    Examples:
        >>> rows = np.array([[[0, 0, 8, 8, 0.9, 1], [4, 4, 8, 8, 0.5, 0]]], np.float32)
        >>> compare(rows, rows[:, ::-1], 16)
        (0.0, 0.0)
    """
    if not np.isfinite(got).all():
        return float("nan"), float("nan")
    if expected.shape[-1] != 6:  # no input is so small that it has six anchors
        difference = np.abs(expected - got)
        seen = expected[:, 4:].max(1, keepdims=True) >= confidence
        boxes = np.where(seen, difference[:, :4], 0)
        return float(boxes.max(initial=0)) / size, float(difference[:, 4:].max())
    pairs = [_compare_rows(e, g, size, confidence) for e, g in zip(expected, got, strict=True)]
    return max(b for b, _ in pairs), max(s for _, s in pairs)


def _compare_rows(expected: Array, got: Array, size: int, confidence: float) -> tuple[float, float]:
    """Compare two lists of selected boxes, whose order means nothing where scores are nearly the same.

    Each row is held against the nearest of its class in the other list. Where a list is full its last rows are a draw
    of almost equal candidates, so that a row may be missing there: it then counts with the distance of its score to
    the last one's, which is what the draw was about.
    """
    boxes = scores = 0.0
    for one, other in ((expected, got), (got, expected)):
        one, other = one[one[:, 4] > 0], other[other[:, 4] > 0]
        last = float(other[:, 4].min()) if len(other) else 0.0
        for row in one:
            same = other[other[:, 5] == row[5]]
            apart = np.abs(same[:, :4] - row[:4]).max(1, initial=0) / size + np.abs(same[:, 4] - row[4])
            nearest = int(apart.argmin()) if len(same) else -1
            cut_off = abs(float(row[4]) - last)
            if nearest < 0 or apart[nearest] > cut_off:
                scores = max(scores, cut_off)
            else:
                if row[4] >= confidence:
                    boxes = max(boxes, float(np.abs(same[nearest, :4] - row[:4]).max()) / size)
                scores = max(scores, abs(float(same[nearest, 4] - row[4])))
    return boxes, scores


def batched(predict: Callable[[Array], Array], size: int | None) -> Predict:
    """Make a model of a fixed batch size take any number of images; the last batch is filled up."""

    def run(images: Array) -> Array:
        if size is None:
            return predict(images)
        parts: Sequence[Array] = [images[k : k + size] for k in range(0, len(images), size)]
        outputs = []
        for part in parts:
            filler = np.zeros((size - len(part), *part.shape[1:]), part.dtype)
            outputs.append(predict(np.concatenate([part, filler]))[: len(part)])
        return np.concatenate(outputs)

    return run
