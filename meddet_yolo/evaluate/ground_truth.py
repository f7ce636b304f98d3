"""The labelled boxes of a data set, as its YAML tells them, and whose image each is."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset, img2label_paths
from ultralytics.utils import USER_CONFIG_DIR

from meddet_yolo.data.convert.yolo import PATIENTS_FILE
from meddet_yolo.data.labels import label_problem
from meddet_yolo.data.shipped import find_data
from meddet_yolo.evaluate.detections import Truth, TruthSet
from meddet_yolo.imaging.grey import checked_window
from meddet_yolo.imaging.search import CACHE_SUFFIX
from meddet_yolo.imaging.slice_cache import cache_slices
from meddet_yolo.imaging.volumes import VolumeError, is_volume, open_volume

__all__ = ["columns_of", "read_column", "truth_of"]

_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
_IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "name")


def truth_of(
    data: str | Path, split: str = "val", *, patients: str | Path | None = None, patient_column: str = "patient"
) -> TruthSet:
    """Read the labelled boxes of a part of a data set.

    Labels are read as Ultralytics reads them: polygons become boxes, rows that are repeated count once, coordinates are
    clipped to the image, an image without a label file has no boxes. DICOM and NIfTI files are decoded once to
    pictures, as for training, and their pixel spacing is kept.

    Whose image each is, is taken from `patients`, else from the `patients.csv` that `meddet convert` writes beside the
    YAML, else from CSV files `*_boxes.csv` there with the columns `image` and `patient`; else it is unknown.

    Args:
        data: The data set's YAML, or the bare name of one that is shipped.
        split: "val", "test" or "train".
        patients: A CSV with a column of image names (`image`, `file`, `filename`, `path` or `name`).
        patient_column: Its column of patients.

    Raises:
        FileNotFoundError: The data set, the split or the CSV is not there.
        ValueError: A label or an image that cannot be read, or a CSV without one of the columns.

    Examples:
        >>> truth = truth_of("d.yaml", "test")  # doctest: +SKIP
        >>> len(truth), truth.names, truth.patients is None  # doctest: +SKIP
        (43, ('normal_disc', 'abnormal_disc'), False)
    """
    content: dict[str, Any] = check_det_dataset(str(find_data(data)), split=split)
    names = tuple(str(content["names"][i]) for i in sorted(content["names"]))
    labels, spacings = _files(content, split)
    source = f"{data} split={split}"
    if not labels:
        raise FileNotFoundError(f"{source}: there are no images")
    if problem := label_problem(labels.values(), len(names)):
        raise ValueError(problem)
    known = _names([Path(image) for image in labels])
    folder = Path(str(content.get("yaml_file") or data)).parent
    owners, notes = _patients(folder, patients, patient_column)
    images = []
    for image, label in labels.items():
        size = _size(image)
        classes, boxes = _read_labels(label, size)
        name = known[image]
        owner = owners.get(name) or owners.get(image.name) or owners.get(image.stem)
        images.append(Truth(name, boxes, classes, size, owner, spacings.get(image), image))
    unknown = [image.name for image in images if image.patient is None]
    if owners and unknown:
        notes.append(f"the patient of {len(unknown)} of {len(images)} images is unknown, for example of {unknown[0]}")
    return TruthSet(tuple(images), names, source, tuple(notes))


def columns_of(file: str | Path) -> list[str]:
    """Return the names of a CSV's columns.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file")
    with Path(file).open(newline="", encoding="utf-8-sig") as rows:
        return list(_rows(rows).fieldnames or [])


def _rows(file: TextIO) -> csv.DictReader[str]:
    """Return the rows of an opened CSV, whatever separates its columns."""
    first = file.readline()
    file.seek(0)
    return csv.DictReader(file, delimiter=max(",;\t", key=first.count))


def read_column(file: str | Path, column: str) -> dict[str, str]:
    """Read a column of a CSV by image name; rows of one image must agree.

    Args:
        file: A CSV with a header; commas, semicolons or tabs. The image is named by the first of the columns `image`,
            `file`, `filename`, `file_name`, `path` and `name` that is there.
        column: The column.

    Returns:
        The value of each image that has one, by file name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such column, or an image has two values.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open(newline="", encoding="utf-8-sig") as rows:
        reader = _rows(rows)
        columns = reader.fieldnames or []
        image_column = next((c for c in _IMAGE_COLUMNS if c in columns), None)
        if image_column is None or column not in columns:
            wanted = repr(column) if image_column is not None else "image"
            raise ValueError(f"{path} has no column {wanted}; it has {', '.join(columns)}")
        values: dict[str, str] = {}
        for row in reader:
            name, value = Path((row[image_column] or "").replace("\\", "/")).name, (row[column] or "").strip()
            if not name or not value:
                continue
            if values.setdefault(name, value) != value:
                raise ValueError(f"{path}: {name} has the {column} {values[name]!r} and {value!r}, expected one")
        return values


def _files(content: Mapping[str, Any], split: str) -> tuple[dict[Path, Path], dict[Path, tuple[float, float]]]:
    """Return the label file of every image, in the images' order, and the pixel spacing where it is known."""
    places = content.get(split) or []
    files: list[Path] = []
    for place in [places] if isinstance(places, (str, Path)) else places:
        path = Path(place)
        if path.is_dir():
            files += [f for f in path.rglob("*") if f.is_file()]
        else:
            lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
            files += [path.parent / line if line.startswith("./") else Path(line) for line in lines if line]
    volumes = [f for f in files if is_volume(f)]
    images = [f for f in files if f.suffix[1:].lower() in IMG_FORMATS and f.parent.suffix != CACHE_SUFFIX]
    images = [f for f in images if f not in set(volumes)]
    labels = dict(zip(images, map(Path, img2label_paths([str(f) for f in images])), strict=True))
    spacings: dict[Path, tuple[float, float]] = {}
    if volumes:
        decoded = cache_slices(
            volumes,
            label_folder=lambda folder: Path(img2label_paths([str(folder / "x.png")])[0]).parent,
            fallback=Path(USER_CONFIG_DIR) / "slices",
            slices=content.get("slices", "labelled"),
            window=checked_window(content.get("window", "header")),
        )
        labels |= decoded.labels
        sizes = _volume_spacings(volumes)
        spacings = {picture: sizes[picture.stem] for picture in decoded.labels if picture.stem in sizes}
    return dict(sorted(labels.items())), spacings


def _volume_spacings(volumes: Iterable[Path]) -> dict[str, tuple[float, float]]:
    """Return the pixel spacing (height, width) in mm of every slice by its name, where the file says it."""
    found: dict[str, tuple[float, float]] = {}
    for file in volumes:
        try:
            parts = open_volume(file, "all").parts
        except VolumeError:  # it has no pictures either
            continue
        found |= {part.name: part.geometry.spacing for part in parts if part.geometry.spacing is not None}
    return found


def _names(images: list[Path]) -> dict[Path, str]:
    """Return a name for every image: that of its file or, where two are alike, with as many folders as it takes."""
    names = {image: image.name for image in images}
    depth = 2
    while len(set(names.values())) < len(names):
        counts: dict[str, int] = {}
        for name in names.values():
            counts[name] = counts.get(name, 0) + 1
        longer = {i: "/".join(i.parts[-depth:]) if counts[n] > 1 else n for i, n in names.items()}
        if longer == names:
            break
        names, depth = longer, depth + 1
    return names


def _size(image: Path) -> tuple[int, int]:
    """Return an image's (height, width) as it is shown, from its header."""
    try:
        with Image.open(image) as opened:
            width, height = opened.size
            turned = opened.getexif().get(_ORIENTATION) in _TURNED
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {image}: no such file") from error
    except (
        OSError,
        UnidentifiedImageError,
        ImportError,
    ) as error:  # Ultralytics' Pillow tries a plugin before it fails
        raise ValueError(f"image {image} cannot be read: no image, or damaged") from error
    return (width, height) if turned else (height, width)


def _read_labels(label: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return classes (N,) and boxes (N, 4) in pixels of a label file."""
    rows: dict[tuple[float, ...], None] = {}
    lines = label.read_text(encoding="utf-8-sig").splitlines() if label.is_file() else []
    for line in lines:
        if fields := [float(field) for field in line.split()]:
            rows[(fields[0], *_corners(np.clip(fields[1:], 0, 1)))] = None
    table = np.array(list(rows), np.float64).reshape(-1, 5)
    height, width = size
    boxes = np.clip(table[:, 1:], 0, 1) * [width, height, width, height]
    return table[:, 0].astype(np.int64), boxes


def _corners(values: np.ndarray) -> list[float]:
    """Return the corners of a box (centre, width, height) or of a polygon, in fractions."""
    if len(values) == 4:
        x, y, width, height = values.tolist()
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    x, y = values[::2], values[1::2]
    return [float(x.min()), float(y.min()), float(x.max()), float(y.max())]


def _patients(folder: Path, patients: str | Path | None, column: str) -> tuple[dict[str, str], list[str]]:
    """Return the patient of every image by file name, and notes."""
    if patients is not None:
        return read_column(patients, column), []
    if (folder / PATIENTS_FILE).is_file():
        return read_column(folder / PATIENTS_FILE, "patient"), []
    owners: dict[str, str] = {}
    for file in sorted(folder.glob("*_boxes.csv")):
        try:
            owners |= read_column(file, "patient")
        except ValueError:  # a table of something else
            continue
    if owners:
        return owners, []
    return {}, [
        f"patients are unknown (no {PATIENTS_FILE} beside the YAML, no table of them): images are resampled instead"
    ]
