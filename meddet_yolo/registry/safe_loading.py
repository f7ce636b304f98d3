"""Ultralytics' loaders of checkpoints, in safe mode unless files are trusted.

A checkpoint is a pickle, and a pickle can call anything. Ultralytics has a safe mode (`torch.load(weights_only=True)`
with a list of its layers), which is off by default and not asked for by all of its loaders. Here it is on for all.
Checkpoints that hold a model and plain values are read in a way that is as safe and takes a quarter of the time
(`plain_pickle.py`); it leaves all others to Ultralytics' safe mode.
"""

from __future__ import annotations

import functools
import importlib.util
import mmap
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this processor
    from zlib import crc32

from meddet_yolo.registry.layers import import_layers
from meddet_yolo.registry.network import check_fetching
from meddet_yolo.registry.trust import is_trusted

__all__ = ["wrap_torch_load", "wrap_torch_safe_load"]

_REFUSED = re.compile(r"unsupported global:? (?:GLOBAL )?(\S+)", re.IGNORECASE)  # in torch's own words
_NO_DICTIONARY = re.compile(r"'(\w+)' object has no attribute 'model'")
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a file in a zip: a signature, the lengths of its name and of more


def wrap_torch_safe_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `torch_safe_load` that is safe unless files are trusted, knows our layers, and refuses in one clear line.

    The wrapped function raises `FileNotFoundError`, `ValueError` (unreadable, damaged, or refused because it would run
    foreign code) or `TypeError` (no checkpoint of a model).
    """

    @functools.wraps(original)
    def torch_safe_load(weight: str | Path, safe_only: bool | None = None) -> tuple[dict[str, Any], str]:
        from ultralytics.utils.checks import check_suffix
        from ultralytics.utils.downloads import attempt_download_asset

        from meddet_yolo.registry.plain_pickle import no_collection  # torch's

        check_suffix(file=weight, suffix=".pt")
        check_fetching(weight)
        file = Path(attempt_download_asset(weight))
        with no_collection():
            _check_file(file)
            trust = is_trusted() and not safe_only
            if trust:
                _check_importable(file)
            import_layers()
            try:
                checkpoint, name = (None if trust else _plain(file)) or original(str(file), safe_only=not trust)
            except Exception as error:  # a damaged pickle can raise anything
                raise _explained(error, file, trust) from error
        if not isinstance(checkpoint, dict):
            raise TypeError(f"{file} holds a {type(checkpoint).__name__}, not an Ultralytics checkpoint")
        return checkpoint, name

    return torch_safe_load


def wrap_torch_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `torch_load`, by which Ultralytics reads all other pickles, that is safe unless files are trusted."""

    @functools.wraps(original)
    def torch_load(f: Any, *args: Any, **kwargs: Any) -> Any:
        if is_trusted() or kwargs.get("weights_only"):
            return original(f, *args, **kwargs)
        from ultralytics.nn.tasks import _SafeLoad

        import_layers()
        known = _SafeLoad.loading(f) if isinstance(f, (str, Path)) and zipfile.is_zipfile(f) else nullcontext()
        with known:
            return original(f, *args, **{**kwargs, "weights_only": True})

    return torch_load


def _plain(file: Path) -> tuple[Any, str] | None:
    """Return what `torch_safe_load` does, of a checkpoint that is plain enough for the fast reader."""
    from meddet_yolo.registry.plain_pickle import NotPlain, read_plain  # torch's

    if not zipfile.is_zipfile(file):
        return None
    try:
        return read_plain(file), str(file)
    except NotPlain:
        return None


def _check_file(file: Path) -> None:
    """Refuse what is no checkpoint before it is unpickled: torch reads over wrong checksums."""
    if not file.exists():
        raise FileNotFoundError(f"checkpoint {file} does not exist")
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give the checkpoint in it, e.g. {file / 'weights' / 'best.pt'}")
    if file.stat().st_size == 0:
        raise ValueError(f"checkpoint {file} is empty")
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            if any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist()):
                raise TypeError(f"{file} is a TorchScript export; give the .pt checkpoint that it was made from")
            compressed = next((e.filename for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED), None)
            if compressed is not None:  # a small file could fill the memory
                raise ValueError(f"checkpoint {file} was not written by torch: {compressed} in it is compressed")
            if sum(e.file_size for e in archive.infolist()) > file.stat().st_size:  # reading it could take for ever
                raise ValueError(f"checkpoint {file} was not written by torch: what it holds overlaps")
            damaged = _damaged_entry(file, archive.infolist())
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, struct.error) as error:
        raise ValueError(f"checkpoint {file} is damaged ({error}); copy or download it again") from error
    if damaged is not None:
        raise ValueError(
            f"checkpoint {file} is damaged: the checksum of {damaged} in it is wrong; copy or download it again"
        )


def _damaged_entry(file: Path, entries: list[zipfile.ZipInfo]) -> str | None:
    """Return the first entry of an archive without compression whose checksum is wrong.

    `ZipFile.testzip` takes as long as loading a small checkpoint.
    """
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
    ):
        for entry in entries:
            signature, name, more = _LOCAL_HEADER.unpack_from(content, entry.header_offset)
            begin = entry.header_offset + 30 + name + more
            if signature != b"PK\3\4" or crc32(content[begin : begin + entry.file_size]) != entry.CRC:
                return entry.filename
    return None


def _explained(error: Exception, file: Path, trust: bool) -> Exception:
    """Return what to raise for a checkpoint that could not be loaded."""
    cause = error.__cause__ or error
    names = [] if trust else _foreign_globals(file) or re.findall(_REFUSED, str(cause))
    if names:
        return ValueError(
            f"checkpoint {file} would run foreign code on loading ({', '.join(names)}); if you know where it comes "
            'from, pass trust=true (in Python MedDet("...", trust=True))'
        )
    if other := _NO_DICTIONARY.fullmatch(str(cause)):
        return TypeError(f"{file} holds a {other[1]}, not an Ultralytics checkpoint")
    reason = str(cause).strip().partition("\n")[0].partition(". ")[0]
    return ValueError(
        f"checkpoint {file} cannot be read; it is truncated, damaged or of another Ultralytics version "
        f"({type(cause).__name__}: {reason})"
    )


def _foreign_globals(file: Path) -> list[str]:
    """Return the names that a checkpoint refers to and that safe loading does not allow."""
    import torch

    try:  # Ultralytics has allowed its own by now
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # not an archive, or damaged
        return []


def _check_importable(file: Path) -> None:
    """Refuse a trusted checkpoint that needs a missing package, which Ultralytics would install with pip."""
    for name in _foreign_globals(file):
        package = name.partition(".")[0]
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise ValueError(f"checkpoint {file} needs the package {package!r} ({name}), which is not installed")
