"""The pixels of a data set's images: read whole, freed of everything that is no pixel, and written."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from meddet_yolo.data.convert.records import Item
from meddet_yolo.files import write_whole
from meddet_yolo.imaging.geometry import SliceGeometry
from meddet_yolo.imaging.grey import percentile_grey
from meddet_yolo.imaging.limits import MAX_PIXELS, check_picture
from meddet_yolo.imaging.volumes import Skipped, Slice, is_volume, open_volume, stem_of

__all__ = ["Picture", "open_picture", "read_picture", "write_anew"]

_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II", b"MM", b"RIFF")


@dataclass(frozen=True)
class Picture:
    """An image as it goes into the data set.

    Attributes:
        pixels: uint8 of shape (H, W) or, in BGR, (H, W, 3).
        name: Name for its file, without suffix.
        geometry: How a medical slice was turned upright; None for an ordinary image.
    """

    pixels: np.ndarray
    name: str
    geometry: SliceGeometry | None = None

    def write(self, path: Path) -> None:
        """Write it as PNG; a file of the same content is left as it is.

        Its file is never copied: what may hide in one (text, thumbnails, bytes behind the end or between the parts)
        cannot be listed, what is decoded are pixels.

        Raises:
            OSError: If it cannot be written.
        """
        done, encoded = cv2.imencode(".png", self.pixels)
        if not done:
            raise OSError(f"{path} cannot be encoded")
        write_anew(path, encoded.tobytes())


def write_anew(path: Path, content: bytes) -> None:
    """Write a file whole, unless it is there with that content; a link of its name is replaced."""
    if path.is_symlink() or not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)


def read_picture(item: Item, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an item's pixels.

    Args:
        item: The item.
        max_pixels: The most pixels that a picture may have; see `meddet_yolo.imaging.limits`.

    Raises:
        ValueError: If they cannot be read, with the reason but without the file's name.
        ImportError: If pydicom or nibabel is missing.
    """
    if is_volume(item.path):
        return _read_slice(item, max_pixels)
    image = open_picture(item.path, max_pixels)
    try:
        pixels = _as_bgr(ImageOps.exif_transpose(image))
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"cannot be read as an image ({reason})") from error
    return Picture(pixels, stem_of(item.path))


def open_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open and decode a picture.

    Raises:
        ValueError: If it cannot be read, with the reason but without the file's name.
    """
    try:
        content = path.read_bytes()  # so that a part of a claimed length is no longer than the file
        if not content.startswith(_STARTS):
            # Said here, for Pillow as Ultralytics patches it would install a plugin for what it does not know.
            raise ValueError("its first bytes are those of no known format")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures that are large, or oddly written
            with Image.open(io.BytesIO(content)) as image:
                check_picture(image.height, image.width, None, max_pixels)  # before it is decoded
                image.load()
                return image
    except Exception as error:  # Pillow's plugins raise all kinds
        reason = str(error) or type(error).__name__
        raise ValueError(f"cannot be read as an image ({reason})") from error


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


def _read_slice(item: Item, max_pixels: int) -> Picture:
    """Read a DICOM image, a frame of one or a slice of a volume."""
    slices = _decode(item.path, max_pixels)
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
def _decode(path: Path, max_pixels: int) -> dict[int, Slice | Skipped]:
    """Return all slices of a file by their number; a file that cannot be read has one."""
    volume = open_volume(path, "all", max_pixels)
    found = list(volume.read())
    if len(found) == 1 and isinstance(found[0], Skipped):
        return {part.index: found[0] for part in volume.parts}
    return {part.index: result for part, result in zip(volume.parts, found, strict=True)}
