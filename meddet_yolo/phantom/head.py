"""Head and neck around the column, drawn from the skin inwards, so that later parts cover earlier ones.

Control points are (s, d) in the column's coordinates, in millimetres of an average adult.
"""

from __future__ import annotations

import numpy as np

from meddet_yolo.phantom.drawing import Canvas
from meddet_yolo.phantom.shapes import ellipse, profile, smooth_closed
from meddet_yolo.phantom.tissues import Plane, Tissues


def draw_surroundings(canvas: Canvas, plane: Plane, t: Tissues) -> None:
    """Draw head and neck without the column: what changes little through the thickness of a slice."""
    seed = canvas.column.anatomy.details
    neck, nape, skull, throat = (np.random.default_rng([seed, part]) for part in range(4))
    _neck(canvas, t, neck)
    _nape(canvas, plane, t, nape)
    _skull(canvas, t, skull)
    _throat(canvas, plane, t, throat)


def _neck(canvas: Canvas, t: Tissues, rng: np.random.Generator) -> None:
    """Skin, subcutaneous fat and what lies under it."""
    a = canvas.column.anatomy
    s = np.arange(-140.0, 260.0, 4.0)
    wave = rng.normal(0.0, 0.8, 8)
    back = a.neck_back
    rear = profile(
        s,
        [(-140, 118), (-100, 112), (-70, 101 + wave[0]), (-40, 86 + 0.3 * (back - 60)), (-5, back + 4 + wave[1]),
         (30, back + wave[2]), (60, back + 2 + wave[3]), (100, back + 10 + wave[4]), (140, back + 8), (260, back - 4)],
    )  # fmt: skip
    front_d = a.neck_front
    front = -profile(
        s,
        [(-140, 118), (-60, 116), (-30, 112), (-14, 106), (0, 106), (12, 104), (22, 92), (32, front_d + 12),
         (48, front_d + 1), (75, front_d - 4), (100, front_d - 5), (125, front_d - 4), (150, front_d + 4),
         (260, front_d + 26)],
    )  # fmt: skip
    thick = a.fat_back * profile(s, [(-140, 0.45), (-60, 0.5), (0, 0.8), (60, 1.1), (100, 1.5), (150, 1.15), (260, 1)])
    thin = a.fat_front * profile(s, [(-140, 0.8), (10, 0.9), (25, 1.5), (60, 0.8), (110, 0.9), (260, 1.2)])
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
    inner = profile(s, [(-30, 30), (0, 32), (40, 26), (75, 34), (110, 44), (150, 46), (230, 44)])
    below_skin = (
        profile(s, [(-30, back), (60, back), (100, back + 6), (140, back + 4), (230, back - 4)]) - 0.5 * a.fat_back
    )
    mid = inner + (back - inner) * 0.45
    canvas.band(s, np.full_like(s, 12.0), inner + 3, t.deep_fat)
    layers = 5
    for layer in range(layers):
        share = (layer + rng.uniform(0.2, 0.8)) / layers
        start = rng.uniform(-30, 10) - 6 * layer
        at = np.linspace(start, rng.uniform(110, 200), 9)
        depth = np.interp(at, s, inner) + share * (back - 24.0) + rng.normal(0, 1.2, 9) - 0.02 * (at - 40)
        depth = np.minimum(depth, np.interp(at, s, below_skin))
        canvas.line(np.stack([at, depth], 1), rng.uniform(0.4, 0.8 + 1.8 * a.muscle_fat), t.septum)
    for _ in range(14 + int(26 * a.muscle_fat)):  # short streaks of fat along the fibres
        s0, d0 = rng.uniform(-15, 150), rng.uniform(24, max(back - 3, 30))
        length, fall = rng.uniform(4, 14), rng.normal(0.15, 0.2)
        points = [(s0, d0), (s0 + 0.5 * length, d0 + 0.5 * fall * length + rng.normal(0, 0.5)),
                  (s0 + length, d0 + fall * length)]  # fmt: skip
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
    for start in smooth_closed([np.array(cerebellum)], 3)[0][1:22]:  # folia, from the surface inwards
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
    rear = wall - profile(s, [(-62, 7 + thin), (-40, 3 + thin), (-20, thin + 1.5), (10, thin), (40, thin + 0.5),
                               (54 + shift, thin + 2), (66 + shift, 2.4 * thin), (85, 2.8 * thin), (120, 2.9 * thin),
                               (235, 3.2 * thin)])  # fmt: skip
    width = near * profile(
        s,
        [(-62, 10), (-50, 16), (-36, 8 + rng.normal(0, 1.5)), (-22, a.airway * 0.7), (-5, a.airway),
         (18, a.airway * 1.1), (32, a.airway * 0.9), (44 + shift, 6), (56 + shift, 8), (64 + shift, 13),
         (80, 14.5), (130, 14), (235, 13)],
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
