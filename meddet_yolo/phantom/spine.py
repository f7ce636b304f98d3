"""Canal, vertebrae and discs, drawn over the surroundings.

Control points are (s, d) in the column's coordinates, in millimetres of an average adult.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meddet_yolo.phantom.anatomy import LEVELS, Anatomy
from meddet_yolo.phantom.drawing import Canvas
from meddet_yolo.phantom.shapes import body_outline, bulge_shape, ellipse, profile
from meddet_yolo.phantom.tissues import Plane, Tissues

_S = np.arange(-110.0, 215.0, 1.5)  # samples along the canal
# The canal's size along the column against C4's.
_CANAL = [(-110, 1.5), (-44, 1.5), (-30, 1.36), (-12, 1.2), (10, 1.06), (40, 1.0), (80, 0.98), (110, 1.02), (215, 1.08)]
_SPINOUS_HEIGHT = (6.2, 4.0, 3.9, 4.1, 4.7, 5.6, 5.4, 5.2, 5.0, 5.0, 5.0)  # half heights, C2 to T5


def draw_column(canvas: Canvas, plane: Plane, t: Tissues) -> None:
    """Draw canal, vertebrae and discs over the surroundings."""
    seed = canvas.column.anatomy.details
    _canal(canvas, plane, t)
    _posterior_elements(canvas, plane, t, np.random.default_rng([seed, 4]))
    _bodies(canvas, t, np.random.default_rng([seed, 5]))
    _discs(canvas, plane, t)


def _canal(canvas: Canvas, plane: Plane, t: Tissues) -> None:
    """Ligaments, epidural fat, fluid and cord; the discs push the fluid and the cord aside."""
    a, column = canvas.column.anatomy, canvas.column
    s = _S
    z = plane.z(s)
    wall = column.rear_wall(s)
    discs = column.discs.mean(1)
    worn = np.array([d.degeneration for d in a.discs])
    # Canal and cord from front to back in the middle, then at the slice's distance from it.
    size = a.canal * profile(s, _CANAL)
    size = size * np.sqrt(np.clip(1.0 - (z / 13.0) ** 2, 0.3, 1.0))
    cord = a.cord * profile(
        s,
        [(-110, 2.0), (-72, 1.9), (-60, 1.65), (-48, 1.3), (-32, 1.06), (0, 1.02), (45, 1.04), (75, 0.98), (100, 0.88),
         (215, 0.86)],
    )  # fmt: skip
    half_width = profile(s, [(-110, 14), (-60, 10), (-40, 7.5), (0, 6.6), (45, 7.2), (80, 6.6), (110, 5.4), (215, 5.0)])
    cord = cord * np.sqrt(np.clip(1.0 - (z / half_width) ** 2, 0.0, 1.0))
    # The yellow ligament thickens with wear at the level of a disc.
    flavum = np.zeros_like(s)
    for place, wear in zip(discs, worn, strict=True):
        flavum += (0.5 + 1.5 * wear**2) * np.exp(-0.5 * ((s - place - 1.0) / 3.5) ** 2)
    bulge = column.bulge(s, z)
    front = wall + 1.1 + np.maximum(bulge - 0.5, 0.0)
    rear = wall + 0.6 + size - flavum
    rear = np.maximum(rear, front + 2.0)
    canvas.band(s[s > -42], (wall - 0.4)[s > -42], (rear + 2.0)[s > -42], t.ligament)
    canvas.band(s, front, rear, t.csf)

    middle = wall + 1.1 + cord / 2 + a.cord_place * np.maximum(size - 1.1 - cord, 0.0)
    middle += profile(s, [(-110, -4.0), (-70, -3.0), (-50, 0.0), (-35, 1.0), (-10, 0.0), (215, 0.0)])
    # A pressed cord first moves back, then is flattened; it bends softly.
    soft = np.array([0.06, 0.24, 0.4, 0.24, 0.06])
    cord_front = np.maximum(front + 0.35, middle - cord / 2)
    cord_front = np.maximum(cord_front, np.convolve(np.pad(cord_front, 2, mode="edge"), soft, mode="valid"))
    pushed = cord_front - (middle - cord / 2)
    cord_rear = np.minimum(middle + cord / 2 + 0.7 * pushed, rear - 0.45)
    cord_rear = np.minimum(np.maximum(cord_rear, cord_front + 0.55 * cord), rear - 0.2)
    seen = cord > 0.8
    if seen.any():
        first, last = np.flatnonzero(seen)[[0, -1]]
        part = slice(first, last + 1)
        canvas.band(s[part], cord_front[part], cord_rear[part], t.cord)
        squeezed = (cord_rear - cord_front) / np.maximum(cord, 0.1) < 0.66
        for number, disc in enumerate(a.discs[: len(LEVELS)]):
            at = discs[number] + disc.wander
            hit = squeezed & (np.abs(s - at) < 3.0)
            if disc.grade == 3 and disc.degeneration > 0.55 and hit.any():  # oedema of the cord
                centre = float(np.interp(at, s, 0.5 * (cord_front + cord_rear)))
                canvas.fill(ellipse(at, centre, 5.0, 0.9), t.lesion)


@dataclass(frozen=True)
class _SpinousProcess:
    """A spinous process: a beam from the rear of the canal, falling to the back."""

    s: float  # its root
    d: float
    length: float
    fall: float  # millimetres down per millimetre back
    bend: float
    thick: float
    tip: float

    @classmethod
    def draw(
        cls, a: Anatomy, number: int, s: float, d: float, plane: Plane, rng: np.random.Generator
    ) -> _SpinousProcess:
        """Draw the process of a vertebra, C2 being number 0; away from the midline little of it is left."""
        aside = float(plane.z(np.array(s))) + rng.normal(0.0, 1.1)  # few of them stand straight
        seen = float(np.clip(1.35 - abs(aside) / (3.2 if number else 5.0), 0.0, 1.0))
        under_skin = a.neck_back + min(0.1 * s, 8.0) - 1.2 * a.fat_back - 5.0
        length = max(min(a.spinous_length[number] * (0.35 + 0.65 * seen), under_skin - d), 5.0)
        thick = _SPINOUS_HEIGHT[number] * rng.uniform(0.85, 1.12)
        tip = thick * (rng.uniform(0.9, 1.35) if number < 6 else rng.uniform(0.7, 1.1))
        return cls(s, d, length, a.spinous_fall[number], rng.uniform(-0.006, 0.012), thick, tip)

    def outline(self, grow: float) -> np.ndarray:
        """Return control points of the outline with a margin."""
        half = (
            np.array([0.56 * self.thick, 0.68 * self.thick, 0.62 * self.thick, 0.82 * self.tip, 0.45 * self.tip]) + grow
        )
        along = np.array([0.0, 0.15, 0.5, 0.84, 1.0]) * self.length
        along[0] -= grow
        along[-1] += grow
        middle = self.s + self.fall * along + self.bend * along**2
        upper, lower = (np.stack([middle + side * half, self.d + along], 1) for side in (-1, 1))
        return np.concatenate([upper, lower[::-1]])


def _posterior_elements(canvas: Canvas, plane: Plane, t: Tissues, rng: np.random.Generator) -> None:
    """Spinous processes with the fat and ligaments between them, and the arches of the atlas."""
    column = canvas.column
    middles = column.bodies.mean(1)
    rear = column.rear_wall(_S) + 0.6 + column.anatomy.canal * np.interp(_S, *np.array(_CANAL).T)
    processes = []
    for number, middle in enumerate(middles):
        s = float(middle + (3.5 if number else 7.0) + 0.012 * max(middle, 0.0))
        processes.append(
            _SpinousProcess.draw(column.anatomy, number, s, float(np.interp(s, _S, rear)) + 0.9, plane, rng)
        )
    tips = [(p.s + p.fall * p.length, p.d + p.length) for p in processes]
    for number in range(len(tips) - 1):  # fat behind the canal, then ligament and muscle between the processes
        (s1, d1), (s2, d2) = tips[number], tips[number + 1]
        between = 0.5 * (middles[number] + middles[number + 1]) + 3.0
        d0 = float(np.interp(between, _S, rear))
        deep = 0.7 * min(d1, d2) + 0.3 * d0
        canvas.blob([(between - 4, d0 + 1.5), (between + 5, d0 + 1.5), (0.4 * s1 + 0.6 * s2, deep),
                     (0.6 * s1 + 0.4 * s2, deep)], t.soft)  # fmt: skip
        for _ in range(4):
            share = rng.uniform(0.15, 0.9)
            across = d0 + share * (deep - d0)
            centre = between + 0.45 * (across - d0) * rng.uniform(0.8, 1.2)
            canvas.line(
                [(centre - 4, across - 1), (centre + 4, across + rng.uniform(0, 3))], rng.uniform(0.5, 1.3), t.septum
            )
        canvas.blob([(between - 4.5, d0 + 0.6), (between + 0.5, d0 + 0.4), (between + 5.0, d0 + 0.8),
                     (between + 1, d0 + 4.2)], t.epidural if number else t.ligament)  # fmt: skip
    for number, process in enumerate(processes):
        canvas.blob(process.outline(0.6), t.cortex)
        canvas.blob(process.outline(-0.1), t.marrow[number])
    # Atlas: front arch before the dens, rear arch behind the canal.
    d = float(np.interp(-29.0, _S, rear))
    canvas.fill(ellipse(-27.5, d + 4.0, 4.6, 3.8), t.cortex)
    canvas.fill(ellipse(-27.5, d + 4.0, 3.5, 2.8), t.marrow[0])
    canvas.blob([(-41, d - 3), (-33, d + 1), (-33, d + 6), (-40, d + 10)], t.soft)
    canvas.blob([(-22, d + 0), (-14, d - 2), (-14, d + 6), (-21, d + 8)], t.soft)


def _bodies(canvas: Canvas, t: Tissues, rng: np.random.Generator) -> None:
    """Vertebral bodies, the axis with its dens, and the atlas before it."""
    a, column = canvas.column.anatomy, canvas.column
    heights = np.diff(column.bodies, axis=1)[:, 0]
    middles = column.bodies.mean(1)
    s = np.arange(-12.0, 200.0, 3.0)
    front_wall = np.interp(s, middles, np.array(a.slip) - 0.5 * column.depths)
    canvas.band(s, front_wall - 0.6 - a.ligament, front_wall + 1.0, t.ligament)
    canvas.blob([(-40, -9), (-34, -5.5), (-22, -6), (-15, -9), (-20, -13), (-30, -15), (-38, -14)], t.soft)
    canvas.blob([(-46, -3), (-38, -7), (-40, 3), (-44, 4)], t.deep_fat)
    canvas.blob(_axis(column.depths[0], 0.75), t.cortex)
    canvas.blob(_axis(column.depths[0], -0.1), t.marrow[0])
    canvas.line([(-17.5, -4.5), (-18, 0.5), (-17.5, 5.0)], 0.7, t.ligament)  # remnant of the dens's joint
    canvas.fill(ellipse(-29.5, -9.6, 5.6, 3.6, 0.12), t.cortex)
    canvas.fill(ellipse(-29.5, -9.6, 4.5, 2.6, 0.12), t.marrow[0])
    # C3 to T5.
    for number in range(1, len(middles)):
        above = a.discs[number - 1].degeneration
        below = a.discs[number].degeneration if number < len(a.discs) else 0.0
        size = (heights[number], column.depths[number])
        waist, lip = 0.55 + 0.25 * rng.random(), 2.0 * max(above, below, 0.15) ** 2
        place = np.array([middles[number], a.slip[number]])
        canvas.blob(body_outline(*size, waist, lip, 0.62) + place, t.cortex)
        canvas.blob(body_outline(*size, waist, lip, -0.18) + place, t.marrow[number])
        for disc, side in ((number - 1, -1.0), (number, 1.0)):
            if disc < len(a.discs):
                edge, half = side * 0.5 * heights[number], 0.5 * column.depths[number]
                inner = edge - side * (a.discs[disc].endplate + 0.5)
                plate = np.array([(edge, -half), (edge, half), (inner, 0.8 * half), (inner, -0.8 * half)])
                canvas.fill(plate + place, t.cortex)
            if disc < len(a.discs) and a.marrow_patch[disc]:
                edge = side * (0.5 * heights[number] - 1.9)
                patch = ellipse(edge, rng.uniform(-2, 2), 1.3, 0.36 * column.depths[number])
                canvas.fill(patch + place, t.patch[disc])
        # Vein that leaves the body in the middle of its rear wall.
        d = 0.5 * column.depths[number] - 0.8
        deep = rng.uniform(1.5, 4.0)
        vein = np.array([(-0.5, d), (-0.15, d - deep), (0.15, d - deep), (0.5, d)])
        place[0] += rng.normal(0, 0.4)
        canvas.fill(vein + place, t.vein if rng.random() < 0.6 else t.ligament)


def _axis(depth: float, g: float) -> np.ndarray:
    """Return control points of the outline of the axis, body and dens, grown by `g`."""
    front, back = -0.5 * depth, 0.5 * depth
    return np.array([(g, front - 1.2 - g), (-2.5, front - g), (-10, front + 0.8 - g), (-17, front + 2.6 - g),
                  (-22, -5.2 - g), (-30, -4.6 - g), (-36.5, -3.6 - g), (-39.2 - g, 0.4), (-36.5, 4.2 + g),
                  (-30, 5.0 + g), (-22, 6.0 + g), (-14, back - 0.6 + g), (-5, back - 0.7 + g), (g - 0.2, back + g),
                  (g - 0.6, 0.4 * back), (g - 0.9, 0.3 * front)])  # fmt: skip


def _discs(canvas: Canvas, plane: Plane, t: Tissues) -> None:
    """Discs between the endplates: outer ring, inner ring, nucleus, and what stands out behind."""
    column = canvas.column
    for number, (disc, (top, bottom)) in enumerate(zip(column.anatomy.discs, column.discs, strict=True)):
        middle, half = 0.5 * (top + bottom), 0.5 * (bottom - top)
        depth = 0.5 * (column.depths[number] + column.depths[number + 1])
        slip = 0.5 * (column.anatomy.slip[number] + column.anatomy.slip[number + 1])
        front = slip - 0.5 * depth - 0.35 - disc.front
        rear = slip + 0.5 * depth
        h = max(half - 0.42, 0.9)
        flat = np.array([(middle - 0.80 * h, front + 0.2), (middle - 1.12 * h, front + 0.35 * depth),
                         (middle - 1.10 * h, rear - 0.35 * depth), (middle - 0.85 * h, rear - 0.3),
                         (middle - 0.4 * h, rear + 0.25), (middle + 0.4 * h, rear + 0.25),
                         (middle + 0.85 * h, rear - 0.3), (middle + 1.10 * h, rear - 0.35 * depth),
                         (middle + 1.12 * h, front + 0.35 * depth), (middle + 0.80 * h, front + 0.2),
                         (middle, front - 0.5)])  # fmt: skip
        canvas.blob(flat, t.annulus[number])
        for size, tissue in ((1.0, t.inner), (0.86, t.transition), (0.66, t.nucleus)):
            canvas.fill(
                _cushion(middle, slip + 0.03 * depth, size * 0.92 * h, (0.30 + 0.12 * size) * depth), tissue[number]
            )
        if disc.degeneration < 0.2 and disc.nucleus > 0.45:  # cleft of a young nucleus
            canvas.line([(middle, slip - 0.2 * depth), (middle + 0.1, slip + 0.2 * depth)], 0.35, t.transition[number])
        _protrusion(canvas, plane, t, number, rear)


def _cushion(s: float, d: float, rs: float, rd: float) -> np.ndarray:
    """Return the outline of a flat cushion, fuller at its ends than an ellipse."""
    angle = np.linspace(0.0, 2 * np.pi, 28, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([s + rs * np.sign(cos) * np.abs(cos) ** 0.8, d + rd * np.sign(sin) * np.abs(sin) ** 0.8], 1)


def _protrusion(canvas: Canvas, plane: Plane, t: Tissues, number: int, rear: float) -> None:
    """Draw what a disc has behind the line between the rear walls, inside a dark rim of ligament."""
    column = canvas.column
    disc = column.anatomy.discs[number]
    top, bottom = column.discs[number]
    middle = 0.5 * (top + bottom)
    z = float(plane.z(np.array(middle)))
    depth = disc.bulge * float(np.exp(-0.5 * ((z - disc.lateral) / disc.spread) ** 2))
    if depth < 0.15:
        return
    half, at = 0.5 * disc.reach, middle + disc.wander
    if disc.extrusion:  # a neck at the disc, a wider head behind it
        neck = 0.38 * (bottom - top)
        canvas.fill(ellipse(at, rear + 0.55 * depth, half + 0.5, 0.47 * depth + 0.5), t.ligament)
        canvas.fill(np.array([(middle - neck, rear - 0.6), (middle + neck, rear - 0.6),
                              (at + 0.5 * half, rear + 0.5 * depth), (at - 0.5 * half, rear + 0.5 * depth)]),
                    t.hernia[number])  # fmt: skip
        canvas.fill(ellipse(at, rear + 0.55 * depth, half, 0.47 * depth), t.hernia[number])
        return
    across = np.linspace(-1.0, 1.0, 13)
    dome = bulge_shape(np.abs(across))
    for grow, tissue in ((0.5, t.ligament), (0.0, t.hernia[number])):
        s, d = at + across * (half + grow), rear - 0.1 + (depth + grow) * dome
        canvas.fill(np.concatenate([np.stack([s, d], 1), np.array([(s[-1], rear - 0.6), (s[0], rear - 0.6)])]), tissue)
