"""Recognising the format of annotations and handing them to its reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meddet_yolo.data.convert.coco import is_coco, read_coco
from meddet_yolo.data.convert.csv import find_columns, read_csv, table_rows
from meddet_yolo.data.convert.masks import MASK_FOLDERS, is_mask_name, pair_masks, read_masks
from meddet_yolo.data.convert.records import Collection, ImageIndex, image_files
from meddet_yolo.data.convert.voc import read_voc
from meddet_yolo.data.convert.yolo import PATIENTS_FILE, load_yaml, read_yolo
from meddet_yolo.imaging.limits import MAX_PIXELS

__all__ = ["FORMATS", "read_source"]

FORMATS = ("coco", "voc", "csv", "masks", "yolo")
_SUFFIXES = {".json": "coco", ".xml": "voc", ".csv": "csv", ".tsv": "csv", ".yaml": "yolo", ".yml": "yolo"}


def read_source(
    source: Path,
    format: str = "auto",
    *,
    images: Path | None = None,
    masks: Path | None = None,
    label: str | None = None,
    patient: str | None = None,
    mask_names: Mapping[int, str] | None = None,
    min_area: int = 4,
    instances: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> tuple[str, Collection]:
    """Read the annotations of a source.

    Args:
        source: A file with annotations, or a folder that holds them.
        format: One of `FORMATS`, or "auto" to recognise it.
        images: Folder of the images, where it is not in the source.
        masks: Folder of the masks, where it is not recognised by its name.
        label: Column of the class in CSV.
        patient: Column of the patient in CSV.
        mask_names: Class name of each label in masks.
        min_area: Smallest area of a component of a mask, in pixels.
        instances: Whether a mask's labels number objects instead of classes.
        max_pixels: The most pixels that a picture may have.

    Returns:
        The format's name and what was read.

    Raises:
        FileNotFoundError: If there are no annotations or no images.
        ValueError: If the format is unknown, not recognised or ambiguous, or a file is not of it.
    """
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown: expected auto, {', '.join(FORMATS)}")
    if not source.exists():
        raise FileNotFoundError(f"source={source}: no such file or folder")
    if masks is not None and format == "auto":
        format = "masks"
    found = _candidates(source)
    if format == "auto":
        kinds = [kind for kind in FORMATS if found.get(kind)]
        if not kinds:
            raise FileNotFoundError(
                f"{source} holds no annotations that are recognised: expected COCO JSON, VOC XML, CSV with columns of "
                "boxes, masks beside images, or the YAML of a YOLO data set"
            )
        if len(kinds) > 1:
            raise ValueError(f"{source} holds annotations in several formats: add format={' or format='.join(kinds)}")
        format = kinds[0]
    root = (source if source.is_dir() else source.parent).resolve()
    files = found.get(format, [])
    if format == "masks":
        mask_files = image_files(masks) if masks is not None else files
        if not mask_files:
            raise FileNotFoundError(f"no masks in {masks or source}: say where they are with masks=FOLDER")
        taken = set(mask_files)
        pictures = [path for path in image_files(images or root) if path not in taken]
        if not pictures:
            raise FileNotFoundError(f"no images in {images or root}: say where they are with images=FOLDER")
        options: dict[str, Any] = {"names": mask_names, "min_area": min_area, "instances": instances}
        options["max_pixels"] = max_pixels
        return format, read_masks(pictures, mask_files, root, **options)
    if not files:
        raise FileNotFoundError(f"{source} holds no annotations of format={format}")
    if format == "yolo":
        if len(files) > 1:
            raise ValueError(f"{source} holds several data sets ({', '.join(f.name for f in files)}): name one of them")
        return format, read_yolo(files[0], max_pixels)
    index = ImageIndex([images] if images is not None else _image_roots(root))
    if format == "coco":
        return format, read_coco(files, root, index)
    if format == "voc":
        return format, read_voc(files, root, index)
    return format, read_csv(files, root, index, label=label, patient=patient)


def _image_roots(root: Path) -> list[Path]:
    """Return where images are looked for: beside the annotations, or else beside their folder."""
    return [root] if image_files(root) else [root.parent]


def _candidates(source: Path) -> dict[str, list[Path]]:
    """Return the annotation files of each format that a source may be meant to hold."""
    if source.is_file():
        kind = _SUFFIXES.get(source.suffix.lower())
        if kind is None:
            raise ValueError(f"{source} is none of {', '.join(_SUFFIXES)}; give a folder for masks")
        return {kind: [source.resolve()]}
    source = source.resolve()
    texts = sorted(p for p in source.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    found: dict[str, list[Path]] = {}
    for path in texts:
        kind = _SUFFIXES[path.suffix.lower()]
        if _LOOKS[kind](path):
            found.setdefault(kind, []).append(path)
    found["masks"] = _mask_files(source)
    return found


def _is_table_of_boxes(path: Path) -> bool:
    if path.name == PATIENTS_FILE:
        return False
    try:
        find_columns(table_rows(path)[0])
    except ValueError:
        return False
    return True


def _is_data_set(path: Path) -> bool:
    try:
        content = load_yaml(path)
    except ValueError:
        return False
    return isinstance(content, dict) and {"train", "val"} <= content.keys()


def _is_annotation(path: Path) -> bool:
    return b"<annotation" in path.read_bytes()[:2000]


_LOOKS = {"coco": is_coco, "voc": _is_annotation, "csv": _is_table_of_boxes, "yolo": _is_data_set}


def _mask_files(source: Path) -> list[Path]:
    """Return images that lie in a folder for masks, or else those whose names say mask and that have an image."""
    files = image_files(source)
    named = {name.lower() for name in MASK_FOLDERS}
    inside = [p for p in files if any(part.lower() in named for part in p.relative_to(source).parts[:-1])]
    if inside and len(inside) < len(files):
        return inside
    masks = [path for path in files if is_mask_name(path)]
    pairs, _, _ = pair_masks([path for path in files if path not in set(masks)], masks)
    return masks if pairs else []
