"""Numbers that Ultralytics takes without a look, and fails on later or never."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["check_numbers"]

# The smallest value of an option, and what is expected of it.
_LEAST = {
    "batch": (1, "a number of images of 1 or more"),
    "epochs": (1, "a number of epochs of 1 or more"),
    "imgsz": (1, "a size in pixels of 1 or more"),
    "max_det": (1, "a number of boxes of 1 or more"),
    "nc": (1, "a number of classes of 1 or more"),
    "workers": (0, "a number of processes of 0 or more"),
}


def check_numbers(options: Mapping[str, Any], mode: str = "") -> None:
    """Refuse sizes and counts that are out of range.

    What is no number is left to Ultralytics, which says what it expects.

    Args:
        options: Options by name.
        mode: What they are for; training finds the batch by itself with -1 or with a share of the GPU's memory.

    Raises:
        ValueError: If a value is out of range.

    Examples:
        >>> check_numbers({"imgsz": 640, "batch": -1}, "train")
        >>> check_numbers({"workers": -1})
        Traceback (most recent call last):
        ...
        ValueError: workers=-1: expected a number of processes of 0 or more
    """
    for key, (least, expected) in _LEAST.items():
        given = options.get(key)
        if key == "batch" and mode == "train":
            if given == -1 or (isinstance(given, float) and 0 < given < 1):
                continue
            expected += ", -1, or a share of the GPU's memory between 0 and 1"
        values = given if isinstance(given, list | tuple) else [given]
        if any(isinstance(value, int | float) and not isinstance(value, bool) and value < least for value in values):
            raise ValueError(f"{key}={given}: expected {expected}")
