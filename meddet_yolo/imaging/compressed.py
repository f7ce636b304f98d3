"""Compressed DICOM, looked at before a decoder is: how large it would become."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["InflatingFile", "codestream_shape"]

_STEP = 1 << 20  # bytes


class InflatingFile(io.BufferedReader):
    """A DICOM file for pydicom, which inflates a deflated one whole: refused before that if it would become too large.

    pydicom reads "all the rest" of a file in this one case only.

    Args:
        path: The file.
        check: Called with the number of bytes that are known to come out so far; raises if that is too many.
    """

    def __init__(self, path: Path, check: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._check, self._size = check, os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as a file does, without making room for more than there is."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = max(0, min(size, self._size - self.tell()))
        content = super().read(size)
        if size is None or size < 0:
            self._measure(content)
        return content

    def _measure(self, content: bytes) -> None:
        """Inflate and forget, in steps, until the end or until there is too much."""
        inflater, inflated, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, content
        try:
            while rest and not inflater.eof:
                inflated += len(inflater.decompress(rest, _STEP))
                self._check(inflated)
                rest = inflater.unconsumed_tail
        except zlib.error:  # pydicom will find the same
            return


def codestream_shape(data: bytes) -> tuple[int, int, int] | None:
    """Return (rows, columns, components) that a JPEG, JPEG-LS or JPEG 2000 stream announces; None where it is none.

    Args:
        data: A frame, as it is in the file.

    Examples:
        >>> codestream_shape(bytes.fromhex("ffd8 ffc0 000b 08 0004 0006 01 011100"))
        (4, 6, 1)
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # in a JP2 file some boxes come before it
    if start < 0 or len(data) < start + 42:
        return None

    def number(at: int, size: int = 4) -> int:
        return int.from_bytes(data[start + at : start + at + size], "big")

    return number(12) - number(20), number(8) - number(16), number(40, 2)


def _jpeg(data: bytes) -> tuple[int, int, int] | None:
    """Return what the first frame header of a JPEG or JPEG-LS stream says."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            head = data[at + 5 : at + 10]
            if len(head) < 5:
                return None
            return int.from_bytes(head[:2], "big"), int.from_bytes(head[2:4], "big"), head[4]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def encapsulated_frame(source: Any, index: int, frames: int) -> bytes:
    """Return a frame's bytes as they are in a file.

    Args:
        source: The value of PixelData, or a file that stands at its beginning.
        index: Number of the frame, from 0.
        frames: Number of frames.
    """
    from pydicom.encaps import get_frame

    return bytes(get_frame(source, index, number_of_frames=frames))
