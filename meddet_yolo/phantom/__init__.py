"""A generated cervical spine data set: sagittal T2-weighted images with six labelled discs each.

The images are computed from a random anatomy and a simple model of the scanner, so nobody's data are in them and
everything about them is known. They look like MRI, but nothing measured on them says anything about patients.
"""

from __future__ import annotations

from pathlib import Path

from meddet_yolo.phantom.patient import NAMES
from meddet_yolo.phantom.study import PRESETS, Study
from meddet_yolo.phantom.writer import write_study

__all__ = ["NAMES", "PRESETS", "generate_phantom"]


def generate_phantom(
    out: str | Path,
    patients: int | None = None,
    seed: int = 0,
    imgsz: int | None = None,
    *,
    preset: str = "paper",
    slices: int = 2,
    difficulty: float = 0.5,
    val_fraction: float = 0.125,
    test_fraction: float = 0.2,
    workers: int = 0,
) -> Path:
    """Generate a cervical-spine data set in YOLO format, split by patient.

    The same arguments give the same files, whatever the number of processes, on all machines of one platform with the
    same versions of NumPy and OpenCV. A patient's images do not depend on how many patients there are. An interrupted
    call goes on where it stopped: what is there is verified by its hashes and kept.

    Every patient has at least one herniated and one normal disc; every image shows the six discs C2/3 to C7/T1, and
    each gets one box. Thoracic discs may be seen, too, and have none.

    Beside images and labels there are `discs.csv` (one row per image and disc: level, class, grade, depth of the bulge,
    box, pixel spacing) and `patients/*.json` (the same by patient, with hashes).

    Args:
        out: Folder to fill: new, empty, or an earlier result with the same arguments.
        patients: Number of patients, at least 2; by default the preset's.
        seed: Seed of everything random, at least 0.
        imgsz: Side of the square images in pixels, 32 to 2048; by default the preset's.
        preset: `paper` (914 patients, 1,848 images of 512 pixels, field of view 185 to 250 mm), `small` (240 patients,
            256 pixels, 160 to 200 mm) or `tiny` (24 patients, 160 pixels, 140 to 165 mm).
        slices: Images per patient, 1 to 5, neighbours within 4 mm of the middle; 20 in 914 patients have one more.
        difficulty: 0 (every herniation large and dark, every normal disc bright, little noise) to 1 (nine tenths of the
            herniations subtle, many worn and bulging normal discs, much noise and motion).
        val_fraction: Share of the training part's patients that goes to validation, above 0.
        test_fraction: Share of all patients that is kept for testing.
        workers: Number of processes; 0 takes one a core when there are enough patients.

    Returns:
        Path of the data set's `data.yaml`, to be passed to training as `data=`.

    Raises:
        ValueError: If an argument is out of its range, or `out` holds a data set made with other arguments.
        FileExistsError: If `out` holds anything that this function did not write.

    Examples:
        >>> import tempfile
        >>> data = generate_phantom(tempfile.mkdtemp(), patients=4, imgsz=64)
        >>> data.name, len(list(data.parent.glob("images/*/*.png")))
        ('data.yaml', 8)
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is unknown: expected one of {', '.join(PRESETS)}")
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise ValueError(f"workers={workers!r} is invalid: expected a whole number of at least 0")
    study = Study(
        patients=PRESETS[preset].patients if patients is None else patients,
        seed=seed,
        imgsz=PRESETS[preset].imgsz if imgsz is None else imgsz,
        slices=slices,
        difficulty=difficulty,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        fov=PRESETS[preset].fov,
    )
    return write_study(Path(out).expanduser().resolve(), study, workers)
