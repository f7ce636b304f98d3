"""Writing the pictures that a detector sees, for drawing labels on them and for looking at them."""

from __future__ import annotations

from pathlib import Path

import cv2

from meddet_yolo.files import write_whole
from meddet_yolo.imaging.grey import checked_window
from meddet_yolo.imaging.limits import MAX_PIXELS
from meddet_yolo.imaging.search import find_volumes
from meddet_yolo.imaging.volumes import Skipped

__all__ = ["write_pictures"]


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
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        reason = f"skipped {skipped[0]}{more}" if skipped else f"no DICOM or NIfTI in {source}"
        raise ValueError(f"{reason}; {len(names)} pictures are in {folder}")
    return f"{len(names)} pictures in {folder}"
