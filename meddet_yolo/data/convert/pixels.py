"""The pixels of a data set's images: read whole, freed of everything that is no pixel, and written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from meddet_yolo.data.convert.records import Item
from meddet_yolo.imaging.geometry import SliceGeometry
from meddet_yolo.imaging.grey import percentile_grey
from meddet_yolo.imaging.volumes import Skipped, Slice, is_volume, open_volume, stem_of

__all__ = ["Picture", "open_picture", "read_picture"]

# What a picture's header may hold besides its pixels without telling anything of a patient.
_HARMLESS = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "adobe", "adobe_transform", "dpi", "gamma", "srgb"}
_HARMLESS |= {"chromaticity", "interlace", "transparency", "background", "compression", "aspect", "resolution"}
_HARMLESS |= {"progressive", "progression"}
_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II", b"MM", b"RIFF")
_COPIED = frozenset({"JPEG", "PNG", "BMP", "WEBP"})


@dataclass(frozen=True)
class Picture:
    """An image as it goes into the data set.

    Attributes:
        pixels: uint8 of shape (H, W) or, in BGR, (H, W, 3).
        name: Name for its file, without suffix.
        original: The file itself where it holds pixels and nothing else; None where it must be written anew.
        geometry: How a medical slice was turned upright; None for an ordinary image.
    """

    pixels: np.ndarray
    name: str
    original: Path | None = None
    geometry: SliceGeometry | None = None

    @property
    def suffix(self) -> str:
        """Suffix of its file in the data set."""
        return self.original.suffix.lower() if self.original else ".png"

    def write(self, path: Path) -> None:
        """Write it, or copy the file that it came from; a file of the same content is left as it is.

        Raises:
            OSError: If it cannot be written.
        """
        if self.original is not None:
            content = self.original.read_bytes()
        else:
            done, encoded = cv2.imencode(".png", self.pixels)
            if not done:
                raise OSError(f"{path} cannot be encoded")
            content = encoded.tobytes()
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def read_picture(item: Item) -> Picture:
    """Read an item's pixels.

    Raises:
        ValueError: If they cannot be read, with the reason but without the file's name.
        ImportError: If pydicom or nibabel is missing.
    """
    if is_volume(item.path):
        return _read_slice(item)
    with open_picture(item.path) as image:
        pixels = _as_bgr(ImageOps.exif_transpose(image))
        return Picture(pixels, stem_of(item.path), item.path if _is_plain(image) else None)


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open and decode a picture.

    Raises:
        ValueError: If it cannot be read, with the reason but without the file's name.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if not start.startswith(_STARTS):
            # Said here, for Pillow as Ultralytics patches it would install a plugin for what it does not know.
            raise ValueError("its first bytes are those of no known format")
        with Image.open(path) as image:
            image.load()
            yield image
    except (OSError, SyntaxError, ValueError, ImportError, Image.DecompressionBombError) as error:
        reason = str(error).replace(repr(str(path)), "it").replace(str(path), "it")
        raise ValueError(f"cannot be read as an image ({reason})") from error


def _is_plain(image: Image.Image) -> bool:
    """Return whether a file can be copied as it is: its pixels are 8-bit grey or colour, and it holds nothing else."""
    segments = {name for name, _ in getattr(image, "applist", [])}  # of a JPEG; APP0 and APP14 tell how to decode it
    return (
        image.format in _COPIED
        and image.mode in ("L", "RGB", "RGBA", "P", "1")
        and getattr(image, "n_frames", 1) == 1
        and set(image.info) <= _HARMLESS
        and segments <= {"APP0", "APP14"}
        and not getattr(image, "private_chunks", None)
        and not image.getexif()
    )


def _as_bgr(image: Image.Image) -> np.ndarray:
    """Return pixels as uint8, windowed where they have more than 8 bits."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("holds values that are no finite numbers")
        return percentile_grey(values)
    if image.mode in ("L", "1", "LA"):
        return np.asarray(image.convert("L"))
    return cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)


def _read_slice(item: Item) -> Picture:
    """Read a DICOM image, a frame of one or a slice of a volume."""
    slices = _decode(item.path)
    number = item.index
    if number is None:
        if len(slices) > 1:
            raise ValueError(f"holds {len(slices)} slices, expected a single image")
        number = next(iter(slices))
    found = slices.get(number)
    if found is None:
        raise ValueError(f"has no slice {number}")
    if isinstance(found, Skipped):
        raise ValueError(found.reason)
    return Picture(found.image, found.name, geometry=found.geometry)


@lru_cache(maxsize=2)  # the slices of a volume are asked for one after another
def _decode(path: Path) -> dict[int, Slice | Skipped]:
    """Return all slices of a file by their number; a file that cannot be read has one."""
    volume = open_volume(path, "all")
    found = list(volume.read())
    if len(found) == 1 and isinstance(found[0], Skipped):
        return {part.index: found[0] for part in volume.parts}
    return {part.index: result for part, result in zip(volume.parts, found, strict=True)}
