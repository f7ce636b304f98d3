"""What a phantom data set consists of: its parameters, and which patient goes to which split with how many slices."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from meddet_yolo.phantom.acquisition import draw_protocol
from meddet_yolo.phantom.anatomy import draw_anatomy
from meddet_yolo.phantom.patient import Patient

GENERATOR = 1  # raised whenever the same parameters would give other files
_THIRD_SLICE = 20 / 914  # share of patients with one slice more: 1,848 images of 914 patients


@dataclass(frozen=True)
class Preset:
    """Defaults of a data set."""

    patients: int
    imgsz: int
    fov: tuple[float, float]  # smallest and largest field of view in millimetres; small images look closer


PRESETS = {
    "paper": Preset(914, 512, (185.0, 250.0)),
    "small": Preset(240, 256, (160.0, 200.0)),
    "tiny": Preset(24, 160, (140.0, 165.0)),
}


@dataclass(frozen=True)
class Study:
    """The parameters of a data set; see `generate_phantom`."""

    patients: int
    seed: int
    imgsz: int
    slices: int
    difficulty: float
    val_fraction: float
    test_fraction: float
    fov: tuple[float, float]

    def __post_init__(self) -> None:
        """Check the ranges."""
        bounds = (("patients", 2, 9999), ("seed", 0, 2**63), ("imgsz", 32, 2048), ("slices", 1, 5))
        for name, least, most in bounds:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name}={value!r} is invalid: expected a whole number from {least} to {most}")
        for name, least_, most_ in (("difficulty", 0.0, 1.0), ("val_fraction", 0.0, 0.9), ("test_fraction", 0.0, 0.9)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not least_ <= value <= most_:
                raise ValueError(f"{name}={value!r} is invalid: expected a number from {least_} to {most_}")
        if not self.val_fraction:
            raise ValueError("val_fraction=0 is invalid: training needs a validation split")

    def manifest(self) -> dict[str, Any]:
        """Return everything that the files depend on."""
        return {"generator": GENERATOR, **asdict(self), "fov": list(self.fov)}

    def plan(self) -> list[PatientPlan]:
        """Return every patient's split and number of slices.

        Examples:
            >>> plan = Study(914, 0, 512, 2, 0.5, 0.125, 0.2, (185, 250)).plan()
            >>> len(plan), sum(p.slices for p in plan), sum(p.split == "test" for p in plan)
            (914, 1848, 183)
        """
        order = np.random.default_rng([self.seed, 0, self.patients]).permutation(self.patients)
        test = min(round(self.test_fraction * self.patients), self.patients - 2)
        val = min(max(1, round(self.val_fraction * (self.patients - test))), self.patients - test - 1)
        splits = ["test"] * test + ["val"] * val + ["train"] * (self.patients - test - val)
        split_of = dict(zip((int(p) for p in order), splits, strict=True))
        more = np.random.default_rng([self.seed, 1, self.patients]).permutation(self.patients)
        three = {int(p) for p in more[: round(_THIRD_SLICE * self.patients)]}
        return [PatientPlan(p, split_of[p], self.slices + (p in three)) for p in range(self.patients)]

    def patient(self, number: int) -> Patient:
        """Draw a patient; it does not depend on how many there are."""
        rng = np.random.default_rng([self.seed, 2, number])
        anatomy = draw_anatomy(rng, self.difficulty)
        return Patient(anatomy, draw_protocol(rng, self.difficulty, self.fov), seed=(self.seed, 3, number))


@dataclass(frozen=True)
class PatientPlan:
    """One patient's place in a data set."""

    number: int
    split: str  # train, val or test
    slices: int

    @property
    def name(self) -> str:
        """The patient's name in file names."""
        return f"p{self.number:04d}"
