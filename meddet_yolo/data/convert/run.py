"""From COCO, Pascal VOC, CSV and segmentation masks to a data set in YOLO layout, split by patient."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddet_yolo.data.audit import Audit, Entry, audit
from meddet_yolo.data.convert.contact_sheet import write_contact_sheet
from meddet_yolo.data.convert.formats import read_source
from meddet_yolo.data.convert.patients import assign_parts, find_patients, set_labels_aside
from meddet_yolo.data.convert.pixels import Picture, read_picture
from meddet_yolo.data.convert.records import Collection, Item
from meddet_yolo.data.convert.write import LOCK, Planned, earlier_files, write_data_set
from meddet_yolo.data.duplicates import fingerprint
from meddet_yolo.files import alone
from meddet_yolo.imaging.limits import MAX_PIXELS, checked_max_pixels
from meddet_yolo.imaging.volumes import reason_of

__all__ = ["Conversion", "convert", "convert_command"]

_REACH = 1.0  # pixels that a box may reach out of its image before that is worth a mention


@dataclass
class Conversion:
    """What a conversion or a check came to.

    Attributes:
        data: The data set's YAML; None after a check.
        audit: The report.
        problems: Files, boxes and images that were left out, each with its reason.
        report: The report as Markdown; None after a check without a folder for it.
        pictures: A picture of what a check has found to be looked at; None where there is none.
    """

    data: Path | None
    audit: Audit
    problems: list[str]
    report: Path | None = None
    pictures: Path | None = None

    def __str__(self) -> str:
        """Return the report in short, and where the rest is."""
        files = {"report": self.report, "pictures": self.pictures, "data": self.data}
        return "\n".join([self.audit.as_text(), *(f"{name}={path}" for name, path in files.items() if path)])


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    format: str = "auto",
    images: str | Path | None = None,
    masks: str | Path | None = None,
    patient: str | None = None,
    split: str = "auto",
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    labelled: float = 1.0,
    classes: Any = None,
    label: str | None = None,
    min_area: int = 4,
    instances: bool = False,
    rename: bool = False,
    max_pixels: int = MAX_PIXELS,
    check: bool = False,
) -> Conversion:
    """Convert annotated images to a data set in YOLO layout, or check one.

    Images are decoded and written anew as PNG, so that nothing that identifies a patient is taken along but the names
    of files, which `rename` replaces. Patients get pseudonyms.

    Args:
        source: Annotation file or folder: COCO JSON, Pascal VOC XML, CSV, masks (PNG or NIfTI), or the YAML of a YOLO
            data set.
        out: Folder for the data set: new, empty or of an earlier conversion. With `check`, where the report goes.
        format: `coco`, `voc`, `csv`, `masks`, `yolo`, or `auto` to recognise it.
        images: Folder of the images, where they are not beside the annotations.
        masks: Folder of the masks.
        patient: What tells the patient of an image: a column of the CSV; a regular expression with a group, searched in
            the image's path; `folder` for the folder it lies in; or `image` if no two files are of one patient. By
            default a column or key that is named so, BIDS's `sub-...`, or the patient ID of a DICOM file.
        split: `given` keeps the parts that the source has, `new` makes them; `auto` keeps them where it has them.
        val: Patients for validation: a share in (0, 1), or their number.
        test: Patients for the test part: a share in [0, 1), or their number.
        seed: Seed of a new split, and of the choice that `labelled` makes.
        labelled: Share of the training patients who keep their labels, in (0, 1]. The images of the others are listed
            under `unlabelled` in the YAML, for `train`'s key of that name; their labels lie where they would, unlisted.
        classes: Class names in the wanted order; boxes of others are left out. For masks, `{1: herniation, 2: normal}`
            or a list of the names of the labels 1, 2, ...
        label: Column of the class in a CSV.
        min_area: Smallest component of a mask, in pixels, at least 1.
        instances: Whether the labels of masks number objects, so that each label is one box.
        rename: Whether to name images by pseudonym and number.
        max_pixels: The most pixels that a picture may have; what is larger is left out with its reason.
        check: Whether only to report, without writing a data set.

    Returns:
        Where the data set is, and the report, which also lies beside it as `report.md` and `report.json`.

    Raises:
        FileExistsError: If `out` holds something that no conversion wrote.
        BlockingIOError: If another conversion is writing to `out`.
        FileNotFoundError: If there are no annotations or images.
        LeakageError: If the given split has images of one patient in several parts.
        ValueError: If an argument is not valid, or nothing is left to write.

    Examples:
        >>> convert("boxes.csv", "dataset", patient="patient_id", val=0.2)  # doctest: +SKIP
        >>> print(convert("dataset/data.yaml", check=True))  # doctest: +SKIP
    """
    _check_arguments(split, val, test, seed, min_area)
    labelled = _share(labelled)
    if out is None and not check:
        raise ValueError("out= is missing: name a folder for the data set, or add check=True to only look at it")
    top, folder = Path(source).expanduser(), Path(out).expanduser() if out is not None else None
    if folder is not None:
        _keep_apart(top, folder, check)
    mask_names, max_pixels = _mask_names(classes), checked_max_pixels(max_pixels)
    column = patient if patient is not None and re.fullmatch(r"[\w .-]+", patient) else None
    kind, collection = read_source(
        top,
        format,
        images=None if images is None else Path(images).expanduser(),
        masks=None if masks is None else Path(masks).expanduser(),
        label=label,
        patient=column if column not in ("folder", "image") else None,
        mask_names=mask_names,
        min_area=min_area,
        instances=instances,
        max_pixels=max_pixels,
    )
    if not (kind == "csv" and column not in (None, "folder", "image")):
        find_patients(collection, patient)
    names = _class_names(collection, None if kind == "masks" else classes)
    planned, entries = _look_at(collection, names, max_pixels)
    if not planned:
        reasons = [*collection.notes, *map(str, collection.problems)]
        raise ValueError(f"{top} has no image that can be used{f': {reasons[0]}' if reasons else ''}")
    leak = assign_parts(
        planned, collection, "given" if check and split == "auto" else split, val, test, seed, check=check
    )
    if labelled < 1 and not check:
        collection.notes.append(set_labels_aside(planned, labelled, seed))
    _name(planned, entries, rename=rename)
    report = audit(entries, names, notes=collection.notes, left_out=[str(p) for p in collection.problems])
    report.leaks[:0] = leak
    data = written = picture = None
    arguments = {"format": kind, "split": split, "val": val, "test": test, "seed": seed, "rename": rename}
    arguments |= {"labelled": labelled} if labelled < 1 else {}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / LOCK, f"another process is writing to out={folder}: wait for it, or name another folder"):
            written = folder / "report.md"
            if not check:
                data = write_data_set(folder, planned, names, arguments, max_pixels, _progress("writing"))
            report.write(folder, f"{'Check' if check else 'Conversion'} of a data set ({kind})")
            if check:
                picture = write_contact_sheet(folder / "findings.png", report.findings, entries, planned, max_pixels)
    return Conversion(data, report, report.left_out, written, picture)


@functools.wraps(convert)
def convert_command(*args: Any, **options: Any) -> str:
    """Convert or check for the command line: print the report, then fail if anything was left out or leaks."""
    result = convert(*args, **options)
    failures = [*result.audit.leaks, *result.problems]
    if not failures:
        return str(result)
    print(result)
    more = f"; and {len(failures) - 1} more, all in the report" if len(failures) > 1 else ""
    what = "found" if options.get("check") or result.audit.leaks else "left out, the rest is done"
    raise ValueError(f"{what}: {failures[0]}{more}")


# Arguments ------------------------------------------------------------------------------------------------------------


def _check_arguments(split: str, val: float, test: float, seed: int, min_area: int) -> None:
    if split not in ("auto", "given", "new"):
        raise ValueError(f"split={split!r} is unknown: expected auto, given or new")
    for name, value in (("val", val), ("test", test)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (0 <= value < 1 or (value >= 1 and value == int(value))):
            raise ValueError(f"{name}={value!r}: expected a share from 0 to below 1, or a number of patients")
    if val == 0 or (val < 1 and test < 1 and val + test >= 1):
        raise ValueError(f"val={val:g} and test={test:g} must leave patients for validation and for training")
    for name, value, least in (("seed", seed, 0), ("min_area", min_area, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} is no whole number of at least {least}")


def _share(labelled: float) -> float:
    """Check the share of the training patients who keep their labels."""
    number = isinstance(labelled, (int, float)) and not isinstance(labelled, bool)
    if not number or not 0 < labelled <= 1:
        raise ValueError(f"labelled={labelled!r}: expected a share of the training patients, above 0 and at most 1")
    return float(labelled)


def _keep_apart(source: Path, out: Path, check: bool) -> None:
    """Refuse a target that is foreign, or inside the source or around it."""
    here, there = source.resolve(), out.resolve()
    inside = here if here.is_dir() else None
    if there == here or (inside is not None and there.is_relative_to(inside)) or here.is_relative_to(there):
        if not check:
            raise ValueError(f"out={out} and source={source} lie within each other: name a folder of its own")
        return
    if not check:
        earlier_files(out)  # refuses what is foreign
    elif (out / "report.md").exists() and not (out / "report.json").exists():
        raise FileExistsError(f"out={out} holds a report.md of something else: name another folder")


def _mask_names(classes: Any) -> dict[int, str] | None:
    """Return the class of each label: from a mapping, or a list for labels from 1."""
    if isinstance(classes, str) and classes.strip().startswith("{"):  # unquoted names, as a shell leaves them
        pairs = [pair.split(":", 1) for pair in classes.strip().strip("{}").split(",") if pair.strip()]
        classes = {key.strip(): value[0].strip().strip("'\"") if value else "" for key, *value in pairs}
    if isinstance(classes, Mapping):
        try:
            names = {int(value): str(name) for value, name in classes.items()}
        except ValueError as error:
            raise ValueError(f"classes={classes!r}: expected label: name, such as {{1: herniation}}") from error
        if min(names, default=1) < 1 or not all(names.values()):
            raise ValueError(f"classes={classes!r}: labels count from 1 (0 is background) and need a name each")
        return names
    listed = _listed(classes)
    return {value: name for value, name in enumerate(listed, start=1)} if listed else None


def _listed(classes: Any) -> list[str]:
    """Return class names given as a list, or as `[a,b]` or `a,b` in a string."""
    if classes is None or isinstance(classes, Mapping):
        return []
    if isinstance(classes, str):
        classes = [part.strip().strip("'\"") for part in classes.strip().strip("[]").split(",")]
    names = [str(name) for name in ([classes] if isinstance(classes, (int, float)) else classes)]
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"classes={names}: expected different names")
    return names


def _class_names(collection: Collection, classes: Any) -> list[str]:
    """Return the class names in order; boxes of classes that were not asked for are taken out, with a note."""
    wanted = _listed(classes)
    if not wanted:
        return collection.names
    dropped = Counter(box.name for item in collection.items for box in item.boxes if box.name not in wanted)
    if absent := [name for name in wanted if name not in collection.names]:
        raise ValueError(f"classes=: no {', '.join(absent)} in the source, which has {', '.join(collection.names)}")
    for item in collection.items:
        item.boxes = [box for box in item.boxes if box.name in wanted]
    if dropped:
        text = ", ".join(f"{name} ({count})" for name, count in sorted(dropped.items()))
        collection.notes.append(f"boxes of classes that were not asked for left out: {text}")
    return wanted


def _progress(what: str) -> Any:
    """Return what wraps a sequence with a progress bar."""
    from ultralytics.utils import TQDM

    return functools.partial(TQDM, desc=what, file=sys.stderr)


# Images ---------------------------------------------------------------------------------------------------------------


def _look_at(collection: Collection, names: Sequence[str], max_pixels: int) -> tuple[list[Planned], list[Entry]]:
    """Read every image once; what cannot be used is left out with its reason."""
    index = {name: number for number, name in enumerate(names)}
    planned, entries = [], []
    seen: set[tuple[Path, int | None]] = set()
    for item in _progress("reading")(collection.items):
        if (item.path, item.index) in seen:
            collection.leave_out(item.path, "is listed twice; only its first boxes are used")
            continue
        seen.add((item.path, item.index))
        try:
            picture = read_picture(item, max_pixels)
            reason = _size_problem(item, picture)
        except ImportError:  # what is missing is missing for all
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else reason_of(error)
        if reason:
            collection.leave_out(item.path, reason)
            continue
        height, width = picture.pixels.shape[:2]
        boxes, clipped = [], 0
        for name, box in ((b.name, _upright(b.xyxy, item, picture)) for b in item.boxes):
            x0, x1 = (min(max(v, 0.0), float(width)) for v in (box[0], box[2]))
            y0, y1 = (min(max(v, 0.0), float(height)) for v in (box[1], box[3]))
            if not (all(map(math.isfinite, box)) and x1 > x0 and y1 > y0):
                shown = ", ".join(f"{v:g}" for v in box)
                collection.leave_out(item.path, f"box of {name} at {shown} has no area in the image, {width}x{height}")
                continue
            reach = max(-box[0], -box[1], box[2] - width, box[3] - height)
            clipped += reach > _REACH
            boxes.append((index[name], x0, y0, x1, y1))
        rows = [
            (c, (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            for c, x0, y0, x1, y1 in boxes
        ]
        seen_as = fingerprint(picture.pixels)
        planned.append(Planned(item, picture.name, item.split or "", "", rows, seen_as.digest))
        entries.append(Entry(picture.name, "", None, (width, height), boxes, clipped, seen_as))
    return planned, entries


def _size_problem(item: Item, picture: Picture) -> str | None:
    """Return what is wrong if an annotation was made for an image of another size."""
    if item.declared is None:
        return None
    height, width = picture.pixels.shape[:2]
    declared = (0.0, 0.0, float(item.declared[0]), float(item.declared[1]))
    if picture.geometry is not None and not item.upright:
        declared = picture.geometry.box_from_stored(declared)
    if max(abs(a - b) for a, b in zip(declared, (0, 0, width, height), strict=True)) <= 1e-6:
        return None
    return f"is {width} x {height} pixels, but its annotation is for {item.declared[0]} x {item.declared[1]}"


def _upright(box: tuple[float, float, float, float], item: Item, picture: Picture) -> tuple[float, float, float, float]:
    """Return a box in pixels of the image as it is shown."""
    if item.fractions:
        height, width = picture.pixels.shape[:2]
        box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    if picture.geometry is not None and not item.upright:
        box = picture.geometry.box_from_stored(box)
    return box


def _name(planned: Sequence[Planned], entries: Sequence[Entry], *, rename: bool) -> None:
    """Give every image a name of its own and hand it to the report."""
    used: Counter[str] = Counter()
    for p, entry in zip(planned, entries, strict=True):
        stem = (p.patient or "image") if rename else p.name
        used[stem.lower()] += 1
        number = used[stem.lower()]
        p.name = f"{stem}_{number:03d}" if rename else stem if number == 1 else f"{stem}-{number}"
        used[p.name.lower()] += p.name != stem
        entry.name, entry.split, entry.patient = f"{p.name}.png", p.split, p.patient or None
