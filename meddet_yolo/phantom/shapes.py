"""The column as a curve, and smooth outlines in its coordinates.

Coordinates along the column: `s` runs down the bodies' centre line from the lower endplate of C2, `d` runs across it,
positive to the back. Points in the patient's sagittal plane are (x to the back, y to the feet). All in millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from meddet_yolo.phantom.anatomy import Anatomy

_FIRST, _LAST = -150.0, 270.0  # the curve's ends


@dataclass(frozen=True)
class Column:
    """The bodies' centre line of one patient, and where bodies and discs lie on it."""

    anatomy: Anatomy

    @cached_property
    def discs(self) -> np.ndarray:
        """Upper and lower end of each disc as `s`, shape (10, 2)."""
        heights = np.array([d.height for d in self.anatomy.discs])
        tops = np.concatenate([[0.0], np.cumsum(heights[:-1] + np.array(self.anatomy.body_height[:-1]))])
        return np.stack([tops, tops + heights], 1)

    @cached_property
    def bodies(self) -> np.ndarray:
        """Upper and lower end of each body from C2 to T5 as `s`, shape (11, 2); C2 without its dens."""
        ends = self.discs[:, 1] + np.array(self.anatomy.body_height)
        return np.stack([np.concatenate([[-19.0], self.discs[:, 1]]), np.concatenate([[0.0], ends])], 1)

    @cached_property
    def depths(self) -> np.ndarray:
        """Depth of the bodies from C2 to T5, shape (11,)."""
        depths = np.array(self.anatomy.body_depth)
        return np.concatenate([[depths[0] * 0.99], depths])

    @cached_property
    def _line(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Samples of s, lean, x and y every millimetre; (x, y) is the origin at s = 0."""
        s = np.arange(_FIRST, _LAST + 1.0)
        c5, t1, t5 = self.bodies[3].mean(), self.bodies[6].mean(), self.bodies[10].mean()
        lean = np.interp(s, [-10.0, c5, t1, t5], self.anatomy.tilts)
        box = np.ones(25) / 25  # the knots must not show
        lean = np.convolve(np.pad(lean, 24, mode="edge"), np.convolve(box, box), mode="valid")
        x, y = np.cumsum(np.sin(lean)), np.cumsum(np.cos(lean))
        origin = int(-_FIRST)
        return s, lean, x - x[origin], y - y[origin]

    def points(self, sd: np.ndarray) -> np.ndarray:
        """Return (x, y) of points (s, d), both of shape (N, 2)."""
        s, lean, x, y = self._line
        at = sd[:, 0]
        angle = np.interp(at, s, lean)
        out = np.empty_like(sd)
        out[:, 0] = np.interp(at, s, x) + sd[:, 1] * np.cos(angle)
        out[:, 1] = np.interp(at, s, y) - sd[:, 1] * np.sin(angle)
        return out

    def rear_wall(self, s: np.ndarray) -> np.ndarray:
        """Return the `d` of the line along the bodies' rear walls."""
        middles = self.bodies.mean(1)
        depth = np.interp(s, np.concatenate([[-36.0, -22.0], middles]), np.concatenate([[10.4, 13.5], self.depths]))
        slip = np.interp(s, middles, np.array(self.anatomy.slip))
        return 0.5 * depth + slip

    def bulge(self, s: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return how far the discs reach behind that line, for positions `s` and sideways offsets `z`."""
        out = np.zeros_like(s)
        for disc, (top, bottom) in zip(self.anatomy.discs, self.discs, strict=True):
            middle = 0.5 * (top + bottom) + disc.wander
            t = np.clip(np.abs(s - middle) / (0.5 * disc.reach), 0.0, 1.0)
            depth = disc.bulge * np.exp(-0.5 * ((z - disc.lateral) / disc.spread) ** 2)
            out = np.maximum(out, depth * bulge_shape(t))
        return out


def bulge_shape(t: np.ndarray) -> np.ndarray:
    """Return the height, 0 to 1, of what stands out of a disc at `t`, 0 in its middle and 1 at its edge."""
    return np.clip(1.0 - t**2.4, 0.0, None) ** 0.8


def profile(s: np.ndarray, knots: Sequence[tuple[float, float]]) -> np.ndarray:
    """Interpolate smoothly through (s, value) knots."""
    at, values = np.array(knots).T
    box = np.ones(9) / 9
    line = np.interp(s, at, values)
    return np.convolve(np.pad(line, 4, mode="edge"), box, mode="valid")


def smooth_closed(controls: Sequence[np.ndarray], steps: int = 5) -> list[np.ndarray]:
    """Return closed Catmull-Rom curves.

    Args:
        controls: Control points of each curve, shape (N, 2).
        steps: Samples from one control point to the next.

    Returns:
        The curves, each of shape (N * steps, 2), starting with the first control point.
    """
    if not controls:
        return []
    rings = [np.concatenate([c[-1:], c, c[:2]]) for c in controls]
    p0, p1, p2, p3 = (np.concatenate([r[i : len(r) - 3 + i] for r in rings])[:, None] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    curve = curve.reshape(-1, 2)
    ends = np.cumsum([len(c) * steps for c in controls])
    return [curve[end - len(c) * steps : end] for c, end in zip(controls, ends, strict=True)]


def ellipse(s: float, d: float, rs: float, rd: float, turn: float = 0.0, points: int = 28) -> np.ndarray:
    """Return an ellipse's outline in (s, d), turned by `turn` radians."""
    angle = np.linspace(0.0, 2 * np.pi, points, endpoint=False)
    a, b = rs * np.cos(angle), rd * np.sin(angle)
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack([s + a * cos - b * sin, d + a * sin + b * cos], 1)


def body_outline(height: float, depth: float, waist: float, lip: float, grow: float = 0.0) -> np.ndarray:
    """Return control points of a vertebral body's outline around its middle, as (s, d).

    Args:
        height: From endplate to endplate at the rim.
        depth: From front to rear wall at the rim.
        waist: How much the walls are drawn in halfway.
        lip: How far bony spurs stand out at the four corners.
        grow: Width of a margin all round.

    Returns:
        Points of shape (N, 2).
    """
    h, w = 0.5 * height + grow, 0.5 * depth + grow
    cup = 0.35 + 0.02 * height  # the endplates are hollow
    front = w + lip
    rear = w + 0.45 * lip
    return np.array(
            [
                [-h + 0.15, -front], [-h, -0.80 * w], [-h + cup, -0.35 * w], [-h + cup, 0.30 * w], [-h, 0.82 * w],
                [-h + 0.2, rear], [-0.55 * h, w - 0.6 * waist], [0.0, w - waist], [0.55 * h, w - 0.6 * waist],
                [h - 0.2, rear], [h, 0.82 * w], [h - cup, 0.35 * w], [h - cup, -0.25 * w], [h + 0.1, -0.78 * w],
                [h + 0.25, -front], [0.55 * h, -w + 0.7 * waist], [0.0, -w + 1.2 * waist],
                [-0.55 * h, -w + 0.7 * waist],
            ]
    )  # fmt: skip
