"""Random cervical spines: sizes, posture, discs and their herniations, tissue brightness.

Lengths are in millimetres. The sizes are our own choice within what is published for adults on MRI: vertebral bodies
about 15 mm deep and 12 to 15 mm tall, a canal of 12 to 15 mm and a cord of 6 to 8 mm from front to back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = ("C2/3", "C3/4", "C4/5", "C5/6", "C6/7", "C7/T1")
BODIES = ("C3", "C4", "C5", "C6", "C7", "T1", "T2", "T3", "T4", "T5")  # below C2, from head to foot
GRADES = ("normal", "subtle", "moderate", "severe")

# How often each level is herniated among patients with a herniation: the mobile lower levels lead.
_PREVALENCE = np.array([0.06, 0.18, 0.34, 0.52, 0.40, 0.07])
# Height and depth of the bodies C3 to T5, height of the discs C2/3 to T4/5, of an average adult.
_BODY_HEIGHT = np.array([13.0, 12.7, 12.3, 12.6, 13.6, 15.2, 16.2, 16.8, 17.3, 17.8])
_BODY_DEPTH = np.array([15.2, 15.3, 15.6, 16.2, 16.6, 16.8, 17.0, 17.4, 18.2, 19.0])
_DISC_HEIGHT = np.array([5.2, 5.5, 5.6, 5.5, 5.7, 5.2, 4.5, 4.1, 4.0, 4.2])
_MOST_NORMAL = 1.2  # millimetres by which a disc may bulge and still be normal
# Length of the spinous processes C2 to T5 behind the canal, and how steeply they fall (mm down per mm back).
_SPINOUS_LENGTH = np.array([18.0, 11.5, 12.5, 15.0, 21.0, 27.0, 28.0, 28.0, 28.0, 28.0, 27.0])
_SPINOUS_FALL = np.array([0.45, 0.35, 0.35, 0.35, 0.38, 0.42, 0.55, 0.70, 0.85, 0.95, 1.0])


@dataclass(frozen=True)
class Disc:
    """One disc. `bulge` and `reach` describe what lies behind the line between the vertebrae's rear walls."""

    height: float
    nucleus: float  # T2 signal of the nucleus relative to cerebrospinal fluid
    grade: int  # index into GRADES; 0 is a normal disc
    extrusion: bool  # an extrusion is wider than its neck and wanders; a protrusion has its widest part at the disc
    bulge: float  # how far the disc reaches into the canal at its deepest place; at most about 1 in a normal disc
    reach: float  # extent of that part along the spine
    wander: float  # how far down (positive) or up the part's middle lies from the disc's
    lateral: float  # its middle, left to right, from the mid-sagittal plane
    spread: float  # standard deviation of its depth, left to right
    degeneration: float  # 0 to 1: osteophytes and marrow follow it
    front: float  # how far the disc bulges to the front
    endplate: float  # how much thicker than usual the dark endplates beside it are

    @property
    def herniated(self) -> bool:
        """Whether the disc is labelled as a herniation."""
        return self.grade > 0


@dataclass(frozen=True)
class Anatomy:
    """One patient."""

    scale: float  # size against the average adult
    tilts: tuple[float, ...]  # the column's lean at C2, C5, T1 and T5 in radians, positive leans backwards going down
    body_height: tuple[float, ...]
    body_depth: tuple[float, ...]
    discs: tuple[Disc, ...]  # C2/3 to T4/5; only the first six are labelled
    slip: tuple[float, ...]  # how far each body from C2 to T5 stands behind the centre line
    marrow: tuple[float, ...]  # signal of the bodies C2 to T5
    marrow_patch: tuple[float, ...]  # change of signal beside the endplates of each disc, below 0 dark, above 0 bright
    spinous_length: tuple[float, ...]
    spinous_fall: tuple[float, ...]
    ligament: float  # thickness of the ligament before the bodies, as dark as the rim of a disc
    canal: float  # from front to back at C4
    cord: float  # from front to back at C4
    cord_place: float  # 0 at the front of the canal, 1 at its rear
    fat_back: float  # thickness of the subcutaneous fat at C4
    fat_front: float
    neck_back: float  # from the bodies' centre line to the skin behind C4
    neck_front: float
    prevertebral: float  # thickness of the soft tissue between C3 and the airway
    airway: float  # width of the airway behind the tongue
    muscle_fat: float  # 0 to 1: how much fat lies between the neck's muscles
    brightness: dict[str, float]  # signal of tissues relative to cerebrospinal fluid
    details: int  # seed of what has no name: folds, vessels, septa


def draw_anatomy(rng: np.random.Generator, difficulty: float) -> Anatomy:
    """Draw one patient with at least one herniation, as every patient of a herniation data set has one.

    Args:
        rng: Source of all randomness.
        difficulty: 0 to 1; see `generate_phantom`.

    Returns:
        The patient. At least one of the six discs is normal.

    Examples:
        >>> patient = draw_anatomy(np.random.default_rng(3), difficulty=0.5)
        >>> len(patient.discs), any(d.herniated for d in patient.discs[:6])
        (10, True)
    """
    scale = float(np.clip(rng.normal(1.0, 0.06), 0.86, 1.14))
    # Lean at C2, lordosis from C2 to C7 (a straight or kyphotic neck below 0) and the slope of T1.
    top = rng.normal(-4.0, 4.0)
    lordosis = np.clip(rng.normal(10.0, 8.0), -10.0, 28.0)
    tilts = np.deg2rad([top, top + 0.35 * lordosis, top + lordosis + rng.normal(5.0, 3.0), top + lordosis + 8.0])
    tilts[2:] = np.clip(tilts[2:], np.deg2rad(2.0), np.deg2rad(27.0))

    heights = _BODY_HEIGHT * np.clip(rng.normal(1.0, 0.05), 0.88, 1.12) * rng.normal(1.0, 0.02, len(BODIES))
    depths = _BODY_DEPTH * np.clip(rng.normal(1.0, 0.05), 0.88, 1.12) * rng.normal(1.0, 0.015, len(BODIES))
    discs = _draw_discs(rng, difficulty)
    canal = float(np.clip(rng.normal(13.3, 1.2), 11.0, 16.0))
    marrow = np.clip(rng.normal(0.50, 0.10), 0.30, 0.72)
    fat = np.clip(rng.normal(0.92, 0.10), 0.70, 1.15)
    weight = rng.normal(0.0, 1.0)
    return Anatomy(
        scale=scale,
        tilts=tuple(float(t) for t in tilts),
        body_height=tuple(float(h) for h in heights),
        body_depth=tuple(float(d) for d in depths),
        discs=discs,
        slip=tuple(float(v) for v in _draw_slip(rng, difficulty)),
        marrow=tuple(float(marrow * f) for f in rng.normal(1.0, 0.035, len(BODIES) + 1)),
        marrow_patch=tuple(
            float(rng.choice([-0.45, 0.35]) if rng.random() < 0.45 * d.degeneration else 0.0) for d in discs
        ),
        spinous_length=tuple(float(v) for v in _SPINOUS_LENGTH * rng.normal(1.0, 0.11, len(_SPINOUS_LENGTH))),
        spinous_fall=tuple(float(v) for v in _SPINOUS_FALL + rng.normal(0.0, 0.09, len(_SPINOUS_FALL))),
        ligament=float(rng.uniform(0.3, 0.6 + 1.4 * difficulty)),
        canal=canal,
        cord=float(np.clip(rng.normal(7.4, 0.45), 6.2, min(8.6, 0.64 * canal))),
        cord_place=float(np.clip(rng.normal(0.40, 0.14), 0.08, 0.7)),
        fat_back=float(np.clip(7.0 + 3.5 * weight + rng.normal(0, 1.5), 2.5, 20.0)),
        fat_front=float(np.clip(5.0 + 2.0 * weight + rng.normal(0, 1.0), 2.0, 13.0)),
        neck_back=float(np.clip(62.0 + 6.0 * weight + rng.normal(0, 3.0), 50.0, 82.0)),
        neck_front=float(np.clip(60.0 + 5.0 * weight + rng.normal(0, 3.0), 50.0, 76.0)),
        prevertebral=float(np.clip(rng.normal(4.2, 0.8), 2.8, 6.5)),
        airway=float(np.clip(rng.normal(10.0, 2.5), 4.5, 16.0)),
        muscle_fat=float(rng.uniform(0.1, 0.9)),
        brightness={
            "cord": float(rng.uniform(0.36, 0.50)),
            "muscle": float(rng.uniform(0.13, 0.24)),
            "fat": float(fat),
            "brain": float(rng.uniform(0.44, 0.58)),
            "tongue": float(rng.uniform(0.22, 0.36)),
            "mucosa": float(rng.uniform(0.5, 0.8)),
            "annulus": float(rng.uniform(0.10, 0.18)),
            "ligament": float(rng.uniform(0.05, 0.12)),
            "flow": float(rng.uniform(0.0, 0.35)),  # signal that moving fluid loses in places
        },
        details=int(rng.integers(2**31)),
    )


def _draw_slip(rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Draw how the bodies stand against one another: a fraction of a millimetre, seldom more (listhesis)."""
    slip = 0.3 * rng.standard_normal(len(BODIES) + 1)
    far = rng.random(len(slip)) < 0.12 * difficulty
    return np.clip(slip + far * rng.normal(0.0, 0.9, len(slip)), -1.6, 1.6)


def _draw_discs(rng: np.random.Generator, difficulty: float) -> tuple[Disc, ...]:
    """Draw the ten discs from C2/3 to T4/5."""
    count = len(LEVELS)
    herniated = rng.random(count) < _PREVALENCE
    if not herniated.any():
        herniated[rng.choice(count, p=_PREVALENCE / _PREVALENCE.sum())] = True
    if herniated.all():
        herniated[0] = False
    # Age darkens all discs of a patient; a single disc may still be better or worse than its neighbours.
    age = rng.uniform(0.0, 1.0)
    youth = np.clip(rng.normal(0.56, 0.08) - 0.22 * age * (0.4 + difficulty), 0.28, 0.74)
    stature = np.clip(rng.normal(1.0, 0.06), 0.86, 1.14)
    discs = []
    for number, height in enumerate(_DISC_HEIGHT * stature):
        sick = number < count and bool(herniated[number])
        if sick:
            discs.append(_herniated_disc(rng, difficulty, height, youth))
        else:
            worn = rng.random() < (0.05 + 0.9 * difficulty) * (0.4 + 0.8 * age)
            discs.append(_normal_disc(rng, difficulty, height, youth, worn))
    return tuple(discs)


def _normal_disc(rng: np.random.Generator, difficulty: float, height: float, youth: float, worn: bool) -> Disc:
    """Draw a disc without herniation; a worn one is dark and flat and may bulge a little all round."""
    degeneration = float(rng.uniform(0.3, 0.8) if worn else rng.uniform(0.0, 0.2 + 0.2 * difficulty))
    bulge = rng.uniform(0.0, 0.3) + 2.0 * difficulty * degeneration * rng.uniform(0.4, 2.0)
    return Disc(
        height=float(height * (1 - 0.22 * degeneration) * rng.normal(1.0, 0.04)),
        nucleus=float(youth * (1 - 0.6 * degeneration) * rng.normal(1.0, 0.05)),
        grade=0,
        extrusion=False,
        bulge=float(min(bulge, _MOST_NORMAL)),
        reach=float(height * rng.uniform(1.0, 1.4)),
        wander=0.0,
        lateral=0.0,
        spread=20.0,
        degeneration=degeneration,
        front=float(rng.uniform(0.0, 0.3 + 2.4 * difficulty * degeneration)),
        endplate=float(rng.uniform(0.0, 0.2 + 1.6 * difficulty * degeneration)),
    )


def _herniated_disc(rng: np.random.Generator, difficulty: float, height: float, youth: float) -> Disc:
    """Draw a herniated disc of a random grade."""
    subtle, severe = 0.10 + 0.80 * difficulty, 0.40 - 0.40 * difficulty
    grade = 1 + int(rng.choice(3, p=[subtle, 1 - subtle - severe, severe]))
    least = 1.9 - 0.9 * difficulty  # the most subtle: 1.45 mm at the default
    low, high = ((least, least + 0.7), (least + 0.7, 3.4), (3.4, 5.0))[grade - 1]
    bulge = float(rng.uniform(low, high))
    extrusion = bool(rng.random() < (0.0, 0.35, 0.7)[grade - 1])
    degeneration = float(rng.uniform(0.30 - 0.5 * difficulty + 0.1 * grade, 0.70 + 0.08 * grade))
    return Disc(
        height=float(height * (1 - 0.30 * degeneration) * rng.normal(1.0, 0.04)),
        nucleus=float(youth * (1 - 0.62 * degeneration) * rng.normal(1.0, 0.05)),
        grade=grade,
        extrusion=extrusion,
        bulge=bulge,
        reach=float(height * (rng.uniform(1.5, 2.0) if extrusion else rng.uniform(1.15, 1.55))),
        wander=float(rng.normal(0.0, 1.6) if extrusion else rng.normal(0.0, 0.35)),
        lateral=float(rng.uniform(-1.5, 1.5)),
        spread=float(rng.uniform(9.0, 14.0)),
        degeneration=degeneration,
        front=float(rng.uniform(0.0, 0.3 + 2.4 * difficulty * degeneration)),
        endplate=float(rng.uniform(0.0, 0.2 + 1.6 * difficulty * degeneration)),
    )
