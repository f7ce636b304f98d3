"""Options as validated dataclasses: what those of a run and those of every method have in common."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

__all__ = ["Options", "choice", "count", "flag", "nearest", "number"]


class Options:
    """Base of a frozen, keyword-only dataclass whose every field has a default and a line under `Attributes:`.

    A subclass brings its values to their types and checks them in `__post_init__`, with the functions below and
    `self.put(name, value)`.
    """

    def put(self, name: str, value: Any) -> None:
        """Write a field of this frozen object while it is being built."""
        object.__setattr__(self, name, value)

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Return the names of all options, in the order of the fields."""
        return tuple(f.name for f in fields(cls))  # type: ignore[arg-type]  # subclasses are dataclasses

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return every option with its default."""
        return cls().to_dict()

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Return what the class' docstring says of every option, a paragraph each; help and docs show it."""
        section = re.search(r"^Attributes:\n((?:[ ]{4}.*\n?|\n)*)", inspect.getdoc(cls) or "", re.MULTILINE)
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
        return {name: " ".join(text.split()) for name, text in entries}

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain YAML types."""
        return asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses


def nearest(given: str, valid: Sequence[str]) -> str:
    """Return the tail of an error message: the valid name nearest to the one given, or all of them."""
    close = difflib.get_close_matches(given, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid)}."


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Check that a value is one of a few names.

    Examples:
        >>> choice("fusion", "LWFF", ["lwff", "sum"])
        'lwff'
    """
    if not isinstance(value, str) or value.lower() not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}: {nearest(str(value), choices)}")
    return value.lower()


def flag(name: str, value: Any) -> bool:
    """Check that a value is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    return value


def number(name: str, value: Any, *, low: float, high: float = math.inf, open_low: bool = False) -> float:
    """Check that a value is a finite number within a range, and return it as a float.

    Numbers in strings are taken too: YAML 1.1 reads `1e-4`, without a point, as a string.
    """
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result) or not low <= result <= high or (open_low and result == low):
        least = f"above {low:g}" if open_low else f"at least {low:g}"
        most = "" if math.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"{name} must be a number {least}{most}, got {value!r}.")
    return result


def count(name: str, value: Any) -> int:
    """Check that a value is a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}.")
    return int(value)
