"""Drawing a slice: outlines in the column's coordinates become a map of tissues on a fine grid.

Every tissue has a number in that map and a row in a `Palette`: its signal, how much of it is fat, and its texture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from meddet_yolo.phantom.shapes import Column, smooth_closed

_TO_THE_SIDE = np.array([-1.0, 1.0])
_FRACTION_BITS = 4  # outlines are placed to a sixteenth of a grid cell


@dataclass
class Palette:
    """What the numbers of a tissue map mean; number 0 is air."""

    signal: list[float] = field(default_factory=lambda: [0.0])  # relative to cerebrospinal fluid
    fat: list[float] = field(default_factory=lambda: [0.0])  # share of the signal that fat gives
    grain: list[float] = field(default_factory=lambda: [0.0])  # strength of three textures, relative to the signal
    blotch: list[float] = field(default_factory=lambda: [0.0])
    fibre: list[float] = field(default_factory=lambda: [0.0])

    def add(
        self, signal: float, fat: float = 0.0, grain: float = 0.04, blotch: float = 0.04, fibre: float = 0.0
    ) -> int:
        """Add a tissue and return its number."""
        for values, value in (
            (self.signal, signal), (self.fat, fat), (self.grain, grain), (self.blotch, blotch), (self.fibre, fibre)
        ):  # fmt: skip
            values.append(value)
        if len(self.signal) > 256:
            raise ValueError("a tissue map holds 256 tissues at most")
        return len(self.signal) - 1

    def table(self, values: list[float]) -> np.ndarray:
        """Return one of the columns as a lookup table for `cv2.LUT`, shape (1, 256)."""
        return np.pad(np.array(values), (0, 256 - len(values)))[None]


class Canvas:
    """A tissue map over a square of the patient's sagittal plane.

    Outlines are collected and filled when `map` is read: placing many points at once is far cheaper than outline by
    outline.
    """

    def __init__(
        self,
        column: Column,
        side: int,
        cell: float,
        corner: tuple[float, float],
        turn: float,
        base: np.ndarray | None = None,
    ) -> None:
        """Start with air or a copy of another map.

        Args:
            column: The patient's column, in whose coordinates everything is drawn.
            side: Number of cells along a side.
            cell: Width of a cell in millimetres.
            corner: (x, y) of the upper left corner, before the square is turned about the patient's origin.
            turn: Angle of the square in radians.
            base: Tissue map to draw over, uint8 of shape (side, side).
        """
        self.column = column
        self._map = np.zeros((side, side), np.uint8) if base is None else base.copy()
        self._cell, self._corner, self._turn = cell, np.array(corner), (np.cos(turn), np.sin(turn))
        self._waiting: list[tuple[np.ndarray, bool, int]] = []  # outline, whether to smooth it, tissue

    @property
    def map(self) -> np.ndarray:
        """The tissue map, uint8 of shape (side, side)."""
        if self._waiting:
            outlines = smooth_closed([o for o, smooth, _ in self._waiting if smooth])
            outlines.reverse()
            ordered = [outlines.pop() if smooth else o for o, smooth, _ in self._waiting]
            # OpenCV's fixed-point numbers put (0, 0) into the middle of the first cell.
            cells = np.clip(self.place(self.column.points(np.concatenate(ordered))) - 0.5, -4000.0, 8000.0)
            fixed = np.round(cells * (1 << _FRACTION_BITS)).astype(np.int32)
            start = 0
            for outline, (_, _, tissue) in zip(ordered, self._waiting, strict=True):
                stop = start + len(outline)
                cv2.fillPoly(self._map, [fixed[start:stop]], tissue, cv2.LINE_8, _FRACTION_BITS)
                start = stop
            self._waiting.clear()
        return self._map

    def place(self, xy: np.ndarray) -> np.ndarray:
        """Return points of the patient's plane, shape (N, 2), as (column, row) in cells; (0, 0) is a corner."""
        cos, sin = self._turn
        turned = np.stack([xy[:, 0] * cos - xy[:, 1] * sin, xy[:, 0] * sin + xy[:, 1] * cos], 1)
        return (turned * self.column.anatomy.scale - self._corner) / self._cell

    def fill(self, outline: np.ndarray, tissue: int) -> None:
        """Fill an outline given in the column's coordinates (s, d), shape (N, 2)."""
        self._waiting.append((outline, False, tissue))

    def blob(self, controls: Sequence[Any] | np.ndarray, tissue: int) -> None:
        """Fill the smooth closed curve through control points (s, d)."""
        self._waiting.append((np.asarray(controls, float), True, tissue))

    def band(self, s: np.ndarray, front: np.ndarray, rear: np.ndarray, tissue: int) -> None:
        """Fill what lies between two lines along the column."""
        outline = np.concatenate([np.stack([s, front], 1), np.stack([s, rear], 1)[::-1]])
        self.fill(outline, tissue)

    def line(self, controls: Sequence[Any] | np.ndarray, width: float, tissue: int) -> None:
        """Draw a smooth line through control points (s, d), `width` millimetres wide."""
        points = np.asarray(controls, float)
        ahead = np.empty_like(points)
        ahead[0], ahead[-1], ahead[1:-1] = points[1] - points[0], points[-1] - points[-2], points[2:] - points[:-2]
        half = (0.5 * width / np.hypot(ahead[:, 0], ahead[:, 1]))[:, None] * ahead[:, ::-1] * _TO_THE_SIDE
        self._waiting.append((np.concatenate([points + half, (points - half)[::-1]]), True, tissue))
