"""Reading CSV: one row a box, in the column conventions that are in use."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meddet_yolo.data.convert.records import IMAGE_SUFFIXES, Collection, ImageIndex, Item, NamedBox, pseudonym, split_of

__all__ = ["Columns", "find_columns", "read_csv", "table_rows"]

# Names that a column may have, the more specific first; compared without case, spaces, - and _.
_IMAGE = ("image", "imagepath", "imagename", "imageid", "imagefile", "filename", "file", "filepath", "path", "img")
_LABEL = ("class", "classname", "label", "labelname", "category", "categoryname", "name", "target", "classid")
_PATIENT = ("patient", "patientid", "subject", "subjectid", "studyid", "case", "caseid")
_SPLIT = ("split", "set", "subset", "partition", "fold")
_IMAGE_WIDTH = ("imgw", "imgwidth", "imagewidth", "imagew", "width", "w")
_IMAGE_HEIGHT = ("imgh", "imgheight", "imageheight", "imageh", "height", "h")
_CORNERS = (
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
    ("bboxxmin", "bboxymin", "bboxxmax", "bboxymax"),
    ("boxxmin", "boxymin", "boxxmax", "boxymax"),
)
_CENTRES = (
    ("xcenter", "ycenter", "width", "height"),
    ("xcentre", "ycentre", "width", "height"),
    ("cx", "cy", "w", "h"),
    ("cx", "cy", "width", "height"),
    ("xc", "yc", "w", "h"),
)
_SIZES = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("xmin", "ymin", "width", "height"),
    ("left", "top", "width", "height"),
    ("bboxx", "bboxy", "bboxwidth", "bboxheight"),
)


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what, by the column's name in the file.

    Attributes:
        image: Image file.
        box: The four columns of the box.
        kind: What they are: "corners", "centre" (centre, width, height) or "size" (upper left corner, width, height).
        label: Class name; None where every box is of one class.
        patient: Patient, if there is such a column.
        split: Part of a split, if there is such a column.
        image_size: Width and height of the image, if there are such columns.
    """

    image: str
    box: tuple[str, str, str, str]
    kind: str
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    image_size: tuple[str, str] | None = None


def find_columns(header: Sequence[str], *, label: str | None = None, patient: str | None = None) -> Columns:
    """Recognise a table's columns by their names.

    Args:
        header: Names of the columns.
        label: Column of the class, where it is not to be recognised.
        patient: Column of the patient, where it is not to be recognised.

    Raises:
        ValueError: If the image or the box cannot be recognised, or a named column is not there.

    Examples:
        >>> columns = find_columns(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        >>> columns.kind, columns.image_size
        ('corners', ('width', 'height'))
        >>> find_columns(["patientId", "x", "y", "width", "height", "Target"]).image
        'patientId'
    """
    plain = {_plain(name): name for name in reversed(header)}

    def first(names: Sequence[str], taken: Sequence[str] = ()) -> str | None:
        return next((plain[n] for n in names if n in plain and plain[n] not in taken), None)

    box, kind = _find_box(plain)
    image = first(_IMAGE) or first(_PATIENT)  # some name their images by the patient
    if image is None:
        raise ValueError(f"no column names the image among {', '.join(header)}; expected one such as image or filename")
    for given in (label, patient):
        if given is not None and given not in header:
            raise ValueError(f"no column {given!r} among {', '.join(header)}")
    size = (first(_IMAGE_WIDTH, box), first(_IMAGE_HEIGHT, box))
    return Columns(
        image,
        box,
        kind,
        label=label or first(_LABEL, (*box, image)),
        patient=patient or first(_PATIENT),
        split=first(_SPLIT),
        image_size=(size[0], size[1]) if size[0] and size[1] else None,
    )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c not in " _-.")


def _find_box(plain: Mapping[str, str]) -> tuple[tuple[str, str, str, str], str]:
    """Return the columns of the box and what they are."""
    for kind, sets in (("corners", _CORNERS), ("centre", _CENTRES), ("size", _SIZES)):
        for names in sets:
            if all(name in plain for name in names):
                a, b, c, d = (plain[name] for name in names)
                return (a, b, c, d), kind
    raise ValueError(
        f"no columns of a box among {', '.join(plain.values())}; expected for example xmin, ymin, xmax, ymax, or "
        "x, y, width, height, or x_center, y_center, width, height"
    )


def read_csv(
    files: Sequence[Path], root: Path, images: ImageIndex, *, label: str | None = None, patient: str | None = None
) -> Collection:
    """Read boxes from CSV files, one row a box; a row without coordinates is an image without boxes.

    Coordinates are pixels, or fractions of the image where none of a file is above 1. The separator is a comma, a
    semicolon or a tab. A file whose first row holds no names is read as `image,x1,y1,x2,y2,class`.

    Args:
        files: The tables; where their names hold train, val or test, that is the part of their images.
        root: Folder that messages are relative to.
        images: Finds the images.
        label: Column of the class.
        patient: Column of the patient.

    Raises:
        ValueError: If the columns of a table cannot be recognised.
    """
    collection = Collection(root)
    for file in files:
        header, rows = table_rows(file)
        try:
            columns = find_columns(header, label=label, patient=patient)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        _read_rows(file, columns, [dict(zip(header, row, strict=False)) for row in rows], collection, images)
    collection.names = sorted({box.name for item in collection.items for box in item.boxes})
    if collection.names and all(name.isdigit() for name in collection.names):
        collection.names.sort(key=int)
    return collection


def table_rows(file: Path) -> tuple[list[str], list[list[str]]]:
    """Return a table's header and rows."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: save the table as CSV in UTF-8") from error
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{file} is no CSV: {error}") from error
    if not rows:
        raise ValueError(f"{file} is empty")
    start = Path(rows[0][0]).suffix.lower()
    if len(rows[0]) == 6 and start in IMAGE_SUFFIXES:
        return ["image", "x1", "y1", "x2", "y2", "class"], rows
    return [name.strip() for name in rows[0]], rows[1:]


def _read_rows(
    file: Path, columns: Columns, rows: list[dict[str, str]], collection: Collection, images: ImageIndex
) -> None:
    boxes = [_box(row, columns) for row in rows]
    known = [box for box in boxes if isinstance(box, tuple)]
    fractions = bool(known) and max(max(box) for box in known) <= 1
    items: dict[str, Item | None] = {}
    for number, (row, box) in enumerate(zip(rows, boxes, strict=True), start=2):
        name = (row.get(columns.image) or "").strip()
        if name not in items:
            items[name] = _item(file, name, row, columns, collection, images, fractions)
        item = items[name]
        if item is None:
            continue
        if isinstance(box, str):
            collection.leave_out(file, f"row {number}: {box}")
        elif box is not None:
            label = (row.get(columns.label) or "").strip() if columns.label else "object"
            if not label:
                collection.leave_out(file, f"row {number}: no class")
                continue
            item.boxes.append(NamedBox(label, box))


def _item(
    file: Path,
    name: str,
    row: Mapping[str, str],
    columns: Columns,
    collection: Collection,
    images: ImageIndex,
    fractions: bool,
) -> Item | None:
    """Return the image of a row, noted once if it is not there."""
    try:
        item = Item(images.find(name), fractions=fractions)
    except FileNotFoundError as error:
        collection.leave_out(file, str(error))
        return None
    if columns.patient:
        item.patient = (row.get(columns.patient) or "").strip() or None
        if item.patient and "name" in columns.patient.lower():  # which no message may show
            item.patient = pseudonym(item.patient)
    given = (row.get(columns.split) or "").strip() if columns.split else ""
    item.split = split_of(Path(given or "-")) or split_of(Path(file.name)) or collection.part_of(item.path)
    if columns.image_size:
        sizes = [_number(row.get(c)) for c in columns.image_size]
        if all(s and 1 < s < math.inf for s in sizes):
            item.declared = (int(sizes[0] or 0), int(sizes[1] or 0))
    collection.items.append(item)
    return item


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text and text.strip() else None
    except ValueError:
        return math.nan


def _box(row: Mapping[str, str], columns: Columns) -> tuple[float, float, float, float] | str | None:
    """Return a row's corners, None if it has no box, or what is wrong with it."""
    values = [_number(row.get(column)) for column in columns.box]
    if all(value is None for value in values):
        return None
    if any(value is None or not math.isfinite(value) for value in values):
        shown = ", ".join(f"{c}={row.get(c)!r}" for c in columns.box)
        return f"{shown} are not four numbers"
    a, b, c, d = (value for value in values if value is not None)
    if columns.kind == "centre":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return (a, b, a + c, b + d) if columns.kind == "size" else (a, b, c, d)
