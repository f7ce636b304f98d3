"""Results of slices, which know where their boxes lie in the patient."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
from ultralytics.engine.results import Results

from meddet_yolo.imaging.privacy import redact
from meddet_yolo.imaging.volumes import Slice

__all__ = ["SHOWN_SIDE", "SliceResults", "level_of"]

SHOWN_SIDE = 768  # pixels; about as long a side as result pictures have at least
_LEVEL = re.compile(r"(?<![A-Z0-9])([CTLS])(\d{1,2})\s*[-/_]?\s*([CTLS])?(\d{1,2})?(?!\d)", re.IGNORECASE)


class SliceResults(Results):
    """Results of a DICOM or NIfTI slice: Ultralytics' `Results` that know where their boxes lie.

    Attributes:
        slice: The slice; its `geometry` maps picture pixels to the file's and to the patient.
    """

    slice: Slice

    def new(self) -> SliceResults:
        """Return results of the same slice without boxes."""
        result = SliceResults(orig_img=self.orig_img, path=self.path, names=self.names, speed=self.speed)
        result.save_dir, result.slice = self.save_dir, self.slice
        return result

    def plot(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Draw the boxes as `Results.plot` does, with the patient's sides at the picture's edges.

        Small slices are enlarged, so that labels do not hide them.
        """
        if kwargs.get("img") is not None or self.orig_img.shape[2] != 3:
            return np.asarray(super().plot(*args, **kwargs))
        factor = self.picture_scale
        image = cv2.resize(self.orig_img, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        boxes = None if self.boxes is None else self.boxes.data.clone()
        if boxes is not None:
            boxes[:, :4] *= factor
        large = Results(_marked(image, self.slice), path=self.path, names=self.names, boxes=boxes)
        return np.asarray(large.plot(*args, **kwargs))

    @property
    def picture_scale(self) -> int:
        """How many times as large as the slice its picture is drawn."""
        return max(1, round(SHOWN_SIDE / max(self.orig_shape)))

    @property
    def boxes_stored(self) -> np.ndarray:
        """Boxes (N, 4) in the file's matrix: (column1, row1, column2, row2) in pixels from its corner."""
        boxes = [self.slice.geometry.box_to_stored(box) for box in self._xyxy()]
        return np.array(boxes).reshape(-1, 4)

    @property
    def boxes_mm(self) -> np.ndarray | None:
        """Corners (N, 4, 3) in the patient, LPS in mm, clockwise from the top left; None where that is unknown."""
        if self.slice.geometry.patient is None:
            return None
        return np.array([self.slice.geometry.box_to_patient(box) for box in self._xyxy()]).reshape(-1, 4, 3)

    def _xyxy(self) -> np.ndarray:
        """Boxes (N, 4) in pixels of the upright slice."""
        return np.zeros((0, 4)) if self.boxes is None else np.asarray(self.boxes.numpy().xyxy, float).reshape(-1, 4)

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[dict[str, Any]]:
        """Return Ultralytics' summary of every box, with `level`, `size_mm` (width, height) and `corners_mm`."""
        rows: list[dict[str, Any]] = super().summary(normalize, decimals)
        corners = self.boxes_mm
        for row, box, i in zip(rows, self._xyxy(), range(len(rows)), strict=True):
            size = self.slice.geometry.box_size_mm(box)
            row["level"] = level_of(row["name"])
            row["size_mm"] = None if size is None else [round(s, 3) for s in size]
            row["corners_mm"] = None if corners is None else corners[i].round(3).tolist()
        return rows

    def record(self, words: Iterable[str] = ()) -> dict[str, Any]:
        """Return the slice and its boxes for a JSON file, without anything that names the patient."""
        part, geometry = self.slice, self.slice.geometry
        boxes = []
        for row, picture_box, stored in zip(self.summary(), self._xyxy(), self.boxes_stored, strict=True):
            corners = row["corners_mm"]
            boxes.append(
                {
                    "class": row["class"],
                    "name": row["name"],
                    "level": row["level"],
                    "confidence": row["confidence"],
                    "box_px": [round(float(v), 2) for v in picture_box],
                    "box_picture_px": [round(float(v) * self.picture_scale, 2) for v in picture_box],
                    "box_stored_px": [round(float(v), 2) for v in stored],
                    "size_mm": row["size_mm"],
                    "centre_mm": None if corners is None else np.mean(corners, axis=0).round(3).tolist(),
                    "corners_mm": corners,
                }
            )
        return {
            "name": part.name,
            "file": redact(part.path.name, words),
            "slice": part.index,
            "shape_px": list(geometry.shape),
            "picture_scale": self.picture_scale,
            "spacing_mm": None if geometry.spacing is None else [round(s, 6) for s in geometry.spacing],
            "plane": geometry.plane,
            "edges": geometry.edges,
            "offset_left_mm": None if part.offset_mm is None else round(part.offset_mm, 3),
            "source": None if part.reference is None else asdict(part.reference),
            "boxes": boxes,
        }


def _marked(image: np.ndarray, part: Slice) -> np.ndarray:
    """Write the patient's sides, and how far to the left or right a sagittal slice lies, at a picture's edges."""
    height, width = image.shape[:2]
    texts = []
    for edge, letter in (part.geometry.edges or {}).items():
        x = {"left": 6, "right": width - 22}.get(edge, width // 2)
        y = {"top": 22, "bottom": height - 8}.get(edge, height // 2)
        texts.append((letter, (x, y)))
    if part.offset_mm is not None:
        side = "L" if part.offset_mm > 0 else "R"
        texts.append((f"{abs(part.offset_mm):.1f} mm {side}" if part.offset_mm else "middle", (6, height - 8)))
    for text, place in texts:
        for colour, thickness in (((0, 0, 0), 3), ((0, 220, 255), 1)):  # readable on any ground
            cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, thickness, cv2.LINE_AA)
    return image


def level_of(name: str) -> str | None:
    """Return the spinal level that a class's name tells, or None.

    Examples:
        >>> level_of("L4-5 herniation"), level_of("disc_C7/T1"), level_of("C3"), level_of("normal")
        ('L4/L5', 'C7/T1', 'C3', None)
    """
    found = _LEVEL.search(name.replace("_", " "))
    if found is None:
        return None
    upper, number, lower, below = found.groups()
    if below is None:
        return f"{upper}{number}".upper()
    return f"{upper}{number}/{lower or upper}{below}".upper()
