"""What a predictor is fed where there is DICOM or NIfTI: the source and its loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.loaders import SourceTypes
from ultralytics.data.utils import IMG_FORMATS, VID_FORMATS
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import imread

from meddet_yolo.imaging.grey import checked_window
from meddet_yolo.imaging.limits import MAX_PIXELS, checked_max_pixels
from meddet_yolo.imaging.pictures import check_image
from meddet_yolo.imaging.privacy import content_key, public_name, redact
from meddet_yolo.imaging.search import Found, holds_volumes
from meddet_yolo.imaging.volumes import Skipped, Slice, is_volume, reason_of

__all__ = ["VolumeLoader", "VolumeSource", "suffix_of"]


@dataclass(frozen=True)
class VolumeSource:
    """A prediction source with DICOM or NIfTI in it, and how to read that.

    Args:
        source: What `find_volumes` searches.
        slices: Which slices of a series or volume: "mid", "all" or a number.
        window: "header" (percentiles where it has none), "percentile", or (centre, width).
        sr: Whether to write DICOM Structured Reports.
        max_pixels: The most pixels that a picture may have; see `meddet_yolo.imaging.limits`.
    """

    source: Any
    slices: str | int = "mid"
    window: str | tuple[float, float] = "header"
    sr: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        """Check and normalise the arguments.

        Raises:
            ValueError: If the window is none, or `max_pixels` no number of pixels.
        """
        object.__setattr__(self, "max_pixels", checked_max_pixels(self.max_pixels))
        object.__setattr__(self, "window", checked_window(self.window))

    @staticmethod
    def holds(source: Any) -> bool:
        """Return whether a source is made of paths, with DICOM or NIfTI among them.

        A folder of ordinary images stays Ultralytics', which does not look into its subfolders.
        """
        items = list(source) if isinstance(source, (list, tuple)) else [source]
        if not items or not all(isinstance(item, (str, Path)) for item in items):
            return False
        return holds_volumes(item for item in items if not _is_image_folder(item))


class VolumeLoader:
    """Feed slices, and ordinary images beside them, to a predictor in batches.

    Args:
        found: What a source holds.
        window: As in `VolumeSource`.
        batch: Images a batch.
        channels: Channels that the model takes.
        max_pixels: The most pixels that an ordinary image may have.
    """

    mode = "image"

    def __init__(
        self,
        found: Found,
        window: str | tuple[float, float],
        batch: int,
        channels: int,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.found, self.window, self.bs, self.channels, self.max_pixels = found, window, batch, channels, max_pixels
        self.source_type = SourceTypes()
        self.skipped = list(found.skipped)
        self.skipped_of: dict[int, list[Skipped]] = {}  # by volume, those that only decoding showed
        self.images = found.images + [p for p in found.beside if suffix_of(p) in IMG_FORMATS]
        self.nf = sum(map(len, found.volumes)) + len(self.images)
        self.current: list[tuple[int, Slice] | None] = []  # of the batch: volume and slice; None for an ordinary image
        self.count = 0
        self.on_close: Any = None

    def __len__(self) -> int:
        """Return the number of batches, as far as headers tell."""
        return -(-self.nf // self.bs)

    def __iter__(self) -> Iterator[tuple[list[str], list[np.ndarray], list[str]]]:
        """Yield paths, images (height, width, channels) and log texts of a batch."""
        self.count = 0
        batch: list[tuple[str, np.ndarray, str, tuple[int, Slice] | None]] = []
        for path, image, shown, item in self._images():
            self.count += 1
            batch.append((path, image, f"image {self.count}/{self.nf} {shown}: ", item))
            if len(batch) == self.bs:
                yield self._batch(batch)
                batch = []
        if batch:
            yield self._batch(batch)

    def _batch(self, batch: list[Any]) -> tuple[list[str], list[np.ndarray], list[str]]:
        """Split a batch's entries."""
        paths, images, texts, self.current = map(list, zip(*batch, strict=True))
        return paths, images, texts

    def _images(self) -> Iterator[tuple[str, np.ndarray, str, tuple[int, Slice] | None]]:
        """Yield path, image, its name in the log, and its slice, one image after another."""
        for number, volume in enumerate(self.found.volumes):
            for item in volume.read(self.window):
                if isinstance(item, Skipped):
                    self.skipped_of.setdefault(number, []).append(self._skip(item))
                    continue
                image = np.repeat(item.image[..., None], self.channels, axis=2)
                # Ultralytics names its output after the stem of this path.
                yield f"{item.name}.png", image, item.name, (number, item)
        flag = cv2.IMREAD_GRAYSCALE if self.channels == 1 else cv2.IMREAD_COLOR
        for path in self.images:
            try:
                check_image(path, self.max_pixels)
                image = imread(str(path), flags=flag)
            except Exception as error:  # one file must not end the run
                self._skip(Skipped(path, reason_of(error)))
                continue
            if image is None:
                self._skip(Skipped(path, "not an image, or damaged" if path.is_file() else "no such file any more"))
                continue
            shown = str(path)
            if redact(shown, self.found.words) != shown:  # as with slices, a bare name that is not the patient's
                shown = public_name(path.stem, self.found.words, content_key(path)) + path.suffix
            yield shown, image if image.ndim == 3 else image[..., None], shown, None

    def _skip(self, item: Skipped) -> Skipped:
        """Note a file that turned out unreadable."""
        item = item.masked(self.found.words)
        self.skipped.append(item)
        LOGGER.warning(f"skipped {item}")
        return item

    def close(self) -> None:
        """Tell the predictor that no more will come."""
        if self.on_close is not None:
            self.on_close()


def _is_image_folder(item: str | Path) -> bool:
    """Return whether a path is a folder with ordinary images or videos, and no DICOM or NIfTI beside them."""
    try:
        files = [path for path in Path(item).iterdir() if path.is_file()]
    except (OSError, ValueError):
        return False
    ordinary = any(suffix_of(path) in IMG_FORMATS | VID_FORMATS for path in files)
    return ordinary and not any(map(is_volume, files))


def suffix_of(path: Path) -> str:
    """Return a file's suffix as Ultralytics lists them."""
    return path.suffix[1:].lower()
