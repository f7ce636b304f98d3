"""Writing the pictures that a detector sees, for drawing labels on them and for looking at them."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2

from meddet_yolo.files import write_whole
from meddet_yolo.imaging.grey import checked_window
from meddet_yolo.imaging.limits import MAX_PIXELS, check_picture
from meddet_yolo.imaging.search import find_volumes
from meddet_yolo.imaging.volumes import Skipped

__all__ = ["check_image", "write_pictures"]

_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II", b"MM", b"RIFF")


def check_image(path: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an ordinary image that announces too many pixels, before anything decodes it.

    Args:
        path: A PNG, JPEG, BMP, TIFF or WebP; of other kinds, and of damaged files, nothing is said here.
        max_pixels: The most pixels that a picture may have.

    Raises:
        VolumeError: If it announces more.
    """
    from PIL import Image

    try:
        with path.open("rb") as file:
            start = file.read(4)
        if not start.startswith(_STARTS):
            return  # Pillow as Ultralytics patches it would install a plugin for what it does not know
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
    except Exception:  # what cannot be opened is refused by whoever reads it
        return
    check_picture(height, width, None, max_pixels)


def write_pictures(
    source: str | Path | list[str],
    out: str | Path,
    slices: str | int = "mid",
    window: str | tuple[float, float] = "header",
    max_pixels: int = MAX_PIXELS,
) -> str:
    """Write slices of DICOM and NIfTI images as upright 8-bit grey PNG, named as their label files must be.

    A label file drawn on `NAME.png` belongs beside the original as `labels/.../NAME.txt`.

    Args:
        source: A file, folder, pattern or list of them; see `search.find_volumes`.
        out: Folder for the pictures.
        slices: Which slices of a series or volume: "mid", "all" or a number around the middle.
        window: "header" (percentiles where the file has none), "percentile" or (centre, width).
        max_pixels: The most pixels that a picture may have; what is larger is skipped with its reason.

    Returns:
        What was written, in one line.

    Raises:
        ValueError: If a file could not be used; the others are written before.
    """
    view = checked_window(window)
    found = find_volumes(source, slices, max_pixels)
    skipped = list(found.skipped)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for volume in found.volumes:
        for item in volume.read(view):
            if isinstance(item, Skipped):
                skipped.append(item.masked(found.words))
                continue
            name, number = item.name, 1
            while name in names:  # of another folder
                number += 1
                name = f"{item.name}-{number}"
            names.add(name)
            write_whole(folder / f"{name}.png", cv2.imencode(".png", item.image)[1].tobytes())
    if skipped or not names:
        more = f"; and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        reason = f"skipped {skipped[0]}{more}" if skipped else f"no DICOM or NIfTI in {source}"
        raise ValueError(f"{reason}; {len(names)} pictures are in {folder}")
    return f"{len(names)} pictures in {folder}"
