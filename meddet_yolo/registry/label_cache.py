"""Ultralytics' label caches, which it writes beside the labels: read without running code, written whole or not at all.

A cache is a pickle behind the header of an `.npy` file. Here its instructions may build dictionaries, lists, numbers,
strings and arrays of plain numbers; whatever else it asks for makes it unreadable, and the labels are read anew.
"""

from __future__ import annotations

import functools
import io
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["keep_no_label_caches", "wrap_load_dataset_cache_file", "wrap_save_dataset_cache_file"]

_KINDS = frozenset("biuf")  # of arrays: truth values, whole numbers and fractions
_writing = True


def keep_no_label_caches() -> None:
    """Let no data set of this process write its label cache into the folder of the labels; valid ones are still read.

    For data that are not to be written to, and for several processes that read the same folder by different lists.
    """
    global _writing
    _writing = False


def wrap_load_dataset_cache_file(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `load_dataset_cache_file` that executes nothing; it raises `ValueError` where a file is no plain cache."""

    @functools.wraps(original)
    def load_dataset_cache_file(path: str | Path) -> dict[str, Any]:
        try:
            cache = _read(Path(path).read_bytes())
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise ValueError(f"{path} is no label cache ({type(error).__name__}: {error})") from error
        return cache

    return load_dataset_cache_file


def wrap_save_dataset_cache_file(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `save_dataset_cache_file` whose file another process sees whole or not at all."""

    @functools.wraps(original)
    def save_dataset_cache_file(prefix: str, path: Path, x: dict[str, Any], version: str) -> None:
        from ultralytics.utils import LOGGER

        x["version"] = version
        if not _writing:
            return
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            try:
                with beside.open("wb") as file:
                    np.save(file, x)  # type: ignore[arg-type]  # as one object
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            LOGGER.warning(f"{prefix}{path} cannot be written ({error}); the labels will be read anew each time")
            return
        LOGGER.info(f"{prefix}New cache created: {path}")

    return save_dataset_cache_file


def _read(content: bytes) -> dict[str, Any]:
    """Return what a cache holds."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"holds an array of shape {shape} and type {dtype}, expected one object")
    cache = _plain(_Unpickler(stream).load(), {})
    cache = cache.item() if isinstance(cache, np.ndarray) else cache
    if not isinstance(cache, dict):
        raise ValueError(f"holds a {type(cache).__name__}, expected a dictionary")
    return cache


class _Dtype:
    """Stands for a type of numbers while a pickle is read."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.dtype = np.dtype(name) if isinstance(name, str) and len(name) <= 8 else np.dtype(object)
        if self.dtype.kind not in _KINDS and self.dtype != np.dtype(object):
            raise pickle.UnpicklingError(f"an array of type {name!r}")

    def __setstate__(self, state: Any) -> None:
        if state[1] in {"<", ">"}:
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array while a pickle is read."""

    value: Any

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise pickle.UnpicklingError("an array of no known form")
        if dtype.dtype == np.dtype(object):
            if not isinstance(content, list) or shape != () or len(content) != 1:
                raise pickle.UnpicklingError("an array of objects")
            self.value = content
            return
        if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.dtype.itemsize:
            raise pickle.UnpicklingError("an array whose size is not that of its content")
        flat = np.frombuffer(content, dtype.dtype) if content else np.zeros(0, dtype.dtype)
        self.value = flat.reshape(shape, order="F" if fortran else "C").copy(order="C")


class _Unpickler(pickle.Unpickler):
    """Knows arrays and numbers of NumPy, by stand-ins that check what they are given."""

    def find_class(self, module: str, name: str) -> Any:
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"}:
            if name == "_reconstruct":
                return lambda *_: _Array()
            if name == "scalar":
                return _scalar
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes) or dtype.dtype.kind not in _KINDS:
        raise pickle.UnpicklingError("a number of no known form")
    return np.frombuffer(content, dtype.dtype, count=1)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Return bytes as older pickles hold them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return str(text).encode("latin1")


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """Put arrays in the place of their stand-ins; what is held several times stays one."""
    if isinstance(value, str | bytes | int | float | bool | None | np.generic):
        return value
    if id(value) in seen:
        return seen[id(value)]
    result: Any
    if isinstance(value, _Array):
        held = value.value
        result = _plain(held[0], seen) if isinstance(held, list) else held
    elif isinstance(value, dict):
        result = {key: _plain(item, seen) for key, item in value.items() if isinstance(key, str | int)}
    elif isinstance(value, list | tuple):
        result = type(value)(_plain(item, seen) for item in value)
    else:
        raise pickle.UnpicklingError(f"a {type(value).__name__}")
    seen[id(value)] = result
    return result
