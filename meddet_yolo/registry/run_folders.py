"""Folders of runs that were refused: Ultralytics makes a numbered folder before it looks at the data and the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

__all__ = ["leaving_no_empty_folder", "wrap_get_save_dir"]

_NOTES = frozenset({"args.yaml", ".train.lock"})  # written before anything is done
_new: ContextVar[list[Path] | None] = ContextVar("meddet_new_folders", default=None)


def wrap_get_save_dir(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `get_save_dir` that keeps in mind which folders were not there before."""

    @functools.wraps(original)
    def get_save_dir(*args: Any, **kwargs: Any) -> Path:
        folder = Path(original(*args, **kwargs))
        new = _new.get()
        if new is not None:
            new += [path for path in (folder, *folder.parents) if not path.exists()]
        return folder

    return get_save_dir


@contextmanager
def leaving_no_empty_folder() -> Iterator[None]:
    """Remove the folders of runs that were begun inside and failed before they wrote a result.

    One that was refused because another process works in the same folder leaves it to that one.
    """
    if _new.get() is not None:  # of a caller that does so
        yield
        return
    new: list[Path] = []
    token = _new.set(new)
    try:
        yield
    except BlockingIOError:  # another process is at work in it
        raise
    except BaseException:
        for folder in new:
            _remove_empty(folder)
        raise
    finally:
        _new.reset(token)


def _remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but other empty folders and the notes of a run."""
    found = list(folder.rglob("*")) if folder.is_dir() and not folder.is_symlink() else []
    if not folder.is_dir() or any(not path.is_dir() and path.name not in _NOTES for path in found):
        return
    for path in sorted(found, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
