"""What lies in a sagittal slice of the neck, drawn from the skin inwards, so that later parts cover earlier ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meddet_yolo.data.phantom_anatomy import LEVELS, Anatomy
from meddet_yolo.data.phantom_drawing import Canvas, Palette
from meddet_yolo.data.phantom_shapes import body_outline, ellipse, smooth_closed

_S = np.arange(-110.0, 215.0, 1.5)  # samples along the canal


@dataclass(frozen=True)
class Tissues:
    """Numbers of the tissues in a tissue map."""

    skin: int
    fat: int
    deep_fat: int
    muscle: int
    soft: int
    septum: int
    cortex: int
    ligament: int
    csf: int
    cord: int
    lesion: int
    brain: int
    tongue: int
    streak: int
    mucosa: int
    vessel: int
    epidural: int
    vein: int
    marrow: tuple[int, ...]  # C2 to T5
    patch: tuple[int, ...]  # marrow beside each disc
    annulus: tuple[int, ...]  # of each disc, as are the next four
    inner: tuple[int, ...]
    transition: tuple[int, ...]
    nucleus: tuple[int, ...]
    hernia: tuple[int, ...]

    def disc(self, number: int) -> tuple[int, ...]:
        """Return all numbers that belong to one disc."""
        return (
            self.annulus[number],
            self.inner[number],
            self.transition[number],
            self.nucleus[number],
            self.hernia[number],
        )


def tissues(anatomy: Anatomy, palette: Palette) -> Tissues:
    """Add a patient's tissues to a palette."""
    bright = anatomy.brightness
    add, fat = palette.add, bright["fat"]
    annulus = bright["annulus"]
    marrow_grain = {"fat": 0.45, "grain": 0.07, "blotch": 0.07}
    return Tissues(
        skin=add(0.40, grain=0.1),
        fat=add(fat, fat=1.0, grain=0.03, blotch=0.05),
        deep_fat=add(0.62 * fat, fat=0.9, grain=0.15, blotch=0.30, fibre=0.25),
        muscle=add(bright["muscle"], fat=0.1, grain=0.12, blotch=0.16, fibre=0.30),
        soft=add(1.5 * bright["muscle"], fat=0.2, grain=0.12, blotch=0.16),
        septum=add(0.45 * fat, fat=0.8, grain=0.15, blotch=0.25),
        cortex=add(0.035, grain=0.0, blotch=0.0),
        ligament=add(bright["ligament"], grain=0.1),
        csf=add(1.0, grain=0.015, blotch=0.03 + 0.22 * bright["flow"], fibre=0.12 * bright["flow"]),
        cord=add(bright["cord"], grain=0.025, blotch=0.02, fibre=0.03),
        lesion=add(1.5 * bright["cord"], grain=0.04, blotch=0.08),
        brain=add(bright["brain"], grain=0.05, blotch=0.05),
        tongue=add(bright["tongue"], fat=0.3, grain=0.10, blotch=0.12),
        streak=add(0.6 * bright["tongue"] + 0.1 * fat, fat=0.5, grain=0.12, blotch=0.30),
        mucosa=add(bright["mucosa"], grain=0.10, blotch=0.15),
        vessel=add(0.03, grain=0.0, blotch=0.0),
        epidural=add(0.85 * fat, fat=1.0),
        vein=add(0.62, grain=0.15),
        marrow=tuple(add(m, **marrow_grain) for m in anatomy.marrow),
        patch=tuple(
            add(anatomy.marrow[min(n, 10)] * (1 + p), **marrow_grain) for n, p in enumerate(anatomy.marrow_patch)
        ),
        annulus=tuple(add(annulus, grain=0.08, blotch=0.12) for _ in anatomy.discs),
        inner=tuple(add(0.68 * annulus + 0.32 * d.nucleus, grain=0.08, blotch=0.16) for d in anatomy.discs),
        transition=tuple(add(0.35 * annulus + 0.65 * d.nucleus, grain=0.08, blotch=0.16) for d in anatomy.discs),
        nucleus=tuple(add(max(d.nucleus, annulus), grain=0.08, blotch=0.16) for d in anatomy.discs),
        hernia=tuple(
            add(0.75 * annulus + (0.45 if d.extrusion else 0.22) * d.nucleus, grain=0.08, blotch=0.12)
            for d in anatomy.discs
        ),
    )


@dataclass(frozen=True)
class Plane:
    """Where a slice lies: its distance from the mid-sagittal plane at the lower endplate of C2, and its obliquity."""

    offset: float  # millimetres to the patient's side
    slope: float  # millimetres to the side per millimetre down the column

    def z(self, s: np.ndarray) -> np.ndarray:
        """Return the distance from the mid-sagittal plane along the column."""
        return self.offset + self.slope * (s - 50.0)


def draw_surroundings(canvas: Canvas, plane: Plane, t: Tissues) -> None:
    """Draw head and neck without the column: what changes little through the thickness of a slice."""
    rng = np.random.default_rng([canvas.column.anatomy.details, 0])
    _neck(canvas, t, rng)
    _nape(canvas, plane, t, rng)
    _skull(canvas, t, rng)
    _throat(canvas, plane, t, rng)


def draw_column(canvas: Canvas, plane: Plane, t: Tissues) -> None:
    """Draw canal, vertebrae and discs over the surroundings."""
    rng = np.random.default_rng([canvas.column.anatomy.details, 1])
    _canal(canvas, plane, t)
    _posterior_elements(canvas, plane, t, rng)
    _bodies(canvas, t, rng)
    _discs(canvas, plane, t)


def _profile(s: np.ndarray, knots: list[tuple[float, float]]) -> np.ndarray:
    """Interpolate smoothly through (s, value) knots."""
    at, values = np.array(knots).T
    box = np.ones(9) / 9
    line = np.interp(s, at, values)
    return np.convolve(np.pad(line, 4, mode="edge"), box, mode="valid")


def _neck(canvas: Canvas, t: Tissues, rng: np.random.Generator) -> None:
    """Skin, subcutaneous fat and what lies under it."""
    a = canvas.column.anatomy
    s = np.arange(-140.0, 260.0, 4.0)
    wave = rng.normal(0.0, 0.8, 8)
    back = a.neck_back
    rear = _profile(
        s,
        [(-140, 118), (-100, 112), (-70, 101 + wave[0]), (-40, 86 + 0.3 * (back - 60)), (-5, back + 4 + wave[1]),
         (30, back + wave[2]), (60, back + 2 + wave[3]), (100, back + 10 + wave[4]), (140, back + 8), (260, back - 4)],
    )  # fmt: skip
    front_d = a.neck_front
    front = -_profile(
        s,
        [(-140, 118), (-60, 116), (-30, 112), (-14, 106), (0, 106), (12, 104), (22, 92), (32, front_d + 12),
         (48, front_d + 1), (75, front_d - 4), (100, front_d - 5), (125, front_d - 4), (150, front_d + 4),
         (260, front_d + 26)],
    )  # fmt: skip
    thick = a.fat_back * _profile(s, [(-140, 0.45), (-60, 0.5), (0, 0.8), (60, 1.1), (100, 1.5), (150, 1.15), (260, 1)])
    thin = a.fat_front * _profile(s, [(-140, 0.8), (10, 0.9), (25, 1.5), (60, 0.8), (110, 0.9), (260, 1.2)])
    canvas.band(s, front, rear, t.skin)
    canvas.band(s, front + 1.7, rear - 2.0, t.fat)
    canvas.band(s, front + thin + 1.7, rear - thick - 2.0, t.muscle)
    canvas.band(s, front + thin + 1.7, 0.0 * s, t.soft)
    for share in rng.uniform(0.25, 0.8, 3):  # septa in the fat
        start, length = rng.uniform(-40, 120), rng.uniform(25, 60)
        at = np.linspace(start, start + length, 5)
        depth = np.interp(at, s, rear - 2.0 - share * thick) + rng.normal(0, 0.05, 5) * a.fat_back
        canvas.line(np.stack([at, depth], 1), 0.5, t.septum)


def _nape(canvas: Canvas, plane: Plane, t: Tissues, rng: np.random.Generator) -> None:
    """Fat and muscles between the spinous processes and the skin, and the nuchal ligament."""
    a = canvas.column.anatomy
    back = a.neck_back - a.fat_back - 2.0
    # Near the midline there is much fat between the muscles of both sides.
    s = np.arange(-30.0, 230.0, 4.0)
    inner = _profile(s, [(-30, 30), (0, 32), (40, 26), (75, 34), (110, 44), (150, 46), (230, 44)])
    mid = inner + (back - inner) * 0.45
    canvas.band(s, np.full_like(s, 12.0), inner + 3, t.deep_fat)
    layers = 5
    for layer in range(layers):
        share = (layer + rng.uniform(0.2, 0.8)) / layers
        start = rng.uniform(-30, 10) - 6 * layer
        at = np.linspace(start, rng.uniform(110, 200), 9)
        depth = np.interp(at, s, inner) + share * (back - 24.0) + rng.normal(0, 1.2, 9) - 0.02 * (at - 40)
        canvas.line(np.stack([at, depth], 1), rng.uniform(0.4, 0.8 + 1.8 * a.muscle_fat), t.septum)
    for _ in range(14 + int(26 * a.muscle_fat)):  # short streaks of fat along the fibres
        at, depth = rng.uniform(-15, 150), rng.uniform(24, max(back - 3, 30))
        length, fall = rng.uniform(4, 14), rng.normal(0.15, 0.2)
        points = [(at, depth), (at + 0.5 * length, depth + 0.5 * fall * length + rng.normal(0, 0.5)),
                  (at + length, depth + fall * length)]  # fmt: skip
        canvas.line(points, rng.uniform(0.4, 1.5), t.deep_fat if rng.random() < 0.6 else t.septum)
    fade = max(0.0, 1.0 - abs(plane.offset) / 4.0)
    if fade > 0.2:
        line = np.stack([np.linspace(-38, 84, 8), np.interp(np.linspace(-38, 84, 8), s, mid) - 4], 1)
        canvas.line(line + rng.normal(0, 0.6, line.shape), 1.1 * fade, t.ligament)
        canvas.line(line + np.array([0.0, 1.6]), 1.3 * fade, t.deep_fat)


def _skull(canvas: Canvas, t: Tissues, rng: np.random.Generator) -> None:
    """Clivus, occiput and what the posterior fossa holds; atlas arches are drawn with the posterior elements."""
    # Occipital squama: cortex, marrow, then the fossa inside.
    canvas.blob([(-36, 33), (-39, 46), (-47, 62), (-60, 79), (-80, 92), (-110, 100), (-150, 100), (-150, -20),
                 (-112, -40), (-90, -34), (-70, -21), (-54, -9), (-43, 0), (-41, 12), (-38, 24)], t.cortex)  # fmt: skip
    canvas.blob([(-39, 36), (-42, 48), (-50, 62), (-63, 77), (-82, 89), (-112, 96), (-150, 96), (-150, 86), (-112, 88),
                 (-84, 83), (-66, 71), (-53, 57), (-45, 46), (-42, 38)], t.deep_fat)  # fmt: skip
    canvas.blob([(-44.5, -1), (-54, -7.5), (-69, -18.5), (-89, -32), (-112, -37), (-114, -21), (-92, -13), (-72, -6),
                 (-56, -0.5), (-47, 2)], t.marrow[0])  # fmt: skip
    fossa = [(-40, 8), (-43, 4), (-56, 2.5), (-72, -2), (-92, -9), (-116, -16), (-150, -14), (-150, 82), (-112, 85),
             (-86, 80), (-68, 68), (-55, 54), (-46, 42), (-40, 31), (-36, 22)]  # fmt: skip
    canvas.blob(fossa, t.csf)
    # Cerebellum with its folia; the tonsil reaches towards the foramen magnum.
    cerebellum = [(-58, 25), (-49, 27), (-50, 36), (-57, 50), (-70, 64), (-88, 76), (-112, 80), (-150, 76), (-150, 40),
                  (-100, 38), (-84, 33), (-72, 30)]  # fmt: skip
    canvas.blob(cerebellum, t.brain)
    for start in smooth_closed(np.asarray(cerebellum), 3)[1:22]:  # folia, from the surface inwards
        inward = np.array([-80.0, 40.0]) - start
        end = start + inward * rng.uniform(0.2, 0.45)
        middle = start + 0.55 * (end - start) + rng.normal(0, 0.8, 2)
        canvas.line(np.array([start, middle, end]), rng.uniform(0.35, 0.75), t.csf)
    canvas.blob([(-66, 24), (-76, 27), (-86, 33), (-92, 29), (-84, 24), (-72, 21)], t.csf)  # fourth ventricle
    # Pons; the medulla is drawn with the cord.
    canvas.blob([(-68, 6), (-80, 0), (-94, -3), (-108, 0), (-125, 4), (-150, 4), (-150, 26), (-100, 25), (-86, 22),
                 (-72, 19)], t.brain)  # fmt: skip
    # Muscles below the occiput.
    for s0, d0, rs, rd in ((-24, 40, 10, 13), (-30, 58, 9, 13), (-12, 46, 9, 12)):
        canvas.fill(ellipse(s0 + rng.normal(0, 1), d0 + rng.normal(0, 1), rs, rd, 0.5), t.muscle)


def _throat(canvas: Canvas, plane: Plane, t: Tissues, rng: np.random.Generator) -> None:
    """Tongue, palate, jaw, pharynx, larynx and trachea."""
    a = canvas.column.anatomy
    shift = rng.normal(0.0, 2.0)  # how high the larynx stands
    near = max(0.0, 1.0 - (abs(plane.offset) / 11.0) ** 2) ** 0.5  # the airway narrows to the sides
    # Mouth: everything in front of the pharynx above the hyoid bone, then its parts.
    canvas.blob([(-70, -34), (-84, -60), (-92, -100), (-62, -104), (-58, -70), (-60, -44)], t.vessel)  # nasal cavity
    canvas.blob([(-78, -52), (-79, -75), (-80, -98), (-74, -99), (-72, -76), (-71, -54)], t.mucosa)
    canvas.blob([(-66, -48), (-67, -70), (-68, -96), (-65, -97), (-63, -70), (-62, -49)], t.mucosa)
    canvas.blob([(-53, -46), (-54, -70), (-52, -100), (-48, -101), (-48, -70), (-49, -46)], t.cortex)  # hard palate
    canvas.blob([(-51.5, -52), (-52, -70), (-50.5, -95), (-49.5, -95), (-50, -70), (-50, -52)], t.septum)
    tongue = [(-44, -62), (-43, -84), (-32, -98), (-16, -97), (0, -86), (14, -68), (18, -52), (4, -36), (-14, -32),
              (-32, -40)]  # fmt: skip
    canvas.blob(tongue, t.tongue)
    for number in range(11):  # fibres of the tongue fan out from the chin
        angle = 0.10 + 0.125 * number + rng.normal(0, 0.02)
        far = rng.uniform(38, 55)
        start = (2 - 12 * np.sin(angle), -84 + 12 * np.cos(angle))
        canvas.line([start, (2 - far * np.sin(angle), -84 + far * np.cos(angle))], rng.uniform(0.8, 2.0), t.streak)
    canvas.blob([(8, -82), (22, -58), (24, -46), (18, -46), (12, -60), (2, -82)], t.muscle)  # floor of the mouth
    canvas.blob([(-12, -106), (-2, -108), (14, -104), (20, -97), (12, -91), (-4, -94), (-14, -99)], t.cortex)  # jaw
    canvas.blob([(-9, -104), (0, -106), (12, -102), (17, -97), (11, -93.5), (-3, -96)], t.deep_fat)
    canvas.blob([(-44, -108), (-34, -106), (-24, -107), (-16, -104), (-24, -101), (-36, -101)], t.cortex)  # teeth

    # Soft tissue in front of the column, thin above the larynx and thick, with the oesophagus, below it.
    s = np.arange(-62.0, 235.0, 2.0)
    wall = -0.5 * np.interp(s, np.concatenate([[-36.0, -20.0], canvas.column.bodies.mean(1)]),
                            np.concatenate([[24.0, 17.0], canvas.column.depths]))  # fmt: skip
    thin = a.prevertebral
    rear = wall - _profile(s, [(-62, 7 + thin), (-40, 3 + thin), (-20, thin + 1.5), (10, thin), (40, thin + 0.5),
                               (54 + shift, thin + 2), (66 + shift, 2.4 * thin), (85, 2.8 * thin), (120, 2.9 * thin),
                               (235, 3.2 * thin)])  # fmt: skip
    width = near * _profile(
        s,
        [(-62, 10), (-50, 16), (-36, 8 + rng.normal(0, 1.5)), (-22, a.airway * 0.7), (-5, a.airway), (18, a.airway * 1.1),
         (32, a.airway * 0.9), (44 + shift, 6), (56 + shift, 8), (64 + shift, 13), (80, 14.5), (130, 14), (235, 13)],
    )  # fmt: skip
    front = rear - width
    canvas.band(s, front - 2.2, wall, t.soft)
    canvas.band(s[s < 70], (front - 1.4)[s < 70], (rear + 1.2)[s < 70], t.mucosa)
    canvas.band(s, front, rear, t.vessel)
    # Soft palate and uvula, epiglottis.
    canvas.blob([(-52, -46), (-50, -38), (-42, -31), (-28, -26.5), (-14, -26), (-16, -29.5), (-30, -32), (-42, -38)],
                t.tongue)  # fmt: skip
    if near > 0.5:
        canvas.blob([(14, -25.5), (24, -29), (36, -33), (37, -35.5), (25, -32.5), (15, -28)], t.septum)
    # Larynx: fat in front of the epiglottis, thyroid and cricoid cartilage, vocal folds across the airway.
    canvas.blob([(26, -36), (33, -37), (43 + shift, -40), (44 + shift, -43), (36, -46), (28, -45), (25, -40)],
                t.deep_fat)  # fmt: skip
    canvas.fill(ellipse(24, -50, 3.4, 6, 0.2), t.cortex)  # hyoid bone
    canvas.fill(ellipse(24, -50, 2.2, 4.6, 0.2), t.septum)
    canvas.blob(
        [(42 + shift, -50), (52 + shift, -49), (60 + shift, -45), (58 + shift, -42), (48 + shift, -46)], t.cortex
    )
    canvas.blob([(46 + shift, -46), (52 + shift, -45), (56 + shift, -38), (50 + shift, -35), (46 + shift, -38)], t.soft)
    canvas.fill(ellipse(62 + shift, -22.5, 7.5, 3.3, 0.12), t.cortex)
    canvas.fill(ellipse(62 + shift, -22.5, 6.0, 1.9, 0.12), t.septum)
    canvas.fill(ellipse(66 + shift, -41, 3.0, 2.4), t.cortex)
    # Oesophagus: muscular wall around mucosa, collapsed.
    tube = s[s > 72 + shift]
    centre = np.interp(tube, s, 0.5 * (wall + rear)) - 1.5
    canvas.band(tube, centre - 3.0, centre + 2.6, t.muscle)
    canvas.band(tube, centre - 1.0, centre + 0.6, t.mucosa)
    # Fat plane before the column, strap muscles, thyroid isthmus, breast bone and the great vessels.
    canvas.line(np.stack([s[s > 40], (wall - 2.2)[s > 40]], 1), 0.9, t.septum)
    at = np.arange(74.0, 215.0, 8.0)
    before = np.interp(at, s, front)
    canvas.line(np.stack([at, before - 1.6], 1), 1.2, t.ligament)
    canvas.line(np.stack([at, before - 4.0], 1), 1.8, t.septum)
    canvas.line(np.stack([at, before - 8.0 - 0.06 * (at - 74)], 1), 3.2, t.muscle)
    canvas.fill(ellipse(86 + shift, np.interp(86, s, front) - 3.5, 7, 2.4), t.mucosa)
    canvas.fill(ellipse(138, np.interp(138, s, front) - 9, 7, 5.5, 0.4), t.vessel)
    canvas.fill(ellipse(165, np.interp(165, s, front) - 12, 10, 9, 0.4), t.vessel)
    lean = np.interp(150, s, front) - 22
    canvas.blob([(140, lean - 2), (142, lean + 5), (175, lean + 1), (200, lean - 3), (200, lean - 12), (170, lean - 9)],
                t.cortex)  # fmt: skip
    canvas.blob([(142, lean), (144, lean + 3.5), (175, lean - 0.5), (198, lean - 5), (198, lean - 10), (170, lean - 7)],
                t.marrow[6])  # fmt: skip


def _canal(canvas: Canvas, plane: Plane, t: Tissues) -> None:
    """Ligaments, epidural fat, fluid and cord; the discs push the fluid and the cord aside."""
    a, column = canvas.column.anatomy, canvas.column
    s = _S
    z = plane.z(s)
    wall = column.rear_wall(s)
    discs = column.discs.mean(1)
    worn = np.array([d.degeneration for d in a.discs])
    # Canal and cord from front to back in the middle, then at the slice's distance from it.
    size = a.canal * _profile(
        s,
        [(-110, 1.5), (-44, 1.5), (-30, 1.36), (-12, 1.2), (10, 1.06), (40, 1.0), (80, 0.98), (110, 1.02), (215, 1.08)],
    )
    size = size * np.sqrt(np.clip(1.0 - (z / 13.0) ** 2, 0.3, 1.0))
    cord = a.cord * _profile(
        s,
        [(-110, 2.0), (-72, 1.9), (-60, 1.65), (-48, 1.3), (-32, 1.06), (0, 1.02), (45, 1.04), (75, 0.98), (100, 0.88),
         (215, 0.86)],
    )  # fmt: skip
    half_width = _profile(
        s, [(-110, 14), (-60, 10), (-40, 7.5), (0, 6.6), (45, 7.2), (80, 6.6), (110, 5.4), (215, 5.0)]
    )
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
    middle += _profile(s, [(-110, -4.0), (-70, -3.0), (-50, 0.0), (-35, 1.0), (-10, 0.0), (215, 0.0)])
    # Pressed cords first move back, then flatten.
    near = np.array([0.06, 0.24, 0.4, 0.24, 0.06])
    wanted = np.maximum(front + 0.35, middle - cord / 2)
    wanted = np.maximum(wanted, np.convolve(np.pad(wanted, 2, mode="edge"), near, mode="valid"))
    back = np.minimum(
        np.maximum(middle + cord / 2, middle + cord / 2 + 0.7 * (wanted - middle + cord / 2)), rear - 0.45
    )
    seen = cord > 0.8
    back = np.maximum(back, wanted + 0.55 * cord)
    back = np.minimum(back, rear - 0.2)
    if seen.any():
        first, last = np.flatnonzero(seen)[[0, -1]]
        part = slice(first, last + 1)
        canvas.band(s[part], wanted[part], back[part], t.cord)
        squeezed = (back - wanted) / np.maximum(cord, 0.1) < 0.66
        for number, disc in enumerate(a.discs[: len(LEVELS)]):
            at = discs[number] + disc.wander
            hit = squeezed & (np.abs(s - at) < 3.0)
            if disc.grade == 3 and disc.degeneration > 0.55 and hit.any():  # oedema of the cord
                centre = float(np.interp(at, s, 0.5 * (wanted + back)))
                canvas.fill(ellipse(at, centre, 5.0, 0.9), t.lesion)


def _posterior_elements(canvas: Canvas, plane: Plane, t: Tissues, rng: np.random.Generator) -> None:
    """Spinous processes with the fat and ligaments between them, and the arches of the atlas."""
    a, column = canvas.column.anatomy, canvas.column
    middles = column.bodies.mean(1)
    rear = (
        column.rear_wall(_S)
        + 0.6
        + a.canal * np.interp(_S, [-30, -12, 10, 40, 110, 215], [1.36, 1.2, 1.06, 1, 1.02, 1.08])
    )
    tips = []
    outlines = []
    for number in range(len(a.spinous_length)):
        s0 = middles[number] + (3.5 if number else 7.0) + 0.012 * max(middles[number], 0.0)
        d0 = float(np.interp(s0, _S, rear)) + 0.9
        aside = float(plane.z(np.array(s0))) + rng.normal(0.0, 1.1)  # few spinous processes stand straight
        fade = np.clip(1.35 - abs(aside) / (3.2 if number else 5.0), 0.0, 1.0)
        skin = a.neck_back + min(0.1 * s0, 8.0) - 1.2 * a.fat_back - 5.0
        length = max(min(a.spinous_length[number] * (0.35 + 0.65 * fade), skin - d0), 5.0)
        fall = a.spinous_fall[number]
        thick = (6.2, 4.0, 3.9, 4.1, 4.7, 5.6, 5.4, 5.2, 5.0, 5.0, 5.0)[number]
        thick *= rng.uniform(0.85, 1.12)
        tip = thick * (rng.uniform(0.9, 1.35) if number < 6 else rng.uniform(0.7, 1.1))
        bend = rng.uniform(-0.006, 0.012)
        tips.append((s0 + fall * length, d0 + length))
        root = thick * 0.75

        def outline(grow: float, s0: float = s0, d0: float = d0, length: float = length, fall: float = fall,
                    thick: float = thick, tip: float = tip, root: float = root, bend: float = bend) -> np.ndarray:  # fmt: skip
            h = np.array([root * 0.75, root * 0.9, thick * 0.62, tip * 0.82, tip * 0.45]) + grow
            along = np.array([0.0, 0.15, 0.5, 0.84, 1.0]) * length
            along[0] -= grow
            along[-1] += grow
            middle = s0 + fall * along + bend * along**2
            return smooth_closed(np.concatenate([np.stack([middle - h, d0 + along], 1),
                                                 np.stack([middle + h, d0 + along], 1)[::-1]]), 4)  # fmt: skip

        outlines.append(outline)
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
        canvas.blob([(between - 4.5, d0 + 0.6), (between + 0.5, d0 + 0.4), (between + 5.0, d0 + 0.8), (between + 1, d0 + 4.2)],
                    t.epidural if number else t.ligament)  # fmt: skip
    for number, outline in enumerate(outlines):
        canvas.fill(outline(0.6), t.cortex)
        canvas.fill(outline(-0.1), t.marrow[number])
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
    # Axis.
    depth = column.depths[0]
    front, back = -0.5 * depth, 0.5 * depth
    lip = 1.2

    def axis(grow: float) -> np.ndarray:
        g = grow
        return smooth_closed(
            np.array([(0.0 + g, front - lip - g), (-2.5, front - g), (-10, front + 0.8 - g), (-17, front + 2.6 - g),
                      (-22, -5.2 - g), (-30, -4.6 - g), (-36.5, -3.6 - g), (-39.2 - g, 0.4), (-36.5, 4.2 + g),
                      (-30, 5.0 + g), (-22, 6.0 + g), (-14, back - 0.6 + g), (-5, back - 0.7 + g), (-0.2 + g, back + g),
                      (-0.6 + g, 0.4 * back), (-0.9 + g, 0.3 * front)]))  # fmt: skip

    canvas.blob([(-40, -9), (-34, -5.5), (-22, -6), (-15, -9), (-20, -13), (-30, -15), (-38, -14)], t.soft)
    canvas.blob([(-46, -3), (-38, -7), (-40, 3), (-44, 4)], t.deep_fat)
    canvas.fill(axis(0.75), t.cortex)
    canvas.fill(axis(-0.1), t.marrow[0])
    canvas.line([(-17.5, -4.5), (-18, 0.5), (-17.5, 5.0)], 0.7, t.ligament)  # remnant of the dens's joint
    canvas.fill(ellipse(-29.5, -9.6, 5.6, 3.6, 0.12), t.cortex)
    canvas.fill(ellipse(-29.5, -9.6, 4.5, 2.6, 0.12), t.marrow[0])
    # C3 to T5.
    for number in range(1, len(middles)):
        above = a.discs[number - 1].degeneration
        below = a.discs[number].degeneration if number < len(a.discs) else 0.0
        size = (heights[number], column.depths[number])
        waist, lip = 0.55 + 0.25 * rng.random(), 2.0 * max(above, below, 0.15) ** 2
        s0 = float(middles[number])
        canvas.fill_xy(column.rigid(s0, body_outline(*size, waist, lip, 0.62)), t.cortex)
        canvas.fill_xy(column.rigid(s0, body_outline(*size, waist, lip, -0.18)), t.marrow[number])
        for disc, side in ((number - 1, -1.0), (number, 1.0)):
            if disc < len(a.discs) and a.marrow_patch[disc]:
                edge = side * (0.5 * heights[number] - 1.9)
                patch = ellipse(edge, rng.uniform(-2, 2), 1.3, 0.36 * column.depths[number])
                canvas.fill_xy(column.rigid(s0, patch), t.patch[disc])
        # Vein that leaves the body in the middle of its rear wall.
        d = 0.5 * column.depths[number] - 0.8
        deep = rng.uniform(1.5, 4.0)
        vein = np.array([(-0.5, d), (-0.15, d - deep), (0.15, d - deep), (0.5, d)])
        canvas.fill_xy(column.rigid(s0 + rng.normal(0, 0.4), vein), t.vein if rng.random() < 0.6 else t.ligament)


def _discs(canvas: Canvas, plane: Plane, t: Tissues) -> None:
    """Discs between the endplates: outer ring, inner ring, nucleus, and what stands out behind."""
    column = canvas.column
    for number, (disc, (top, bottom)) in enumerate(zip(column.anatomy.discs, column.discs, strict=True)):
        middle, half = 0.5 * (top + bottom), 0.5 * (bottom - top)
        depth = 0.5 * (column.depths[number] + column.depths[number + 1])
        front = -0.5 * depth - 0.35 - 0.5 * disc.degeneration
        rear = 0.5 * depth
        h = max(half - 0.42, 0.9)
        flat = np.array([(middle - 0.80 * h, front + 0.2), (middle - 1.12 * h, front + 0.35 * depth),
                         (middle - 1.10 * h, rear - 0.35 * depth), (middle - 0.85 * h, rear - 0.3),
                         (middle - 0.4 * h, rear + 0.25), (middle + 0.4 * h, rear + 0.25),
                         (middle + 0.85 * h, rear - 0.3), (middle + 1.10 * h, rear - 0.35 * depth),
                         (middle + 1.12 * h, front + 0.35 * depth), (middle + 0.80 * h, front + 0.2),
                         (middle, front - 0.5)])  # fmt: skip
        canvas.blob(flat, t.annulus[number])
        for size, tissue in ((1.0, t.inner), (0.86, t.transition), (0.66, t.nucleus)):
            canvas.fill(_cushion(middle, 0.03 * depth, size * 0.92 * h, (0.30 + 0.12 * size) * depth), tissue[number])
        if disc.degeneration < 0.2 and disc.nucleus > 0.45:  # cleft of a young nucleus
            canvas.line([(middle, -0.2 * depth), (middle + 0.1, 0.2 * depth)], 0.35, t.transition[number])
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
    half = 0.5 * disc.reach
    at = middle + disc.wander
    t_ = np.linspace(-1.0, 1.0, 13)
    edge = np.clip(1.0 - np.abs(t_) ** 2.4, 0.0, None) ** 0.8

    def outline(grow: float) -> np.ndarray:
        s = at + t_ * (half + grow)
        d = rear - 0.1 + (depth + grow) * edge
        if disc.extrusion:  # a neck at the disc, a wider head behind it
            head = ellipse(at, rear + 0.55 * depth, half + grow, 0.47 * depth + grow)
            neck = np.array([(middle - 0.38 * (bottom - top), rear - 0.6), (middle + 0.38 * (bottom - top), rear - 0.6),
                             (at + 0.5 * half, rear + 0.5 * depth), (at - 0.5 * half, rear + 0.5 * depth)])  # fmt: skip
            canvas.fill(neck, t.hernia[number])
            return head
        return np.concatenate([np.stack([s, d], 1), np.array([(s[-1], rear - 0.6), (s[0], rear - 0.6)])])

    canvas.fill(outline(0.5), t.ligament)
    canvas.fill(outline(0.0), t.hernia[number])
