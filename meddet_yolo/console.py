"""What the commands share: lists on the command line, and Ultralytics kept quiet."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["as_list", "quiet"]


def as_list(value: Any) -> list[Any]:
    """Return one value or several as a list, an unquoted list of the command line included.

    Examples:
        >>> as_list("[a.pt, 'b.pt']"), as_list("a.pt,b.pt"), as_list((1, 2)), as_list(0.5), as_list(None)
        (['a.pt', 'b.pt'], ['a.pt', 'b.pt'], [1, 2], [0.5], [])
    """
    if value is None:
        return []
    if isinstance(value, str):
        parts = (part.strip().strip("'\"") for part in value.strip("[]() ").split(","))
        return [part for part in parts if part]
    return list(value) if isinstance(value, (list, tuple)) else [value]


@contextmanager
def quiet() -> Iterator[None]:
    """Let Ultralytics log warnings and errors only; its progress bars follow that level."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
