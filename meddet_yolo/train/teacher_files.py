"""Teachers as a run's arguments name them: checkpoint files, models of other packages, or ones that were handed in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.engine.model import Model

from meddet_yolo.distill.adapters import is_named, open_named, weights_file, with_absolute_file
from meddet_yolo.distill.config import RunOptions
from meddet_yolo.files import sha256_of
from meddet_yolo.registry import load_detector

__all__ = ["TeacherFiles"]

_GIVEN = "<model {}>"  # stands for a loaded model in the arguments of a run, which hold plain values only
_TASKS = ("detect", "segment", "pose")  # of Ultralytics' models that hold a detector


class TeacherFiles:
    """Names teachers for a run's arguments, loads them, and knows them again on resume.

    Attributes:
        given: Models that were handed in.
        digests: The SHA-256 of every teacher file as it was loaded, or of the weights where no file was named; nothing
            for a model that was handed in.
    """

    def __init__(self) -> None:
        self.given: list[nn.Module] = []
        self.digests: list[str] = []

    def name(self, teachers: Any) -> list[str]:
        """Turn `teachers` into a list of absolute paths; loaded models are kept aside under a name of their own."""
        if teachers is None:
            return []
        names = []
        for teacher in [teachers] if isinstance(teachers, (str, Path, nn.Module)) else teachers:
            module = teacher.model if isinstance(teacher, Model) else teacher
            if isinstance(module, nn.Module):
                names.append(_GIVEN.format(len(self.given)))
                self.given.append(module)
            else:
                path = Path(str(teacher)).expanduser()
                if is_named(str(teacher)):
                    names.append(with_absolute_file(str(teacher)))
                    continue
                names.append(str(path.resolve()) if path.exists() else str(teacher))
        return names

    def load(self, options: RunOptions) -> list[nn.Module]:
        """Load every teacher that a run names, and keep the SHA-256 of what was loaded.

        The files are not looked at again: they may be moved or overwritten while the run goes on.

        Raises:
            FileNotFoundError: If a teacher file is missing.
            ModuleNotFoundError: If a teacher is of a package that is not installed.
            TypeError: If a teacher is no detection model.
            ValueError: If a file is damaged, unsafe or being written, or a model that was handed in is not at hand.
        """
        self.digests = []
        return [self._load_one(name, options.trust) for name in options.teachers]

    def _load_one(self, name: str, trust: bool) -> nn.Module:
        if name.startswith("<model "):
            index = int(name[len("<model ") : -1])
            if index >= len(self.given):
                raise ValueError(
                    f"The run was started with a loaded model as teacher ({name}), which no file holds; pass the "
                    "same teachers=[...] again to resume it"
                )
            self.digests.append("")
            return self.given[index]
        named = is_named(name)
        file = weights_file(name) if named else name
        before = _digest(file)
        if named:
            model = open_named(name)
            self.digests.append(_digest(file) or _digest_of_weights(model))
        else:
            model = load_detector(name, trust=trust, tasks=_TASKS)
            self.digests.append(_digest(str(model.pt_path)))  # an official one may have been downloaded
        if before not in {"", self.digests[-1]}:
            raise ValueError(
                f"Teacher {name} was changed while it was being loaded; start again when it is written wholly"
            )
        return model

    def check_same(self, saved: Sequence[str], names: Sequence[str]) -> None:
        """Refuse to resume with other teachers than the run was started with.

        Args:
            saved: The digests of the run that is resumed.
            names: The teachers' names, for the message.

        Raises:
            ValueError: If their number or a digest differs.
        """
        if len(saved) != len(self.digests):
            raise ValueError(f"The run was started with {len(saved)} teachers, but {len(self.digests)} are given now")
        for name, before, now in zip(names, saved, self.digests, strict=True):
            if before and before != now:
                raise ValueError(
                    f"Teacher {name} is not the file that the run was started with (its SHA-256 differs); "
                    "pass the original with teachers=[...]"
                )


def _digest(name: str) -> str:
    """Return the SHA-256 of a file, or nothing where there is none."""
    return sha256_of(name) if Path(name).is_file() else ""


def _digest_of_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, for one that no file was named for."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
