"""Reading a data set that is in YOLO layout already, to check it or to split it anew."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from meddet_yolo.data.convert.records import Collection, Item, NamedBox, image_files
from meddet_yolo.data.labels import label_problem
from meddet_yolo.data.splits import SPLITS
from meddet_yolo.imaging.volumes import VolumeError, is_volume, open_volume, stem_of

__all__ = ["PATIENTS_FILE", "label_file", "read_yolo"]

PATIENTS_FILE = "patients.csv"  # image, patient, split; written by every conversion


def read_yolo(data: Path) -> Collection:
    """Read a data set's YAML, images and labels.

    Where the data set has a `patients.csv` beside its YAML, patients are taken from there.

    Args:
        data: The YAML, with `train`, `val` and perhaps `test`, and `names`.

    Raises:
        ValueError: If the YAML is none of a data set.
        FileNotFoundError: If its images are not there.
    """
    try:
        content = yaml.safe_load(data.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{data} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content.get("names") or not any(content.get(part) for part in SPLITS):
        raise ValueError(f"{data} is no YAML of a data set: expected train, val and names in it")
    names = content["names"]
    names = [str(names[i]) for i in sorted(names)] if isinstance(names, dict) else [str(name) for name in names]
    root = Path(content.get("path") or data.parent)
    root = root if root.is_absolute() or root.exists() else data.parent / root
    collection = Collection(root.resolve(), names=names)
    patients = _patients(data.parent / PATIENTS_FILE)
    for part in SPLITS:
        for path in _images(collection.root, content.get(part), part):
            try:
                slices = _slices(path)
            except VolumeError as error:
                collection.leave_out(path, str(error))
                continue
            for index, labels in slices.items():
                if problem := label_problem([labels], len(names)):
                    collection.leave_out(labels, problem.removeprefix(f"{labels}, "))
                    continue
                item = Item(path, split=part, upright=True, fractions=True, index=index)
                item.patient = patients.get(path.name)
                item.boxes = [NamedBox(names[int(row[0])], _corners(row[1:])) for row in _rows(labels)]
                collection.items.append(item)
    return collection


def _slices(path: Path) -> dict[int | None, Path]:
    """Return the label file of an image or, by their numbers, of those slices of a volume that have one."""
    if not is_volume(path):
        return {None: label_file(path)}
    folder, stem, parts = label_file(path).parent, stem_of(path), open_volume(path).parts
    if len(parts) == 1:
        return {parts[0].index: folder / f"{stem}.txt"}
    return {part.index: labels for part in parts if (labels := folder / f"{stem}_s{part.index:03d}.txt").is_file()}


def _images(root: Path, places: Any, part: str) -> list[Path]:
    """Return the images of a part: folders, or text files that list them."""
    files: list[Path] = []
    for place in [places] if isinstance(places, str) else places or []:
        path = (root / place).resolve()
        if path.is_dir():
            files += image_files(path)
        elif path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            files += [(path.parent / line).resolve() if line.startswith("./") else root / line for line in lines]
        else:
            raise FileNotFoundError(f"{part}: {path} is not there")
    return files


def label_file(image: Path) -> Path:
    """Return where Ultralytics looks for an image's labels.

    Examples:
        >>> label_file(Path("d/images/train/a.png")).as_posix()
        'd/labels/train/a.txt'
    """
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _rows(labels: Path) -> list[list[float]]:
    if not labels.is_file():
        return []
    lines = labels.read_text(encoding="utf-8-sig").splitlines()
    return [[float(field) for field in line.split()] for line in lines if line.strip()]


def _corners(values: list[float]) -> tuple[float, float, float, float]:
    """Return the corners of a box (centre, width, height) or of a polygon."""
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _patients(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8-sig") as rows:
        return {Path(row["image"]).name: row["patient"] for row in csv.DictReader(rows)}
