"""Files beside a checkpoint: the state of a run that a plain checkpoint does not hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["Sidecar", "drop_unsaved_epochs", "written_whole"]

_NAME = "distill-epoch{}.pt"  # never "last*", which Ultralytics searches for when it resumes


class Sidecar:
    """The side-car files of one folder of checkpoints, one an epoch, of which the last is kept.

    Args:
        folder: Where the checkpoints lie.

    Examples:
        >>> import tempfile
        >>> sidecar = Sidecar(tempfile.mkdtemp())
        >>> sidecar.write(3, {"distiller": {}})
        >>> sidecar.read(3)
        {'distiller': {}}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the state of an epoch, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(epoch)
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def holds(self, epoch: int) -> bool:
        """Return whether the state of an epoch is there."""
        return self._path(epoch).exists()

    def read(self, epoch: int, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Read the state of an epoch; nothing but tensors and plain values is loaded.

        Raises:
            FileNotFoundError: If it is not there.
        """
        path = self._path(epoch)
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the distillation state of epoch {epoch + 1} is kept there and is needed to resume;"
                " put the file beside the checkpoint, or start a new run from last.pt with model=..."
            )
        return torch.load(path, map_location=device, weights_only=True)

    def remove(self, but: int | None = None) -> None:
        """Remove all files, or all but those of one epoch."""
        kept = None if but is None else self._path(but)
        for path in self.folder.glob(_NAME.format("*")):
            if path != kept:
                path.unlink()

    def _path(self, epoch: int) -> Path:
        return self.folder / _NAME.format(epoch)


@contextmanager
def written_whole(owner: Any, *names: str) -> Iterator[None]:
    """Have files that an object writes to the paths in its attributes appear whole or not at all.

    Args:
        owner: The object; inside the context its attributes name temporary files.
        *names: The attributes, in the order in which the files are to appear.
    """
    paths = {name: getattr(owner, name) for name in names}
    for name, path in paths.items():
        setattr(owner, name, path.with_name(f"{path.name}.tmp"))
    try:
        yield
        for name, path in paths.items():
            if getattr(owner, name).exists():
                os.replace(getattr(owner, name), path)
    finally:
        for name, path in paths.items():
            setattr(owner, name, path)


def drop_unsaved_epochs(csv: Path, epochs: int) -> None:
    """Take what was logged but not saved any more, and a line cut short, from a run's results.csv.

    Args:
        csv: The file; one that is not there is left so.
        epochs: Number of epochs whose checkpoint was saved.
    """
    if not csv.exists():
        return
    header, *rows = csv.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",", 1)[0]) <= epochs]
    if kept != rows:
        csv.write_text("".join([header, *kept]), encoding="utf-8")
