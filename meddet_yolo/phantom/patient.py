"""One patient in the scanner: anatomy and protocol in, images with boxes out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from meddet_yolo.phantom.acquisition import FINE, GRID, Protocol, scan, wrinkle
from meddet_yolo.phantom.anatomy import GRADES, LEVELS, Anatomy
from meddet_yolo.phantom.drawing import Canvas, Palette
from meddet_yolo.phantom.head import draw_surroundings
from meddet_yolo.phantom.shapes import Column
from meddet_yolo.phantom.spine import draw_column
from meddet_yolo.phantom.tissues import Plane, Tissues, tissues

NAMES = {0: "herniation", 1: "normal"}
_ORDER = (0, 1, -1, 2, -2)  # places of the slices, so that a slice does not depend on how many there are
_FARTHEST = 4.2  # millimetres from the mid-sagittal plane
_SIDE = GRID * FINE
_SEARCH = 24.0  # half side, in millimetres, of the square around a disc in which its cells are looked for


@dataclass(frozen=True)
class Slice:
    """An image and its truth."""

    image: np.ndarray  # (imgsz, imgsz), uint8
    boxes: np.ndarray  # (6, 4): x1, y1, x2, y2 of the discs C2/3 to C7/T1, in fractions of the side
    offset: float  # from the mid-sagittal plane at C5, millimetres


@dataclass(frozen=True)
class Patient:
    """A patient's anatomy and how it is scanned."""

    anatomy: Anatomy
    protocol: Protocol
    seed: tuple[int, ...]

    @cached_property
    def column(self) -> Column:
        """The column of vertebrae."""
        return Column(self.anatomy)

    def classes(self) -> list[int]:
        """Return the class of each of the six discs."""
        return [0 if d.herniated else 1 for d in self.anatomy.discs[: len(LEVELS)]]

    def image(self, number: int, imgsz: int) -> Slice:
        """Scan one slice.

        Args:
            number: Which, 0 to 4; all share the anatomy and the protocol.
            imgsz: Side of the image in pixels.

        Returns:
            The image and its boxes.
        """
        rng = np.random.default_rng([*self.seed, number])
        offset = self._offset(number)
        maps, palette, kinds = self.tissue_maps(offset, rng)
        boxes = self._boxes(maps, kinds)
        return Slice(scan(maps, palette, self.protocol, rng, imgsz), boxes, offset)

    def tissue_maps(self, offset: float, rng: np.random.Generator) -> tuple[list[np.ndarray], Palette, Tissues]:
        """Draw the tissues at two depths of a slice, with the palette and the tissues' numbers."""
        p = self.protocol
        palette = Palette()
        kinds = tissues(self.anatomy, palette)
        base = self._canvas()
        draw_surroundings(base, Plane(offset, p.slope), kinds)
        maps = []
        for depth in (-0.25 * p.thickness, 0.25 * p.thickness):
            canvas = self._canvas(base.map)
            draw_column(canvas, Plane(offset + depth, p.slope), kinds)
            maps.append(canvas.map)
        return wrinkle(maps, rng), palette, kinds

    def record(self) -> dict[str, Any]:
        """Return what is known of the patient, for people and programs that read the data set."""
        discs = [
            {
                "level": level,
                "class": NAMES[0 if d.herniated else 1],
                "grade": GRADES[d.grade],
                "type": ("extrusion" if d.extrusion else "protrusion") if d.herniated else "none",
                "bulge_mm": round(d.bulge * self.anatomy.scale, 2),
                "height_mm": round(d.height * self.anatomy.scale, 2),
                "degeneration": round(d.degeneration, 2),
            }
            for level, d in zip(LEVELS, self.anatomy.discs, strict=False)
        ]
        p = self.protocol
        return {
            "field_of_view_mm": round(p.fov, 2),
            "matrix": list(p.matrix),
            "phase_encoding": "head-foot" if p.phase_vertical else "anterior-posterior",
            "noise": round(p.noise, 4),
            "discs": discs,
        }

    def _offset(self, number: int) -> float:
        """Return a slice's distance from the mid-sagittal plane."""
        p = self.protocol
        return float(np.clip(p.centre + _ORDER[number] * p.gap, -_FARTHEST, _FARTHEST))

    @cached_property
    def _corner(self) -> tuple[float, float]:
        """The image's upper left corner, as a canvas takes it."""
        p = self.protocol
        canvas = Canvas(self.column, 0, 1.0, (0.0, 0.0), p.turn)
        middle = self.column.discs[: len(LEVELS)].mean()
        x, y = canvas.place(self.column.points(np.array([[middle + p.aim[0], p.aim[1]]])))[0] - 0.5 * p.fov
        return float(x), float(y)

    def _canvas(self, base: np.ndarray | None = None) -> Canvas:
        """Return a tissue map over the field of view, empty or a copy."""
        return Canvas(self.column, _SIDE, self.protocol.fov / _SIDE, self._corner, self.protocol.turn, base)

    def _boxes(self, maps: list[np.ndarray], kinds: Tissues) -> np.ndarray:
        """Return the boxes around the cells of each labelled disc, shape (6, 4), in fractions of the side."""
        middles = self.column.discs[: len(LEVELS)].mean(1)
        canvas = Canvas(self.column, 0, self.protocol.fov / _SIDE, self._corner, self.protocol.turn)
        centres = canvas.place(self.column.points(np.stack([middles, np.zeros_like(middles)], 1)))
        reach = _SEARCH * _SIDE / self.protocol.fov
        boxes = np.zeros((len(LEVELS), 4))
        for number, centre in enumerate(centres):
            left, top = (int(v) for v in np.clip(np.floor(centre - reach), 0, _SIDE - 1))
            right, bottom = (int(v) for v in np.clip(np.ceil(centre + reach), 1, _SIDE))
            table = np.zeros((1, 256), np.uint8)
            table[0, list(kinds.disc(number))] = 1
            seen: Any = np.zeros((bottom - top, right - left), np.uint8)
            for tissue in maps:
                part = cv2.LUT(np.ascontiguousarray(tissue[top:bottom, left:right]), table)
                seen = cv2.bitwise_or(seen, part)
            x, y, width, height = cv2.boundingRect(seen)
            boxes[number] = left + x, top + y, left + x + width, top + y + height
        return boxes / _SIDE
