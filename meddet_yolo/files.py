"""Files written so that another process sees them whole or not at all, one process at a time in a folder; hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["alone", "sha256_of", "write_whole"]


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file in one step: readers see the old content or the new one, and a failure leaves nothing behind.

    A symbolic link of that name is replaced by the file, not followed.

    Args:
        path: The file; its folder must exist.
        content: Its content; text is written as UTF-8.

    Raises:
        OSError: If it cannot be written; the message names the file and, where that is full, the disk.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(f"{folder}/a.txt", "one")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    # A name that nobody can have put a link under; short, for the file's own may be as long as names can be.
    unfinished = path.with_name(f".{secrets.token_hex(8)}.part")
    data = content.encode() if isinstance(content, str) else content
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(unfinished, flags, 0o666), "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, _problem(error, path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _problem(error: OSError, path: Path) -> str:
    """Say why a file could not be written."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} cannot be written: {error.strerror or type(error).__name__}"
    disk = path.resolve().parent
    while not os.path.ismount(disk):
        disk = disk.parent
    why = "the quota is used up" if error.errno == errno.EDQUOT else f"{shutil.disk_usage(disk).free / 1e9:.2f} GB free"
    return f"{path} cannot be written: the disk at {disk} is full ({why}); make room or write elsewhere"


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder one after another, by name.

    Raises:
        OSError: If it cannot be read.
    """
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def alone(lock: str | Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, so that only one process at a time does what is inside.

    The file stays, for removing it would let two processes hold locks of one name.

    Args:
        lock: The file; its folder must exist.
        busy: What to say if another process holds it.
        wait: Whether to wait until that one is done instead.

    Raises:
        BlockingIOError: If another process holds the lock, unless `wait`.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=-1 if wait else 0):
            yield
    except Timeout as error:
        raise BlockingIOError(busy) from error
