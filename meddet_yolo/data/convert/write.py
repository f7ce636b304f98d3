"""Writing a data set in YOLO layout, into a folder that is new or was written by an earlier conversion."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddet_yolo.data.convert.pixels import read_picture, write_anew
from meddet_yolo.data.convert.records import Item
from meddet_yolo.data.convert.yolo import PATIENTS_FILE
from meddet_yolo.data.splits import SPLITS
from meddet_yolo.files import write_whole
from meddet_yolo.imaging.limits import MAX_PIXELS

__all__ = ["LOCK", "Planned", "earlier_files", "write_data_set"]

LOCK = ".convert.lock"
_MANIFEST = "convert.json"
_MADE_BY = "meddet convert"
_LABELLED, _UNLABELLED = "labelled.txt", "unlabelled.txt"  # of the training images, where labels are set aside


@dataclass
class Planned:
    """An image as it will be written.

    Attributes:
        item: Where it comes from.
        name: Name of its file, without suffix, not used by another.
        split: Its part.
        patient: Pseudonym of its patient; empty where patients are not known.
        rows: Its labels: class index, then centre, width and height in fractions of the image.
        digest: Hash of its pixels.
        unlabelled: Whether it is a training image whose labels are set aside: written, but named by no list.
    """

    item: Item
    name: str
    split: str
    patient: str
    rows: list[tuple[int, float, float, float, float]]
    digest: str
    unlabelled: bool = False


def earlier_files(out: Path) -> set[str]:
    """Return what an earlier conversion wrote to a folder, which may also be new or empty.

    Returns:
        Its files, relative to the folder.

    Raises:
        FileExistsError: If the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out={out} is a file: name a folder")
    if not out.is_dir() or not {path.name for path in out.iterdir()} - {LOCK}:
        return set()
    try:
        manifest = json.loads((out / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["made_by"] == _MADE_BY:
            return {file for file in manifest["files"] if isinstance(file, str)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise FileExistsError(f"out={out} is not empty and was not written by `{_MADE_BY}`: name another folder")


def write_data_set(
    out: Path,
    planned: Sequence[Planned],
    names: Sequence[str],
    arguments: Mapping[str, Any],
    max_pixels: int = MAX_PIXELS,
    progress: Any = iter,
) -> Path:
    """Write images, labels, patients and, as the last step, the YAML.

    Files that are there already with the same content stay; those that an earlier conversion wrote and this one does
    not are removed.

    Args:
        out: The folder.
        planned: The images.
        names: Class names by index.
        arguments: What the conversion was asked for, for its record.
        max_pixels: The most pixels that a picture may have.
        progress: Wraps the images for a progress bar.

    Returns:
        Path of `data.yaml`.

    Raises:
        FileExistsError: If the folder holds something that no conversion wrote, or leads out of itself by a link.
    """
    before = earlier_files(out)
    out.mkdir(parents=True, exist_ok=True)
    data = out / "data.yaml"
    data.unlink(missing_ok=True)
    aside = any(p.unlabelled for p in planned)
    files = {path for p in planned for path in (_image(p), _label(p))} | {PATIENTS_FILE}
    files |= {_LABELLED, _UNLABELLED} if aside else set()
    record = {"made_by": _MADE_BY, "arguments": dict(arguments)}
    _write_json(out / _MANIFEST, {**record, "complete": False, "files": sorted(files | before)})
    for p in progress(planned):
        image, label = out / _image(p), out / _label(p)
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.resolve() != out.resolve() / path.parent.relative_to(out):
                raise FileExistsError(f"{path.parent} is a link to another folder: take it away, or name another out=")
        read_picture(p.item, max_pixels).write(image)
        lines = [f"{cls} " + " ".join(f"{v:.6f}" for v in box) for cls, *box in p.rows]
        write_anew(label, "".join(f"{line}\n" for line in lines).encode())
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("image", "patient", "split"))
    writer.writerows((_image(p), p.patient, p.split) for p in planned)
    write_whole(out / PATIENTS_FILE, table.getvalue())
    if aside:
        for name, unlabelled in ((_LABELLED, False), (_UNLABELLED, True)):
            listed = [f"./{_image(p)}\n" for p in planned if p.split == "train" and p.unlabelled == unlabelled]
            write_whole(out / name, "".join(listed))
    for stale in before - files:
        path = (out / stale).resolve()
        if path.is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)
    _write_json(out / _MANIFEST, {**record, "complete": True, "files": sorted(files)})
    parts = [part for part in SPLITS if any(p.split == part for p in planned)]
    places = {part: f"images/{part}" for part in parts}
    if aside:
        places |= {"train": _LABELLED, "unlabelled": _UNLABELLED}
    lines = [f"{part}: {place}" for part, place in places.items()]
    for part in ("train", "val"):  # both of which Ultralytics requires, if only to evaluate on a third
        if part not in places:
            lines.append(f"{part}: {next(iter(places.values()))}  # there is no {part} part: for evaluation alone")
    lines += ["names:", *(f"  {index}: {json.dumps(name, ensure_ascii=False)}" for index, name in enumerate(names))]
    write_whole(data, "\n".join(lines) + "\n")
    return data


def _image(planned: Planned) -> str:
    return f"images/{planned.split}/{planned.name}.png"


def _label(planned: Planned) -> str:
    return f"labels/{planned.split}/{planned.name}.txt"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1) + "\n")
