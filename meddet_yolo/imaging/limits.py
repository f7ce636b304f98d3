"""What an image file may claim: bounds within which a picture of a patient lies, checked before anything is made of it.

A header of a few bytes can announce a billion slices or a picture of a terabyte. Whatever a file says is held against
what it can hold and against these bounds (our own decisions, wide enough for whole-body CT and for micro-CT).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "MAX_PIXELS",
    "MAX_SLICES",
    "VolumeError",
    "check_bytes",
    "check_distances",
    "check_picture",
    "check_place",
    "check_slices",
    "checked_max_pixels",
    "refuse_device",
]

MAX_PIXELS = 1 << 25  # of a picture, by default: 5792 x 5792
MAX_SLICES = 10_000  # of one file
BYTES_PER_PIXEL = 16  # what a whole file may take in memory, for each pixel that a picture may have: 512 MiB by default
SMALLEST_MM, LARGEST_MM = 1e-3, 100.0  # between pixels, or slices
FARTHEST_MM = 1e5  # from the origin


class VolumeError(ValueError):
    """A file cannot be used as an image; the message is the reason, without the file's name.

    Args:
        reason: The message.
        words: Words of the file's header that name the patient, to mask in the file's name.
    """

    def __init__(self, reason: str, words: frozenset[str] = frozenset()) -> None:
        super().__init__(reason)
        self.words = words


def checked_max_pixels(value: Any) -> int:
    """Return a user's `max_pixels`.

    Raises:
        ValueError: If it is no whole number from 1.

    Examples:
        >>> checked_max_pixels(1e6)
        1000000
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value < 2**53 or value != int(value):
        raise ValueError(f"max_pixels={value!r} is no whole number from 1: the most pixels that a picture may have")
    return int(value)


def check_slices(count: int, room: int) -> None:
    """Refuse a number of slices or frames that is impossible.

    Args:
        count: What the header says.
        room: How many the file can hold at most, by its size.

    Raises:
        VolumeError: If there are more than that, or more than `MAX_SLICES`.
    """
    if count > room:
        raise VolumeError(
            f"its header announces {count} slices, but the file has room for {room}: truncated or damaged"
        )
    if count > MAX_SLICES:
        raise VolumeError(f"holds {count} slices, at most {MAX_SLICES} are read")


def check_picture(rows: int, columns: int, spacing: tuple[float, float] | None, max_pixels: int) -> None:
    """Refuse a slice that is too large, as it is stored or stretched to square pixels.

    Args:
        rows: Rows of its matrix.
        columns: Columns of its matrix.
        spacing: (between rows, between columns) in mm, where it is known.
        max_pixels: The most pixels that a picture may have.

    Raises:
        VolumeError: If it has more.

    Examples:
        >>> check_picture(256, 256, (0.001, 50.0), MAX_PIXELS)
        Traceback (most recent call last):
        ...
        meddet_yolo.imaging.limits.VolumeError: its 256 x 256 pixels of 0.001 x 50 mm make a picture of 3276800000 \
pixels, more than max_pixels=33554432
    """
    stretch = max(spacing) / min(spacing) if spacing else 1.0
    pixels = rows * columns * stretch
    if pixels > max_pixels:
        shape = f"{rows} x {columns} pixels"
        sides = f" of {spacing[0]:g} x {spacing[1]:g} mm" if spacing and stretch > 1 else ""
        raise VolumeError(
            f"its {shape}{sides} make a picture of {pixels:.0f} pixels, more than max_pixels={max_pixels}"
        )


def check_bytes(size: int, max_pixels: int, what: str) -> None:
    """Refuse what would take too much memory.

    Args:
        size: Bytes.
        max_pixels: The most pixels that a picture may have; a file may take `BYTES_PER_PIXEL` times as many bytes.
        what: What takes them, for the message.

    Raises:
        VolumeError: If there are more.
    """
    limit = max_pixels * BYTES_PER_PIXEL
    if size > limit:
        needed = -(-size // BYTES_PER_PIXEL)
        raise VolumeError(f"{what} {size} bytes, more than {limit}; if it is sound, read it with max_pixels={needed}")


def check_distances(values: Iterable[float], shown: str) -> None:
    """Refuse distances between pixels or slices that no scanner has.

    Args:
        values: Distances in mm.
        shown: What they are and what the file says, for the message.

    Raises:
        VolumeError: If any is no number between `SMALLEST_MM` and `LARGEST_MM`.

    Examples:
        >>> check_distances([1e-9, 1e9], "PixelSpacing is 1e-9 x 1e9")
        Traceback (most recent call last):
        ...
        meddet_yolo.imaging.limits.VolumeError: PixelSpacing is 1e-9 x 1e9, expected positive distances of 0.001 to \
100 mm
    """
    if not all(SMALLEST_MM <= value <= LARGEST_MM for value in values):  # also false for NaN
        raise VolumeError(f"{shown}, expected positive distances of {SMALLEST_MM:g} to {LARGEST_MM:g} mm")


def refuse_device(path: Path) -> None:
    """Refuse what is no file on a disk: reading a pipe waits for somebody to write, reading a device may never end.

    Raises:
        VolumeError: If it is a pipe, a socket or a device.
        OSError: If there is nothing of that name.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder fails by itself
        raise VolumeError("is a pipe, socket or device, expected a file")


def check_place(values: Iterable[float]) -> None:
    """Refuse a place that lies in no scanner.

    Args:
        values: Coordinates in mm.

    Raises:
        VolumeError: If any is farther from the origin than `FARTHEST_MM`.
    """
    farthest = float(np.max(np.abs(np.asarray(list(values), float)), initial=0.0))
    if not farthest <= FARTHEST_MM:
        raise VolumeError(f"lies {farthest:g} mm from the origin of its coordinates, expected at most {FARTHEST_MM:g}")
