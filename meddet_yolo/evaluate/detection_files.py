"""Detections that are in files already: COCO results, what our own commands write, and what `save_found` wrote."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meddet_yolo.evaluate.detections import Found, TruthSet, load_found

__all__ = ["SUFFIXES", "coco_results", "read_detections"]

SUFFIXES = (".json", ".jsonl", ".npz")
"""Suffixes of files that are detections, not models."""

_Row = tuple[Sequence[float], int, float]


def read_detections(path: str | Path, truth: TruthSet, *, first_class: int | None = None) -> list[Found]:
    """Read detections from a file, or from the JSON files of a folder.

    Which kind it is, is recognised:

    - a COCO results file: a list of `{"image_id", "category_id", "bbox", "score"}`. An image is known by its
      `file_name` where there is one, else by `image_id`: its name or stem, or a number that the stem is.
    - what `meddet predict` writes for DICOM and NIfTI: `{"slices": [...]}`, boxes in pixels of the picture.
    - what `python -m meddet_yolo.trt.runner` prints: a line `{"image", "boxes"}` an image.
    - `.npz` of `meddet_yolo.evaluate.detections.save_found`.

    Args:
        path: The file or folder.
        truth: The images, whose class names give the classes their numbers.
        first_class: The number that COCO results give the first class; by default 0 if it occurs, 1 if the number of
            classes does.

    Raises:
        FileNotFoundError: There is no such file, or no JSON file in the folder.
        ValueError: It is none of these, or its classes are not those of the data set.

    Examples:
        >>> found = read_detections("predictions.json", truth)  # doctest: +SKIP
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise FileNotFoundError(f"{path} has no JSON files of detections")
        return [f for file in files for f in read_detections(file, truth, first_class=first_class)]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".npz":
        return load_found(path)
    content = _json(path)
    try:
        if isinstance(content, Mapping) and "slices" in content:
            return [_from_slice(part, truth.names) for part in content["slices"]]
        rows = content if isinstance(content, list) else [content]
        if all(isinstance(row, Mapping) and "boxes" in row for row in rows):
            return [_from_runner(row, truth.names) for row in rows]
        if all(isinstance(row, Mapping) and "bbox" in row for row in rows):
            return _from_coco(rows, truth, first_class, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: an entry lacks or misspells {error}") from error
    raise ValueError(
        f"{path} is no file of detections: expected COCO results, the JSON of `meddet predict` or lines of the runner"
    )


def coco_results(found: Iterable[Found]) -> list[dict[str, Any]]:
    """Return detections as COCO results, classes from 0, for `json.dump`.

    Examples:
        >>> coco_results([Found("a.png", [[1, 2, 4, 8]], [0], [0.5])])[0]["bbox"]
        [1.0, 2.0, 3.0, 6.0]
    """
    return [
        {
            "image_id": Path(f.name).stem,
            "file_name": f.name,
            "category_id": c,
            "bbox": [x, y, x2 - x, y2 - y],
            "score": s,
        }
        for f in found
        for (x, y, x2, y2), c, s in zip(f.boxes.tolist(), f.classes.tolist(), f.scores.tolist(), strict=True)
    ]


def _json(path: Path) -> Any:
    """Return the content of a JSON file, or of one with a value on every line as a list."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error


def _four(box: Any, name: str) -> list[float]:
    """Return the numbers of a box."""
    try:
        numbers = [float(value) for value in box]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4:
        raise ValueError(f"image {name}: {box!r} is no box, expected four numbers")
    return numbers


def _found(name: str, rows: Sequence[_Row]) -> Found:
    boxes, classes, scores = zip(*rows, strict=True) if rows else ((), (), ())
    if bad := [s for s in scores if not isinstance(s, int | float)]:
        raise ValueError(f"image {name}: score {bad[0]!r}, expected a number in [0, 1]")
    corners = [_four(box, name) for box in boxes]
    return Found(name, np.array(corners, np.float64), np.array(classes, np.int64), np.array(scores, np.float64))


def _number(name: str, names: Sequence[str]) -> int:
    """Return a class's number."""
    if name not in names:
        raise ValueError(f"the detections have a class {name!r}, expected one of {', '.join(names)}")
    return names.index(name)


def _from_slice(part: Mapping[str, Any], names: Sequence[str]) -> Found:
    rows = [(b["box_px"], _number(b["name"], names), b["confidence"]) for b in part["boxes"]]
    return _found(str(part["name"]), rows)


def _from_runner(row: Mapping[str, Any], names: Sequence[str]) -> Found:
    rows = [(b["xyxy"], _number(b["class"], names), b["confidence"]) for b in row["boxes"]]
    return _found(str(row["image"]), rows)


def _from_coco(rows: Sequence[Mapping[str, Any]], truth: TruthSet, first: int | None, path: Path) -> list[Found]:
    numbers = {int(row["category_id"]) for row in rows}
    count = len(truth.names)
    if first is None:
        if not numbers or 0 in numbers:
            first = 0
        elif count in numbers:
            first = 1
        else:
            raise ValueError(
                f"{path}: category_id {min(numbers)} to {max(numbers)} count from 0 or from 1? Say first_class=0 or 1"
            )
    if numbers and not (min(numbers) >= first and max(numbers) < first + count):
        raise ValueError(
            f"{path} has category_id {min(numbers)} to {max(numbers)}, but {truth.source} has {count} classes "
            f"({', '.join(truth.names)}), from {first} to {first + count - 1}"
        )
    by_number = {int(stem): image.name for image in truth.images if (stem := Path(image.name).stem).isdecimal()}
    boxes: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        identity = row.get("file_name", row["image_id"])
        name = by_number.get(identity, str(identity)) if isinstance(identity, int) else str(identity)
        x, y, width, height = _four(row["bbox"], name)
        boxes[name].append(((x, y, x + width, y + height), int(row["category_id"]) - first, row["score"]))
    return [_found(name, of) for name, of in boxes.items()]
