"""Checkpoints of plain models, read by C's unpickler in a world where nothing can be called but what rebuilds tensors.

torch's safe mode is written in Python and looks every object up among all names that are allowed: it takes several
times as long as an unsafe load. What `torch.save` writes of a model needs little of a pickle's power, so it is read
here by the unpickler that an unsafe load uses, in a closed world:

- Only the instructions that torch's safe mode knows are let through, and places in the unpickler's memory that it would
  have to allocate gigabytes for are not. One pass over the bytes, by a regular expression, finds that out, and which
  names the pickle refers to, before anything is unpickled.
- Names stand for functions that rebuild tensors, a few types that nothing can change, a model's arguments, and layers.
  For a layer, the unpickler gets an empty class that cannot be called, changed or used; its objects become layers, and
  get their state, when the pickle has been read to its end. So a pickle can call no constructor and no layer, which is
  less than torch's safe mode lets it.

A pickle that asks for anything else is no plain one, and is left to torch's safe mode. (Our own decision.)
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ultralytics.utils import IterableSimpleNamespace

__all__ = ["NotPlain", "names_in", "no_collection", "read_plain"]

# Instructions of torch's safe mode with arguments of a fixed length, in pickle's own order of bytes. LONG_BINPUT is let
# through below 2^20: the unpickler makes room for twice as many objects as the highest place names.
_FIXED = re.compile(
    rb"(?:[hqK].|[()NRbu}\x85\x86\x87\x88\x89\x81taes\]Q]|[Jj]....|r..[\x00-\x0f]\x00|M..|G.{8})*", re.DOTALL
)
_HEAD, _STRING, _NAME, _LONG, _STOP = b"\x80\x02", ord("X"), ord("c"), 0x8A, ord(".")


class NotPlain(Exception):
    """A pickle asks for more than this reader gives."""


def read_plain(file: str | Path) -> Any:
    """Return what a checkpoint in torch's format holds, on the CPU.

    Args:
        file: The checkpoint.

    Raises:
        NotPlain: If it needs another reader; nothing has been called for it but what rebuilds tensors.
        Exception: Any other, if it is damaged.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": torch.nn.ReLU()}, f"{folder}/a.pt")
        ...     read_plain(f"{folder}/a.pt")
        {'model': ReLU()}
    """
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD"):  # torch is to use its own safe mode alone
        raise NotPlain("is to be read by torch's safe mode")
    reader = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler)  # in place of the module `pickle`
    return torch.serialization.load(file, map_location="cpu", pickle_module=reader, weights_only=False)


def names_in(content: bytes) -> set[tuple[str, str]]:
    """Return module and name of everything that a plain pickle refers to.

    Raises:
        NotPlain: If it holds an instruction that `torch.save` does not write of a plain model.

    Examples:
        >>> sorted(names_in(pickle.dumps([OrderedDict, {1: "a"}], protocol=2)))
        [('collections', 'OrderedDict')]
    """
    names: set[tuple[str, str]] = set()
    if content[:2] != _HEAD:
        raise NotPlain("not of protocol 2")
    at = 2
    try:
        while True:
            match = _FIXED.match(content, at)
            assert match is not None  # it can match nothing
            at = match.end()
            instruction = content[at]
            if instruction == _STRING:
                at += 5 + int.from_bytes(content[at + 1 : at + 5], "little")
            elif instruction == _NAME:
                middle = content.index(b"\n", at)
                end = content.index(b"\n", middle + 1)
                names.add((content[at + 1 : middle].decode("ascii"), content[middle + 1 : end].decode("ascii")))
                at = end + 1
            elif instruction == _LONG:
                at += 2 + content[at + 1]
            elif instruction == _STOP:
                return names
            else:
                raise NotPlain(f"holds instruction {instruction:#x}")
    except (IndexError, ValueError) as error:  # it ends too early, or a name is not of ASCII
        raise NotPlain(str(error)) from error


class _Locked(type):
    """Classes that can be neither called nor changed; C's unpickler makes objects of them without calling them."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise NotPlain(f"calls {cls.__name__}")

    def __setattr__(cls, name: str, value: Any) -> None:
        raise NotPlain(f"sets {cls.__name__}.{name}")


@contextmanager
def no_collection() -> Iterator[None]:
    """Let no garbage be collected meanwhile: a checkpoint is thousands of objects, none of them garbage.

    Examples:
        >>> with no_collection():
        ...     gc.isenabled()
        False
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Unpickler(pickle.Unpickler):
    """Reads one plain pickle; torch derives its own from it and gives that the storages of tensors."""

    def __init__(self, file: Any, **options: Any) -> None:
        content = file.read()
        self._made: list[Any] = []
        self._states: dict[int, tuple[Any, Any]] = {}
        self._world: dict[tuple[str, str], Any] = {}
        for module, name in names_in(content):
            if not name.endswith("Storage"):  # which torch resolves itself, to a name of a kind of numbers
                self._world[module, name] = self._stand_in(module, name)
        super().__init__(io.BytesIO(content), **options)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._world[module, name]
        except KeyError as error:
            raise NotPlain(f"refers to {module}.{name}") from error

    def load(self) -> Any:
        """Return what the pickle holds, its layers made."""
        try:
            result = super().load()
            if len(self._states) != len(self._made):
                raise NotPlain("holds a layer without a state")
            for made, state in self._states.values():
                try:
                    made.__class__ = type(made).stands_for
                except TypeError as error:  # a layer that keeps its attributes elsewhere
                    raise NotPlain(str(error)) from error
                made.__setstate__(state)
        finally:  # the stand-ins know of these, and classes live until garbage is collected
            self._made.clear()
            self._states.clear()
        return result

    def _stand_in(self, module: str, name: str) -> Any:
        """Return what a name stands for while the pickle is read."""
        if (module, name) in _IMMUTABLE:
            return _IMMUTABLE[module, name]
        if (module, name) in _FUNCTIONS:
            function = _FUNCTIONS[module, name]
            return lambda *args: function(*args)  # of this pickle alone: it can set its attributes
        known = _layer(module, name)
        made, states = self._made, self._states

        def new(cls: Any, *args: Any) -> Any:
            if args:
                raise NotPlain(f"gives {name} arguments")
            made.append(object.__new__(cls))
            return made[-1]

        def setstate(self: Any, state: Any) -> None:
            if id(self) in states:
                raise NotPlain(f"gives a {name} two states")
            states[id(self)] = self, state

        return _Locked(name, (), {"__new__": new, "__setstate__": setstate, "stands_for": known})


_IMMUTABLE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch", "Size"): torch.Size,
}
_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("ultralytics.utils", "IterableSimpleNamespace"): IterableSimpleNamespace,  # a model's arguments
}
_LAYERS = ("torch.nn.modules.", "ultralytics.nn.modules.", "ultralytics.nn.tasks")


def _layer(module: str, name: str) -> type:
    """Return a layer or a model by its name; nothing is imported for it.

    It is torch's, Ultralytics' or one that torch's safe mode has been told of, as it has of ours.

    Raises:
        NotPlain: If the name is of something else.
    """
    known = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if (
        isinstance(known, type)
        and issubclass(known, torch.nn.Module)
        and (known.__module__, known.__qualname__) == (module, name)
        and (module.startswith(_LAYERS) or known in torch.serialization.get_safe_globals())
    ):
        return known
    raise NotPlain(f"refers to {module}.{name}")
