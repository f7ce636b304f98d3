"""Drawn sagittal spine images with labelled discs: data to try everything on without a download.

These are schematic pictures, not simulated MRI: a curved column of vertebral bodies with discs between them, a bright
canal with a grey cord behind it, coil shading, blur and Rician noise. A normal disc is bright, tall and flush with its
neighbours; a herniated one is darker, flatter and bulges into the canal. Nothing measured on them says anything about
patients.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

NAMES = {0: "herniation", 1: "normal"}
_MANIFEST = "phantom.json"
_SUPERSAMPLING = 3


@dataclass(frozen=True)
class _Anatomy:
    """What all images of one patient share. Lengths are fractions of the image's side."""

    column_x: float  # where the column's centre line crosses the image's middle
    tilt: float  # slope of the centre line
    curve: float  # amplitude of the lordosis
    phase: float  # where along the image the lordosis peaks
    body_width: float  # front to back
    pitch: float  # from one disc to the next
    top: float  # centre of the first disc
    canal_width: float
    bone: float  # grey values, 0 to 255
    disc: float
    herniated: tuple[bool, ...]
    severity: tuple[float, ...]  # in [0, 1], per disc


def generate_phantom(
    out: str | Path, patients: int = 24, seed: int = 0, imgsz: int = 160, *, slices: int = 3, val_fraction: float = 0.25
) -> Path:
    """Generate a data set of drawn spine images in YOLO format, split by patient.

    The same arguments give the same files. A patient's images do not depend on how many patients there are. Writing
    `data.yaml` is the last step, so a folder that has one is complete.

    Args:
        out: Folder to fill. It must be new, empty or an earlier result of this function, which is replaced.
        patients: Number of patients, at least 2: one is kept for validation.
        seed: Seed of everything random, at least 0.
        imgsz: Side of the square images in pixels, at least 32.
        slices: Images per patient, at least 1; they share the anatomy and differ in position, shading and noise.
        val_fraction: Share of the patients that goes to validation, in (0, 1).

    Returns:
        Path of the data set's `data.yaml`, to be passed to training as `data=`.

    Raises:
        ValueError: If an argument is out of its range.
        FileExistsError: If `out` holds anything that this function did not write.

    Examples:
        >>> import tempfile
        >>> data = generate_phantom(tempfile.mkdtemp(), patients=4, imgsz=64)
        >>> data.name, len(list(data.parent.glob("images/*/*.png")))
        ('data.yaml', 12)
    """
    lower_bounds = (("patients", patients, 2), ("seed", seed, 0), ("imgsz", imgsz, 32), ("slices", slices, 1))
    for name, value, least in lower_bounds:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} is invalid: expected a whole number of at least {least}")
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(f"val_fraction={val_fraction!r} is invalid: expected a number between 0 and 1")

    root = Path(out).expanduser().resolve()
    _make_room(root)
    manifest: dict[str, Any] = {"patients": patients, "seed": seed, "imgsz": imgsz, "slices": slices}
    (root / _MANIFEST).write_text(json.dumps({**manifest, "val_fraction": val_fraction}, indent=2) + "\n")

    order = np.random.default_rng([seed, patients]).permutation(patients)
    held_back = {int(p) for p in order[: min(max(1, round(val_fraction * patients)), patients - 1)]}
    for patient in range(patients):
        rng = np.random.default_rng([seed, 1, patient])
        anatomy = _draw_anatomy(rng)
        split = "val" if patient in held_back else "train"
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for number in range(slices):
            image, boxes = _render(anatomy, rng, imgsz)
            stem = f"p{patient:04d}_{number}"
            if not cv2.imwrite(str(images / f"{stem}.png"), image):
                raise OSError(f"could not write the image {images / stem}.png")
            lines = [f"{cls} " + " ".join(f"{v:.6f}" for v in box) for cls, box in boxes]
            (labels / f"{stem}.txt").write_text("\n".join(lines) + "\n" if lines else "")

    data = root / "data.yaml"
    names = "".join(f"  {index}: {name}\n" for index, name in NAMES.items())
    head = f"# Drawn spine images (seed {seed}); this file's folder is the root."
    data.write_text(f"{head}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return data


def _make_room(root: Path) -> None:
    """Create `root` or clear an earlier result of this module from it; refuse to touch anything else."""
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file: name a new folder")
    root.mkdir(parents=True, exist_ok=True)
    if not any(root.iterdir()):
        return
    if not (root / _MANIFEST).is_file():
        raise FileExistsError(f"{root} is not empty and holds no generated data: name a new folder")
    (root / "data.yaml").unlink(missing_ok=True)
    for folder in ("images", "labels"):
        shutil.rmtree(root / folder, ignore_errors=True)


def _draw_anatomy(rng: np.random.Generator) -> _Anatomy:
    """Draw one patient. Every patient has at least one disc of each class."""
    pitch = rng.uniform(0.165, 0.205)
    top = rng.uniform(0.05, 0.12)
    discs = int((0.97 - top) / pitch) + 1
    herniated = rng.random(discs) < 0.4
    first, second = rng.permutation(discs)[:2]
    herniated[first], herniated[second] = True, False
    return _Anatomy(
        column_x=rng.uniform(0.40, 0.50),
        tilt=rng.uniform(-0.12, 0.12),
        curve=rng.uniform(0.02, 0.07),
        phase=rng.uniform(0.3, 0.7),
        body_width=rng.uniform(0.20, 0.25),
        pitch=pitch,
        top=top,
        canal_width=rng.uniform(0.10, 0.13),
        bone=rng.uniform(95, 135),
        disc=rng.uniform(165, 205),
        herniated=tuple(bool(h) for h in herniated),
        severity=tuple(float(s) for s in rng.uniform(0.0, 1.0, discs)),
    )


def _render(
    anatomy: _Anatomy, rng: np.random.Generator, imgsz: int
) -> tuple[np.ndarray, list[tuple[int, tuple[float, float, float, float]]]]:
    """Draw one image and the box of each disc.

    Returns:
        The image, uint8 of shape (imgsz, imgsz), and a list of (class, (x centre, y centre, width, height)), the box
        in fractions of the image's side.
    """
    side = imgsz * _SUPERSAMPLING
    shift_x, shift_y = rng.uniform(-0.03, 0.03, 2)
    width = anatomy.body_width

    def centre(y: float) -> tuple[float, float]:
        """The centre line's x at height y, and its slope dx/dy there."""
        bend = np.pi * (y - anatomy.phase + 0.5)
        x = anatomy.column_x + shift_x + anatomy.tilt * (y - 0.5) + anatomy.curve * np.sin(bend)
        return x, anatomy.tilt + anatomy.curve * np.pi * np.cos(bend)

    image = np.full((side, side), rng.uniform(25, 45), np.float32)

    # Soft tissue in front, muscle and fat behind.
    ys = np.linspace(-0.1, 1.1, 60)
    line = np.array([centre(y)[0] for y in ys])
    _fill(image, _band(line + 0.5 * width + anatomy.canal_width, line + 1.2, ys), rng.uniform(55, 80))
    for y in np.arange(anatomy.top + shift_y, 1.1, anatomy.pitch):
        x, slope = centre(y)
        spot = (x + 0.5 * width + anatomy.canal_width * rng.uniform(1.5, 2.0), y + rng.uniform(-0.01, 0.03))
        _fill(image, _ellipse(spot, (0.09, 0.03), slope + 0.4), rng.uniform(110, 150))

    # Canal with its fluid, and the cord inside it.
    back = line + 0.5 * width
    _fill(image, _band(back, back + anatomy.canal_width, ys), rng.uniform(190, 225))
    inner = 0.5 * anatomy.canal_width
    _fill(image, _band(back + inner - 0.22 * inner, back + inner + 0.62 * inner, ys), rng.uniform(100, 125))

    # Vertebral bodies, then discs, so that a bulge lies over the canal.
    for number in range(-1, len(anatomy.herniated) + 1):
        y = anatomy.top + shift_y + (number + 0.5) * anatomy.pitch
        x, slope = centre(y)
        body = _rounded((x, y), (width, 0.74 * anatomy.pitch), slope, 0.18)
        _fill(image, body, anatomy.bone * rng.uniform(0.93, 1.07))

    boxes = []
    for number, (herniated, severity) in enumerate(zip(anatomy.herniated, anatomy.severity, strict=True)):
        y = anatomy.top + shift_y + number * anatomy.pitch
        x, slope = centre(y)
        mask = np.zeros((side, side), np.uint8)
        height = 0.27 * anatomy.pitch * (rng.uniform(1.0, 1.15) if not herniated else 0.95 - 0.25 * severity)
        _fill(mask, _rounded((x, y), (0.98 * width, height), slope, 0.45), 1)
        value = anatomy.disc * rng.uniform(0.95, 1.05)
        if herniated:
            value *= 0.62 - 0.22 * severity
            depth = anatomy.canal_width * (0.30 + 0.35 * severity)
            rear = (x + 0.47 * width, y + slope * 0.47 * width)
            _fill(mask, _ellipse(rear, (depth, 0.75 * height + 0.008), slope), 1)
        image[mask > 0] = value
        box = _box(mask, herniated)
        if box is not None:
            boxes.append(box)

    # The coil's shading, the scanner's blur, then noise on the magnitude (Rician) at the final size.
    grid = rng.uniform(0.75, 1.15, (3, 3)).astype(np.float32)
    shaded = image * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
    blurred = cv2.GaussianBlur(shaded, (0, 0), side / 220)
    small = cv2.resize(blurred, (imgsz, imgsz), interpolation=cv2.INTER_AREA)
    noise = rng.normal(0.0, rng.uniform(5.0, 12.0), (2, imgsz, imgsz))
    return np.clip(np.hypot(small + noise[0], noise[1]), 0, 255).astype(np.uint8), boxes


def _box(mask: np.ndarray, herniated: bool) -> tuple[int, tuple[float, float, float, float]] | None:
    """Class and box of a drawn disc, or None when less than a sliver of it lies inside the image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    side = mask.shape[0]
    if len(rows) < 0.015 * side or len(columns) < 0.05 * side:
        return None
    x1, x2, y1, y2 = columns[0] / side, (columns[-1] + 1) / side, rows[0] / side, (rows[-1] + 1) / side
    return (0 if herniated else 1), ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)


def _fill(image: np.ndarray, polygon: np.ndarray, value: float) -> None:
    """Fill a polygon of shape (N, 2), in fractions of the image's side, in place."""
    cv2.fillPoly(image, [np.round(polygon * image.shape[0]).astype(np.int32)], float(value))


def _band(left: np.ndarray, right: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Polygon between two lines running down the image."""
    return np.concatenate([np.stack([left, ys], 1), np.stack([right, ys], 1)[::-1]])


def _rounded(centre: tuple[float, float], size: tuple[float, float], slope: float, corner: float) -> np.ndarray:
    """Rectangle with rounded corners (a superellipse), turned so that it stands across a line of the given slope."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    power = 2 * corner
    points = np.stack([np.sign(f) * np.abs(f) ** power for f in (np.cos(angle), np.sin(angle))], 1)
    return _turn(points * np.array(size) / 2, slope) + np.array(centre)


def _ellipse(centre: tuple[float, float], radii: tuple[float, float], slope: float) -> np.ndarray:
    """Ellipse turned like `_rounded`."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return _turn(np.stack([np.cos(angle), np.sin(angle)], 1) * np.array(radii), slope) + np.array(centre)


def _turn(points: np.ndarray, slope: float) -> np.ndarray:
    """Rotate points of shape (N, 2) about the origin so that their y axis follows a line with dx/dy = slope."""
    angle = -np.arctan(slope)
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])
