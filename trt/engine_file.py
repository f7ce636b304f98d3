"""Read and write engine files: Ultralytics' header, the plan, and a sidecar that holds the hash.

An engine file is a 4-byte little-endian signed length, that many bytes of JSON, and TensorRT's plan: the format that
Ultralytics writes and its `TensorRTBackend` reads. Beside `student.engine` stands `student.engine.json` with the same
metadata in a readable form and the SHA-256 of the engine file. Needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddet_yolo.files import sha256_of as sha256

__all__ = [
    "EngineFile",
    "EngineFileError",
    "read_engine",
    "read_sidecar",
    "sha256",
    "sidecar_path",
    "update_sidecar",
    "write_engine",
    "write_sidecar",
]

_LENGTH_BYTES = 4


class EngineFileError(ValueError):
    """An engine file that is corrupt, foreign, or not the one that its sidecar describes."""


@dataclass(frozen=True)
class EngineFile:
    """What an engine file holds.

    Attributes:
        metadata: The header: Ultralytics' keys, and ours with the prefix `meddet_`. Class names have integer keys.
        plan: TensorRT's serialized engine.
    """

    metadata: dict[str, Any]
    plan: bytes


def sidecar_path(engine: str | Path) -> Path:
    """Return where the sidecar of an engine file stands.

    Examples:
        >>> sidecar_path("student.engine").name
        'student.engine.json'
    """
    path = Path(engine)
    return path.with_name(f"{path.name}.json")


def write_engine(path: str | Path, plan: bytes | memoryview, metadata: Mapping[str, Any]) -> Path:
    """Write an engine file and its sidecar; each appears whole or not at all.

    Args:
        path: The engine file, usually `*.engine`; its folder is made.
        plan: TensorRT's serialized engine (anything with the buffer protocol, such as `IHostMemory`).
        metadata: Header. Values that JSON does not know become strings.

    Returns:
        The path of the engine file.

    Raises:
        EngineFileError: If the plan is empty.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_engine(f"{folder}/student.engine", b"plan", {"task": "detect", "names": {0: "disc"}})
        ...     read_engine(path).metadata["names"], read_sidecar(path)["sha256"] == sha256(path)
        ({0: 'disc'}, True)
    """
    path = Path(path)
    view = memoryview(plan)
    if view.nbytes == 0:
        raise EngineFileError(f"nothing to write to {path}: the plan is empty")
    header = json.dumps(dict(metadata), ensure_ascii=True, default=str).encode("ascii")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The old sidecar would vouch for the new engine with a wrong hash: without one there is no claim in between.
    sidecar_path(path).unlink(missing_ok=True)
    _write_atomically(path, (len(header).to_bytes(_LENGTH_BYTES, "little", signed=True), header, view))
    write_sidecar(path, metadata)
    return path


def write_sidecar(engine: str | Path, metadata: Mapping[str, Any]) -> Path:
    """Write the sidecar of an engine (or other exported) file: the metadata with the file's name, size and SHA-256."""
    engine = Path(engine)
    facts = {"file": engine.name, "bytes": engine.stat().st_size, "sha256": sha256(engine)}
    text = json.dumps({**facts, **metadata}, ensure_ascii=True, indent=2, default=str) + "\n"
    path = sidecar_path(engine)
    _write_atomically(path, (text.encode("ascii"),))
    return path


def update_sidecar(engine: str | Path, facts: Mapping[str, Any]) -> Path:
    """Add facts to the sidecar that a file has; what it says of the file, the hash above all, stays as it is."""
    path = sidecar_path(engine)
    text = json.dumps({**read_sidecar(engine), **facts}, ensure_ascii=True, indent=2, default=str) + "\n"
    _write_atomically(path, (text.encode("ascii"),))
    return path


def read_engine(
    path: str | Path, *, verify: bool = True, expected_sha256: str | None = None, vouched: bool = False
) -> EngineFile:
    """Read an engine file.

    An engine is code that runs on the GPU: load only files from a source you trust. The hash in the sidecar tells a
    damaged or mixed-up file, it is no signature.

    Args:
        path: The engine file.
        verify: Whether to compare the file with the SHA-256 in its sidecar, where there is one.
        expected_sha256: Hash that you know from a safe place; compared instead of the sidecar's.
        vouched: Whether to refuse a file that neither a sidecar nor `expected_sha256` vouches for.

    Returns:
        Metadata and plan.

    Raises:
        FileNotFoundError: If there is no such file.
        EngineFileError: If the file has no header (an engine written by trtexec, or no engine at all), is cut off, or
            differs from its sidecar, or is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"engine {path}: no such file")
    data = path.read_bytes()  # once: what is hashed below is what is returned
    if not data:
        raise EngineFileError(f"engine {path} is empty: writing it was interrupted; export it again")
    if verify:
        _verify(path, data, expected_sha256, vouched)
    size = int.from_bytes(data[:_LENGTH_BYTES], "little", signed=True)
    if len(data) < _LENGTH_BYTES or not 0 < size <= len(data) - _LENGTH_BYTES:
        raise EngineFileError(
            f"engine {path} has no metadata header: it is damaged, or was not written by `meddet export` or "
            "`yolo export`; export it again"
        )
    body = _LENGTH_BYTES + size
    try:
        metadata = json.loads(data[_LENGTH_BYTES:body])
    except (ValueError, RecursionError) as error:  # the first also for bytes that are no text
        raise EngineFileError(f"engine {path}: its header is not valid JSON ({error}); export it again") from error
    if not isinstance(metadata, dict):
        raise EngineFileError(f"engine {path}: its header must be a JSON object, got a {type(metadata).__name__}")
    if len(data) == body:
        raise EngineFileError(f"engine {path} ends after its header: the file was cut off; export it again")
    if isinstance(metadata.get("names"), dict):
        try:
            metadata["names"] = {int(k): v for k, v in metadata["names"].items()}
        except ValueError as error:
            raise EngineFileError(
                f"engine {path}: its class names are not numbered ({error}); export it again"
            ) from error
    return EngineFile(metadata, data[body:])


def read_sidecar(engine: str | Path) -> dict[str, Any]:
    """Read the sidecar of an engine file; empty where there is none.

    Raises:
        EngineFileError: If the sidecar is not a JSON object.
    """
    path = sidecar_path(engine)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EngineFileError(f"{path} is not valid JSON ({error}); delete it or export the engine again") from error
    if not isinstance(content, dict):
        raise EngineFileError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content


def _verify(path: Path, data: bytes, known: str | None, vouched: bool) -> None:
    """Compare a file's content with a known hash, or else with the one in its sidecar."""
    found = hashlib.sha256(data).hexdigest()
    if known is not None:
        if found != known.lower():
            raise EngineFileError(f"engine {path} has the SHA-256 {found}, expected {known}: it is another file")
        return
    expected = read_sidecar(path).get("sha256")
    if expected is None and vouched:
        raise EngineFileError(
            f"engine {path} has no {sidecar_path(path).name} with its hash beside it, and an engine is code that runs "
            "here: copy that file too, or pass trust=True if you made the engine yourself"
        )
    if expected is None:
        return
    if found != expected:
        raise EngineFileError(
            f"engine {path} is not the file that {sidecar_path(path).name} describes (SHA-256 {found[:12]}..., "
            f"expected {str(expected)[:12]}...): it is damaged or was replaced; export it again, or delete the "
            "sidecar if you trust the file"
        )


def _write_atomically(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write through a temporary file in the same folder, so that a reader never sees half a file."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private; an export is an ordinary file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
