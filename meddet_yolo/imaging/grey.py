"""From measured values to the 8-bit grey that a detector sees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERCENTILES", "checked_window", "percentile_grey", "scaled_grey"]

PERCENTILES = (0.5, 99.5)  # our own decision; the few brightest pixels of an MR image are vessels and artefacts


def checked_window(window: Any) -> str | tuple[float, float]:
    """Return a user's window: "header", "percentile" or (centre, width) in the units that rescaling gives.

    Raises:
        ValueError: If it is something else, or the width is not positive.

    Examples:
        >>> checked_window("header"), checked_window([40, 400])
        ('header', (40.0, 400.0))
    """
    if isinstance(window, (list, tuple)) and len(window) == 2 and float(window[1]) > 0:
        return float(window[0]), float(window[1])
    if window in ("header", "percentile"):
        return str(window)
    raise ValueError(f"window={window!r} is neither 'header', 'percentile' nor [centre,width] with a width above 0")


def scaled_grey(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map `low` to 0 and `high` to 255, clipping what lies outside; a slice of one value becomes black.

    Args:
        values: Array of any shape and number type.
        low: Value of black.
        high: Value of white.

    Examples:
        >>> scaled_grey(np.array([-5, 0, 50, 100, 500]), 0, 100).tolist()
        [0, 0, 128, 255, 255]
    """
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def percentile_grey(values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Window a slice by its own 0.5th and 99.5th percentile.

    The slice stands for itself, so that it looks the same alone and in its volume. Where so little of it is bright that
    both percentiles meet (a mask, a phantom of few points), its full range is used.

    Args:
        values: Slice (rows, columns).
        valid: Pixels (rows, columns) that were measured; the others (padding) take no part and become black.

    Examples:
        >>> percentile_grey(np.arange(1001.0).reshape(7, 143)).flat[[0, 5, 500, 995, 1000]].tolist()
        [0, 0, 128, 255, 255]
    """
    inside = values if valid is None else values[valid]
    if inside.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(inside, PERCENTILES)
    if not high > low:
        low, high = inside.min(), inside.max()
    grey = scaled_grey(values, float(low), float(high))
    if valid is not None:
        grey[~valid] = 0
    return grey
