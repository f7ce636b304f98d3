"""Folds of a data set: whose image is whose, which patients are held out together, and the lists that say so.

Nothing is copied: a fold is a YAML with two lists of images, which stay where they are, as do their labels.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from meddet_yolo.data.convert.csv import find_columns, table_rows
from meddet_yolo.data.convert.patients import find_patients
from meddet_yolo.data.convert.records import Collection, Item, pseudonym
from meddet_yolo.data.convert.yolo import PATIENTS_FILE, load_yaml, patients_by_file, read_yolo
from meddet_yolo.data.splits import check_leakage, contents_of_patients, split_patients
from meddet_yolo.data.unlabelled import find_source
from meddet_yolo.imaging.volumes import is_volume

__all__ = [
    "Fold",
    "assign_folds",
    "class_names",
    "make_folds",
    "own_unlabelled",
    "patients_of",
    "read_images",
    "write_folds",
]

_HOW = (
    r"add patient= with a regular expression with a group, such as patient='(p\d+)_', a CSV file with the columns "
    "image and patient, a column of a CSV file beside the YAML, `folder`, or `image` if no two are of one patient"
)
# Keys of a data set's YAML that a fold's has not, or of its own.
_MOVED = ("path", "train", "val", "test", "unlabelled", "download")


@dataclass(frozen=True)
class Fold:
    """One division of a data set.

    Attributes:
        index: Its number.
        train: Images to train on, as absolute paths.
        held_out: Images to measure on.
        unlabelled: Images whose labels are set aside; their patients are in neither of the others.
    """

    index: int
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()


def read_images(data: Path, patient: str | None = None) -> list[Item]:
    r"""Read a data set's images with their boxes, parts and patients.

    Args:
        data: The data set's YAML.
        patient: What tells the patient of an image: a regular expression with a group, searched in its path; a CSV file
            with the columns `image` and `patient`; a column of a CSV file beside the YAML; `folder`; or `image` if no
            two are of one patient. By default what a conversion wrote, a table of boxes beside the YAML that names
            patients, or BIDS's `sub-...`.

    Raises:
        FileNotFoundError: If the YAML, its images or a table are not there.
        ValueError: If something of the data set cannot be used, or the patient of an image is not known.
    """
    if not data.is_file():
        raise FileNotFoundError(f"data={data}: no such file")
    collection = read_yolo(data)
    if collection.problems:
        more = f" (and {len(collection.problems) - 1} more)" if len(collection.problems) > 1 else ""
        raise ValueError(f"{data} cannot be used as it is: {collection.problems[0]}{more}")
    if not collection.items:
        raise ValueError(f"{data} has no images in train and val")
    volume = next((item.path for item in collection.items if is_volume(item.path)), None)
    if volume is not None:
        raise ValueError(f"{volume} is DICOM or NIfTI: make pictures of the data set with `meddet convert` first")
    _set_patients(collection, data, patient)
    unknown = [item for item in collection.items if item.patient is None]
    if unknown:
        raise ValueError(
            f"which patient {len(unknown)} of {len(collection.items)} images are of is not known, "
            f"{collection.shown(unknown[0].path)} for example: {_HOW}"
        )
    return collection.items


def _set_patients(collection: Collection, data: Path, patient: str | None) -> None:
    """Set the patient of every image as far as it is known."""
    items = collection.items
    if patient is None and all(item.patient is not None for item in items):
        return
    if patient is not None and Path(patient).suffix.lower() == ".csv":
        table = next((p for p in (Path(patient), data.parent / patient) if p.is_file()), None)
        if table is None:
            raise FileNotFoundError(f"patient={patient}: no such file")
        known = _patients_in(table, None)
        if not known:
            raise ValueError(f"patient={patient}: no columns image and patient in it")
    elif patient is None or (re.fullmatch(r"[\w .-]+", patient) and patient not in ("folder", "image")):
        known = {}
        for table in sorted(data.parent.glob("*.csv")):
            known.update(_patients_in(table, patient))
        if patient is not None and not known:
            raise ValueError(f"patient={patient}: no CSV file beside {data} has such a column; {_HOW}")
    else:
        find_patients(collection, patient)
        return
    for item in items:
        item.patient = known.get(item.path.name, known.get(item.path.stem, item.patient))
    if patient is None:
        find_patients(collection, None)


def _patients_in(table: Path, column: str | None) -> dict[str, str]:
    """Return the patient of every image that a table names; nothing if it has no such columns.

    Raises:
        ValueError: If the table has two patients for one image.
    """
    header, rows = table_rows(table)
    try:
        columns = find_columns(header, patient=column)
        image, patient = columns.image, columns.patient
    except ValueError:  # no table of boxes
        image, patient = "image", column or "patient"
    if image not in header or patient not in header:
        return {}
    hide = "name" in patient.lower()
    known: dict[str, str] = {}
    for row in rows:
        entry = dict(zip(header, row, strict=False))
        name, who = Path(entry.get(image, "").strip()).name, entry.get(patient, "").strip()
        if name and who:
            who = pseudonym(who) if hide else who
            if known.setdefault(name, who) != who:
                raise ValueError(f"{table} has two patients for {name}: {known[name]} and {who}")
    return known


def assign_folds(items: Sequence[Item], folds: int, seed: int = 0) -> list[int]:
    """Return the fold of each image: each patient in one of them, images and boxes of all classes evenly spread.

    Args:
        items: Images with patients and boxes.
        folds: Number of folds, at least 2.
        seed: Seed of the division.

    Raises:
        ValueError: If there are more folds than patients.

    Examples:
        >>> items = [Item(Path(f"{i}.png"), patient=f"p{i // 2}") for i in range(8)]
        >>> fold = assign_folds(items, 2)
        >>> fold.count(0), fold[0] == fold[1]
        (4, True)
    """
    table = _contents(items)
    if folds > len(table):
        raise ValueError(f"folds={folds}, but there are only {len(table)} patients: at most one fold a patient")
    part = split_patients(table, {str(fold): 1 / folds for fold in range(folds)}, seed=seed)
    return [int(part[str(item.patient)]) for item in items]


def _contents(items: Sequence[Item]) -> dict[str, list[float]]:
    return contents_of_patients((str(item.patient), [("class", box.name) for box in item.boxes]) for item in items)


def make_folds(items: Sequence[Item], folds: int, seed: int = 0, labelled: float = 1.0) -> list[Fold]:
    """Divide a data set.

    Args:
        items: Its images.
        folds: Number of folds over the images of train and val together, those of a test part left out; 1 keeps the
            data set's own division and measures on `test` where there is one, else on `val`.
        seed: Seed of the division.
        labelled: Share of a fold's training patients who keep their labels, in (0, 1]; at least one does, and below 1
            at least one does not. The images of the others become the fold's `unlabelled`.

    Raises:
        LeakageError: If the data set's own division has a patient on both sides.
        ValueError: If there are more folds than patients, the data set's own division lacks a part, or a fold has too
            few patients for the share.
    """
    if folds == 1:
        held_out = "test" if any(item.split == "test" for item in items) else "val"
        used = [item for item in items if item.split in ("train", held_out)]
        if {item.split for item in used} != {"train", held_out}:
            raise ValueError("folds=1 needs the parts train and val (or test) in the data set: give folds= above 1")
        check_leakage((str(item.patient), str(item.split)) for item in used)
        return [_fold(0, used, [item.split == held_out for item in used], labelled, seed)]
    used = [item for item in items if item.split != "test"]
    fold_of = assign_folds(used, folds, seed)
    return [_fold(index, used, [fold == index for fold in fold_of], labelled, seed) for index in range(folds)]


def _fold(index: int, items: Sequence[Item], held_out: Sequence[bool], labelled: float, seed: int) -> Fold:
    train = [item for item, out in zip(items, held_out, strict=True) if not out]
    measured = [item for item, out in zip(items, held_out, strict=True) if out]
    aside: set[str] = set()
    if labelled < 1:
        shares = {"labelled": labelled, "unlabelled": 1 - labelled}
        part = split_patients(_contents(train), shares, seed=seed)
        aside = {patient for patient, name in part.items() if name == "unlabelled"}
    kept = [item for item in train if str(item.patient) not in aside]
    rest = [item for item in train if str(item.patient) in aside]
    return Fold(index, _paths(kept), _paths(measured), _paths(rest))


def _paths(items: Sequence[Item]) -> tuple[str, ...]:
    return tuple(sorted(str(item.path) for item in items))


def own_unlabelled(data: Path) -> list[str]:
    """Return the folders and lists of images without labels that a data set's YAML names under `unlabelled`.

    Raises:
        FileNotFoundError: If one of them is not there.
        ValueError: If that is neither a path nor a list of paths.
    """
    return list(find_source(data).places) if load_yaml(data).get("unlabelled") else []


def write_folds(folder: Path, data: Path, items: Sequence[Item], folds: Sequence[Fold]) -> dict[int, Path]:
    """Write the folds as data sets that Ultralytics reads, and who is in which.

    Images without labels, those of the data set and those whose labels are set aside, stand under `unlabelled`; a table
    of patients beside each YAML lets a training leave out those who are held out.

    Args:
        folder: Where to; files that are there already must say the same.
        data: The YAML of the data set, whose other keys the folds' YAMLs have too.
        items: The images with their patients.
        folds: The folds.

    Returns:
        The YAML of each fold.

    Raises:
        ValueError: If the folder holds other folds.
    """
    used = {image for fold in folds for image in (*fold.train, *fold.held_out, *fold.unlabelled)}
    whose = {str(item.path): str(item.patient) for item in items if str(item.path) in used}
    record: dict[str, Any] = {
        "patients": whose,
        "held_out": {str(fold.index): list(fold.held_out) for fold in folds},
    }
    if any(fold.unlabelled for fold in folds):
        record["unlabelled"] = {str(fold.index): list(fold.unlabelled) for fold in folds}
    table = folder / "folds.json"
    if table.is_file() and json.loads(table.read_text(encoding="utf-8")) != record:
        raise ValueError(
            f"{folder.parent} was begun with other images, patients or folds: give the same data=, folds=, fold_seed=, "
            "labelled= and patient=, or another out="
        )
    content = yaml.safe_load(data.read_text(encoding="utf-8-sig"))
    rest = {key: value for key, value in content.items() if key not in _MOVED}
    more = own_unlabelled(data)
    patients = _table_of_patients(data, whose) if more or "unlabelled" in record else ""
    paths = {}
    for fold in folds:
        place = folder / f"fold{fold.index}"
        place.mkdir(parents=True, exist_ok=True)
        for name, images in (("train", fold.train), ("val", fold.held_out), ("unlabelled", fold.unlabelled)):
            if images:
                (place / f"{name}.txt").write_text("".join(f"{image}\n" for image in images), encoding="utf-8")
        paths[fold.index] = place / "data.yaml"
        lists: dict[str, Any] = {"train": "train.txt", "val": "val.txt"}
        if more or fold.unlabelled:
            lists["unlabelled"] = [*(["unlabelled.txt"] if fold.unlabelled else []), *more]
        if patients:
            (place / PATIENTS_FILE).write_text(patients, encoding="utf-8")
        text = yaml.safe_dump({**lists, **rest}, sort_keys=False, allow_unicode=True)
        paths[fold.index].write_text(text, encoding="utf-8")
    table.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return paths


def _table_of_patients(data: Path, patients: Mapping[str, str]) -> str:
    """Return a table of the patients of all images; the data set's own table, which has more of them, comes first."""
    known = {**patients, **patients_by_file(data.parent / PATIENTS_FILE)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("image", "patient"), *sorted(known.items())])
    return text.getvalue()


def class_names(data: Path) -> list[str]:
    """Return the class names of a data set by index."""
    names = yaml.safe_load(data.read_text(encoding="utf-8-sig"))["names"]
    return [str(names[i]) for i in sorted(names)] if isinstance(names, dict) else [str(name) for name in names]


def patients_of(folder: Path) -> Mapping[str, str]:
    """Return the patient of every image, as `write_folds` noted it."""
    patients: dict[str, str] = json.loads((folder / "folds.json").read_text(encoding="utf-8"))["patients"]
    return patients
