"""Checks of YOLO label files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

__all__ = ["label_problem"]

TOLERANCE = 0.01  # coordinates this far outside [0, 1] are accepted and clipped by Ultralytics


def label_problem(files: Iterable[str | Path], num_classes: int) -> str | None:
    """Return what is wrong with the first bad label file, in one line.

    Args:
        files: YOLO label files, rows of `class x_centre y_centre width height` (or a polygon), coordinates in [0, 1].
            Missing files count as images without boxes.
        num_classes: Number of classes of the data set; class indices lie in [0, num_classes).

    Returns:
        The file, row and reason, with the number of further bad files; None when every file is sound.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.txt"
        ...     _ = path.write_text("2 0.5 0.5 0.1 0.1")
        ...     print(label_problem([path], num_classes=2).replace(folder, "labels"))
        labels/a.txt, row 1: class 2 is out of range, expected 0 to 1
    """
    first, others = None, 0
    for file in map(Path, files):
        if file.is_file() and (reason := _row_problem(file, num_classes)):
            others += first is not None
            first = first or f"{file}, {reason}"
    return f"{first} (and {others} more files)" if others else first


def _row_problem(file: Path, num_classes: int) -> str | None:
    """Return the first bad row of a label file and its reason."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    except UnicodeDecodeError:
        return "not a text file, expected rows of `class x y width height`"
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            values = [float(field) for field in fields]
        except ValueError:
            return f"row {number}: {line.strip()[:60]!r} is not numeric, expected `class x y width height`"
        index, coordinates = values[0], values[1:]
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            return f"row {number}: {len(values)} columns, expected `class x y width height`"
        if not (0 <= index < num_classes and index == int(index)):  # also false for inf and NaN
            return f"row {number}: class {index:g} is out of range, expected 0 to {num_classes - 1}"
        bad = [c for c in coordinates if not math.isfinite(c) or not -TOLERANCE <= c <= 1 + TOLERANCE]
        if bad:
            return f"row {number}: coordinate {bad[0]:g} is out of range, expected [0, 1] (normalised by image size)"
    return None
