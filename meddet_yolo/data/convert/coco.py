"""Reading COCO JSON: one file, or one for each part of a split."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meddet_yolo.data.convert.records import Collection, ImageIndex, Item, NamedBox, split_of

__all__ = ["is_coco", "read_coco"]

_PATIENT_KEYS = ("patient_id", "patient", "patientid", "subject_id", "subject")


def is_coco(path: Path) -> bool:
    """Return whether a JSON file has COCO's lists of images and annotations."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def read_coco(files: Sequence[Path], root: Path, images: ImageIndex) -> Collection:
    """Read boxes from COCO files. Crowd regions are left out, with a note.

    Args:
        files: The JSON files; where their names hold train, val or test, that is the part of their images.
        root: Folder that messages are relative to.
        images: Finds the images.

    Raises:
        ValueError: If a file is no COCO JSON at all.
    """
    collection = Collection(root)
    for file in files:
        _read_file(file, collection, images)
    return collection


def _read_file(file: Path, collection: Collection, images: ImageIndex) -> None:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        categories = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        entries, annotations = list(content["images"]), list(content["annotations"])
        if not all(isinstance(row, dict) for row in (*entries, *annotations)):
            raise TypeError("an image or annotation is no object with keys")
        by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for annotation in annotations:
            by_image[str(annotation.get("image_id"))].append(annotation)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is no COCO JSON ({type(error).__name__}: {error}); expected lists of images, annotations and "
            "categories"
        ) from error
    collection.names += [name for name in categories.values() if name not in collection.names]
    crowds = sum(bool(a.get("iscrowd")) for a in annotations)
    if crowds:
        collection.notes.append(f"{collection.shown(file)}: {crowds} crowd regions left out")
    for entry in entries:
        name = str(entry.get("file_name", ""))
        try:
            path = images.find(name)
        except FileNotFoundError as error:
            collection.leave_out(file, str(error))
            continue
        item = Item(path, split=split_of(Path(file.name)) or collection.part_of(path))
        if entry.get("width") and entry.get("height"):
            try:
                item.declared = (int(entry["width"]), int(entry["height"]))
            except (TypeError, ValueError, OverflowError):
                collection.leave_out(file, f"{name}: its size is {entry['width']!r} x {entry['height']!r}")
                continue
        item.patient = next((str(entry[k]) for k in _PATIENT_KEYS if entry.get(k) not in (None, "")), None)
        for annotation in by_image.pop(str(entry.get("id")), []):
            if annotation.get("iscrowd"):
                continue
            try:
                item.boxes.append(NamedBox(categories[annotation["category_id"]], _corners(annotation)))
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                number = annotation.get("id", "?")
                collection.leave_out(file, f"annotation {number} of {name}: {_reason(error, annotation)}")
        collection.items.append(item)
    for image_id, orphans in by_image.items():
        collection.leave_out(file, f"{len(orphans)} annotations of image id {image_id}, which is not listed")


def _corners(annotation: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return a box from `bbox` (x, y, width, height), or else the extent of polygons."""
    box = annotation.get("bbox")
    if box:
        x, y, width, height = (float(v) for v in box)
        return x, y, x + width, y + height
    polygons = annotation["segmentation"]
    if not isinstance(polygons, list) or not polygons:
        raise ValueError("has neither a bbox nor polygons")
    values = [float(v) for polygon in polygons for v in polygon]
    if len(values) < 2:
        raise ValueError("has polygons without points")
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _reason(error: Exception, annotation: dict[str, Any]) -> str:
    if isinstance(error, KeyError):
        missing = error.args[0]
        return f"category {missing} is not listed" if missing == annotation.get("category_id") else f"no {missing}"
    return f"bbox {annotation.get('bbox')!r} is not four numbers" if annotation.get("bbox") else str(error)
