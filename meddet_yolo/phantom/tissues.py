"""The tissues of a patient, and the plane in which a slice cuts them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meddet_yolo.phantom.anatomy import Anatomy
from meddet_yolo.phantom.drawing import Palette


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
