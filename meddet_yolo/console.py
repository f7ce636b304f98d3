"""What the commands share: lists on the command line, errors in one line, and Ultralytics kept quiet and offline."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["as_list", "describe", "fetch_only_what_is_asked_for", "how_to_install", "may_fetch", "quiet", "read_keys"]

_MESSAGE_LIMIT = 300
_ASKED_ONLY = "MEDDET_FETCH_ASKED_ONLY"  # for the processes that a command starts, too
# What Ultralytics reads as it is imported: no look-up whether the network is there, and so no statistics of use and no
# look for a newer version; nothing is installed.
_QUIET_NETWORK = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}


def how_to_install(extra: str) -> str:
    """Return what a message says of an extra of this package that is missing.

    Examples:
        >>> how_to_install("trt")
        'pip install "meddet-yolo[trt]", or ".[trt]" in a checkout'
    """
    return f'pip install "meddet-yolo[{extra}]", or ".[{extra}]" in a checkout'


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


def describe(error: BaseException) -> str:
    r"""Return an exception as one line for a reader who does not know the code.

    Examples:
        >>> describe(ValueError("teacher a.pt has 3 classes,\n  expected 2"))
        'teacher a.pt has 3 classes, expected 2'
    """
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
    text = re.sub(r"[\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff]", "", text)
    text = " ".join(text.split())
    if isinstance(error, RecursionError):
        text = "a file is nested too deeply"
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        text = f"a name is too long for this file system: {str(error.filename)[:60]}..."
    elif isinstance(error, (AssertionError, AttributeError, LookupError)) or not text:  # says nothing by itself
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    if len(text) > _MESSAGE_LIMIT:
        text = f"{text[:_MESSAGE_LIMIT].rsplit(' ', 1)[0]} ... (MEDDET_TRACEBACK=1 shows all of it)"
    return text


def read_keys(file: Path, name: str) -> dict[str, Any]:
    """Read a YAML file of `key: value` lines.

    Args:
        file: The file.
        name: What messages call it.

    Raises:
        ValueError: If it is no valid YAML, or holds something else.
    """
    import yaml

    try:
        keys = yaml.safe_load(file.read_text(encoding="utf-8-sig")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no valid YAML: {describe(error)}") from error
    if not isinstance(keys, dict):
        raise ValueError(f"{name} must hold 'key: value' lines, got a {type(keys).__name__}")
    return {str(key): value for key, value in keys.items()}


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


def fetch_only_what_is_asked_for() -> None:
    """Let this process fetch only files that are asked for, by name or address; for before Ultralytics is imported.

    An environment that has set `YOLO_OFFLINE` or `YOLO_AUTOINSTALL` already keeps what it says.
    """
    if "YOLO_OFFLINE" not in os.environ:
        os.environ[_ASKED_ONLY] = "1"
    for name, value in _QUIET_NETWORK.items():
        os.environ.setdefault(name, value)


def may_fetch() -> bool:
    """Return whether a file that was asked for may be fetched: not where there is no network, or is said to be none."""
    from ultralytics.utils import ONLINE

    return bool(ONLINE) or _ASKED_ONLY in os.environ
