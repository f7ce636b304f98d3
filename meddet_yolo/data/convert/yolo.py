"""Reading a data set that is in YOLO layout already, to check it or to split it anew."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from meddet_yolo.data.convert.records import Collection, Item, NamedBox, image_files
from meddet_yolo.data.labels import label_problem
from meddet_yolo.data.splits import SPLITS
from meddet_yolo.imaging.limits import MAX_PIXELS
from meddet_yolo.imaging.volumes import is_volume, open_volume, reason_of, stem_of

__all__ = ["PATIENTS_FILE", "data_root", "label_file", "load_yaml", "patients_by_file", "read_yolo"]

_LARGEST = 1 << 22  # bytes of a YAML

PATIENTS_FILE = "patients.csv"  # image, patient, split; written by every conversion


def load_yaml(path: Path) -> Any:
    """Read a small YAML.

    Raises:
        ValueError: If it is none, or larger than any description of a data set.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is larger than {_LARGEST} bytes: no YAML of a data set")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except Exception as error:  # also of values that are no values, such as a date of month 13
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{path} is no valid YAML ({reason[:200]})") from error


def _names(given: Any, data: Path) -> list[str]:
    """Return the class names in their order."""
    wrong = f"{data}: names are not as expected, a list of names or number: name from 0"
    if isinstance(given, dict):
        numbered = {str(key): name for key, name in given.items()}
        if numbered.keys() != set(map(str, range(len(given)))):
            raise ValueError(f"{wrong}; the keys are {', '.join(key[:20] for key in list(numbered)[:5])}")
        given = [numbered[str(number)] for number in range(len(given))]
    if not isinstance(given, list) or not all(isinstance(name, (str, int, float)) for name in given):
        raise ValueError(wrong)
    return [str(name) for name in given]


def read_yolo(data: Path, max_pixels: int = MAX_PIXELS) -> Collection:
    """Read a data set's YAML, images and labels.

    Where the data set has a `patients.csv` beside its YAML, patients are taken from there.

    Args:
        data: The YAML, with `train`, `val` and perhaps `test`, and `names`.
        max_pixels: The most pixels that a picture may have.

    Raises:
        ValueError: If the YAML is none of a data set.
        FileNotFoundError: If its images are not there.
    """
    content = load_yaml(data)
    if not isinstance(content, dict) or not content.get("names") or not any(content.get(part) for part in SPLITS):
        raise ValueError(f"{data} is no YAML of a data set: expected train, val and names in it")
    names = _names(content["names"], data)
    collection = Collection(data_root(content, data), names=names)
    patients = {Path(image).name: who for image, who in patients_by_file(data.parent / PATIENTS_FILE).items()}
    for part in SPLITS:
        for path in _images(collection.root, content.get(part), part):
            try:
                slices = _slices(path, max_pixels)
            except ImportError:  # what is missing is missing for all
                raise
            except Exception as error:
                collection.leave_out(path, reason_of(error))
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


def data_root(content: Mapping[str, Any], data: Path) -> Path:
    """Return the folder that the paths in a data set's YAML start from.

    Args:
        content: The YAML's content.
        data: The YAML.

    Raises:
        ValueError: If its `path` is no name of a folder.
    """
    given = content.get("path") or data.parent
    if not isinstance(given, (str, Path)):
        raise ValueError(f"{data}: path is a {type(given).__name__}, expected a folder's name")
    try:
        root = Path(given)
        return (root if root.is_absolute() or root.exists() else data.parent / root).resolve()
    except (OSError, ValueError) as error:
        raise ValueError(f"{data}: path {str(given)[:60]!r} is no name of a folder") from error


def _slices(path: Path, max_pixels: int) -> dict[int | None, Path]:
    """Return the label file of an image or, by their numbers, of those slices of a volume that have one."""
    if not is_volume(path):
        return {None: label_file(path)}
    folder, stem, parts = label_file(path).parent, stem_of(path), open_volume(path, "all", max_pixels).parts
    if len(parts) == 1:
        return {parts[0].index: folder / f"{stem}.txt"}
    return {part.index: labels for part in parts if (labels := folder / f"{stem}_s{part.index:03d}.txt").is_file()}


def _images(root: Path, places: Any, part: str) -> list[Path]:
    """Return the images of a part: folders, or text files that list them."""
    files: list[Path] = []
    places = [places] if isinstance(places, str) else places or []
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise ValueError(f"{part}: expected the name of a folder or list of images, or several")
    for place in places:
        try:
            path = (root / place).resolve()
            kind = "folder" if path.is_dir() else "list" if path.is_file() else None
        except (OSError, ValueError) as error:
            raise FileNotFoundError(f"{part}: {place[:60]!r} is no name of a folder") from error
        if kind == "folder":
            files += image_files(path)
        elif kind == "list":
            try:
                lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            except UnicodeDecodeError as error:
                raise ValueError(f"{part}: {path} is no list of images in UTF-8") from error
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


def patients_by_file(table: Path) -> dict[str, str]:
    """Return the patient of every image that a conversion's table of patients has, by the image's full path.

    Args:
        table: The file, in which paths are relative to its folder; one that is not there has no images.

    Raises:
        ValueError: If it is no such table.
    """
    if not table.is_file():
        return {}
    folder = table.parent
    try:
        with table.open(newline="", encoding="utf-8-sig") as rows:
            pairs = [(str((folder / row["image"]).resolve()), row["patient"]) for row in csv.DictReader(rows)]
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{table} is no table with the columns image and patient: mend it or take it away") from error
    return {image: patient for image, patient in pairs if patient}
