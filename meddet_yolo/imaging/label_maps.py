"""Telling label maps from images: a folder of NIfTI volumes often holds both."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_label_map"]

_MOST_LABELS = 512  # the largest sets of structures in use have some hundred
_FLAT = 0.5  # share of equal neighbours above which labelled voxels form regions
_SPARSE = 0.01  # share of labelled voxels below which they are single points


def is_label_map(voxels: NDArray[Any]) -> bool:
    """Return whether a volume holds labels of regions instead of grey values.

    Labels are integers from 0, few of them, and most labelled voxels have the label of the next one, which the noise of
    an image prevents, or hardly any voxel is labelled. Our own rule; NIfTI's own mark, intent code 1002, is rarely set.

    Args:
        voxels: Volume of three dimensions, of any type.

    Examples:
        >>> mask = np.zeros((4, 32, 32), np.uint8)
        >>> mask[:, 8:24, 8:24] = 3
        >>> image = np.random.default_rng(0).integers(0, 100, (4, 32, 32))
        >>> is_label_map(mask), is_label_map(image)
        (True, False)
    """
    if not voxels.size or voxels.min() < 0 or voxels.max() > 65535:
        return False
    if voxels.dtype.kind == "f" and not np.array_equal(voxels, np.rint(voxels)):
        return False
    values = np.unique(voxels)
    if not 2 <= len(values) <= _MOST_LABELS:
        return False
    labelled = voxels > 0
    if np.count_nonzero(labelled) < _SPARSE * voxels.size:
        return True
    pairs = equal = 0
    for axis in range(voxels.ndim):
        both = _ahead(labelled, axis) & _behind(labelled, axis)
        pairs += int(np.count_nonzero(both))
        equal += int(np.count_nonzero(both & (_ahead(voxels, axis) == _behind(voxels, axis))))
    return equal > _FLAT * pairs


def _ahead(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return all but the last along an axis."""
    return values[(slice(None),) * axis + (slice(None, -1),)]


def _behind(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return all but the first along an axis."""
    return values[(slice(None),) * axis + (slice(1, None),)]
