"""What Ultralytics fetches although nobody has asked for it: a font, and a detector to try mixed precision with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

__all__ = ["check_fetching", "wrap_check_amp", "wrap_check_font"]

_fetching: ContextVar[bool] = ContextVar("meddet_fetching", default=True)


def check_fetching(weight: str | Path) -> None:
    """Refuse a checkpoint that is not on this machine where nothing is to be fetched.

    Raises:
        ConnectionError: If it would be fetched, as Ultralytics raises it where there is no network.
    """
    if not _fetching.get() and not Path(weight).is_file():
        raise ConnectionError(f"{weight} is not on this machine")


def wrap_check_amp(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `check_amp` that tries mixed precision with a detector of this machine, or not at all."""

    @functools.wraps(original)
    def check_amp(model: Any) -> bool:
        token = _fetching.set(False)
        try:
            return bool(original(model))
        finally:
            _fetching.reset(token)

    return check_amp


def wrap_check_font(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `check_font` that looks for a font on this machine only; without one, plots have Pillow's own."""

    @functools.wraps(original)
    def check_font(font: str = "Arial.ttf") -> Any:
        from matplotlib import font_manager
        from ultralytics.utils import USER_CONFIG_DIR

        kept = Path(USER_CONFIG_DIR) / Path(font).name
        known = [Path(f.fname) for f in font_manager.fontManager.ttflist if font in f.fname]
        return next((file for file in (kept, *known) if file.is_file()), None)

    return check_font
