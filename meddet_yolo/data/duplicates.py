"""Images that are the same, or nearly, found by their pixels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

__all__ = ["Fingerprint", "exact_duplicates", "fingerprint", "near_duplicates"]

_SIDE = 32  # an image is looked at as a square of this side
_LOW = 16  # of whose cosine transform this corner is kept: 255 signs
_NEAR = 40  # differing signs up to which two images are near-duplicates; measured in docs/convert.md
_BLOCK = 2048


class Fingerprint:
    """What is kept of an image to find it again.

    Attributes:
        digest: Hash of size and pixels.
        signs: Perceptual hash, float32 of shape (255,), each 1 or -1.
        flat: Whether the image has no structure, so that its perceptual hash says nothing.
    """

    __slots__ = ("digest", "flat", "signs")

    def __init__(self, digest: str, signs: np.ndarray, flat: bool) -> None:
        self.digest = digest
        self.signs = signs
        self.flat = flat


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """Return an image's fingerprint.

    The perceptual hash is that of Zauner (2010): the signs of the low frequencies of the cosine transform against their
    median, here 255 of them, for sagittal spines are much alike.

    Args:
        pixels: uint8 of shape (H, W) or, in BGR, (H, W, 3).

    Examples:
        >>> image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
        >>> brighter = cv2.convertScaleAbs(image, alpha=0.8, beta=30)
        >>> int((fingerprint(image).signs != fingerprint(brighter).signs).sum()) < 10
        True
    """
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    digest = hashlib.blake2b(repr(grey.shape).encode() + np.ascontiguousarray(grey).tobytes(), digest_size=16)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:_LOW, :_LOW].ravel()[1:]  # the first is the mean
    signs = np.where(low > np.median(low), 1, -1).astype(np.float32)
    return Fingerprint(digest.hexdigest(), signs, bool(small.std() < 1))


def exact_duplicates(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Return groups of images with the same pixels, by their places in the sequence."""
    groups = defaultdict(list)
    for place, one in enumerate(prints):
        groups[one.digest].append(place)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(prints: Sequence[Fingerprint], differing: int = _NEAR) -> list[tuple[int, int, int]]:
    """Return pairs of images that differ but look the same.

    Args:
        prints: Fingerprints.
        differing: Largest number of differing signs, of 255.

    Returns:
        Both places and the number of differing signs, the most alike first.
    """
    if len(prints) < 2:
        return []
    signs = np.stack([one.signs for one in prints])
    pairs = []
    for start in range(0, len(signs), _BLOCK):
        distance = (signs.shape[1] - signs[start : start + _BLOCK] @ signs.T) / 2
        for i, j in np.argwhere(distance <= differing):
            a, b = start + int(i), int(j)
            same = prints[a].digest == prints[b].digest
            if a < b and not same and not (prints[a].flat or prints[b].flat):
                pairs.append((a, b, round(float(distance[i, j]))))
    return sorted(pairs, key=lambda pair: (pair[2], pair[:2]))
