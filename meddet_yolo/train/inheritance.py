"""From whom a student takes its first weights in a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from meddet_yolo.distill.config import RunOptions
from meddet_yolo.distill.inherit import best_fit, inherit
from meddet_yolo.registry import load_detector

__all__ = ["Inheritance"]


class Inheritance:
    """What a student that starts from a model YAML may inherit from, until it has; see `meddet_yolo.distill.inherit`.

    Args:
        run: Options of the run: `inherit`, and `trust` for a checkpoint that it names.
        teachers: The run's teachers.
        pretrained: Ultralytics' argument of that name; a path gives the student its first weights too.

    Raises:
        ValueError: If a checkpoint and `pretrained` both give the student its first weights.
    """

    def __init__(self, run: RunOptions, teachers: Sequence[nn.Module], pretrained: Any) -> None:
        self.wanted = run.inherit
        self._ancestors: list[nn.Module] = []
        named = isinstance(pretrained, (str, Path))
        if self.wanted == "none" or (self.wanted == "auto" and named):
            return
        if self.wanted == "auto":
            self._ancestors = [teacher for teacher in teachers if _is_plain_detector(teacher)]
        elif named:
            raise ValueError(
                f"inherit={self.wanted} and pretrained={pretrained} both give the student its first weights; choose one"
            )
        else:
            self._ancestors = [load_detector(self.wanted, trust=run.trust)]

    def give(self, student: nn.Module, has_weights: bool) -> str:
        """Let a student inherit, in place.

        Args:
            student: The student, as it was built.
            has_weights: Whether it was given weights already; such a student inherits nothing.

        Returns:
            What it inherited or why nothing, in words; empty where it has nobody to inherit from, or weights already.

        Raises:
            InheritError: If it cannot inherit from the checkpoint that `inherit` names.
            ValueError: If such a checkpoint was named for a student that has weights already.
        """
        ancestors, self._ancestors = self._ancestors, []  # once is enough, and they take memory
        if not ancestors:
            return ""
        if has_weights:
            if self.wanted != "auto":
                problem = "is for a student that starts from a model YAML; this one has weights already"
                raise ValueError(f"inherit={self.wanted} {problem}")
            return ""
        best = 0 if self.wanted != "auto" else best_fit(student, ancestors)
        if best is None:
            return "no teacher is of the student's family and at least as wide and deep; it starts at random"
        return str(inherit(student, ancestors[best]))


def _is_plain_detector(model: Any) -> bool:
    """Return whether a teacher is a detector of Ultralytics' or ours, of no other task and no other package."""
    return getattr(model, "task", "detect") == "detect" and isinstance(getattr(model, "model", None), nn.Sequential)
