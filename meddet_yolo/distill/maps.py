"""Base of methods that compare maps: the student's projected, the teachers' at the student's size, level by level."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from meddet_yolo.distill.levels import match_teacher
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, DistillMethod, HeadLoss, Term

__all__ = ["MapMethod"]


class MapMethod(DistillMethod):
    """A method whose loss compares one map of the student with one of a teacher, over all levels and teachers.

    The student's map goes through a 1x1 convolution to the teacher's channels, one for each pair; the teacher's is
    averaged or repeated to the student's size.

    Args:
        student: The student.
        teachers: The teachers.
        options: The method's options.

    Attributes:
        pairs: For each pair, teacher after teacher and each from fine to coarse: channels of the projected map.
        projections: The convolutions, in the same order.

    Raises:
        ValueError: If a level of the student has no counterpart in a teacher, which is named.
    """

    def __init__(self, student: DetectorSpec, teachers: Sequence[DetectorSpec], options: Any) -> None:
        super().__init__(student, teachers, options)
        self.options = options
        self._levels = [match_teacher(student, teacher) for teacher in teachers]
        self.pairs = [teacher.channels[i] for teacher, ls in zip(teachers, self._levels, strict=True) for i in ls]
        self.projections = nn.ModuleList(
            nn.Conv2d(channels, width, 1, bias=False)
            for channels, width in zip(student.channels * len(teachers), self.pairs, strict=True)
        )

    def forward(
        self,
        student: DetectorOutput,
        teachers: Sequence[DetectorOutput],
        batch: Mapping[str, Any],
        *,
        head_loss: HeadLoss,
    ) -> dict[str, Term]:
        """Project the maps and compute the terms; see `DistillMethod.forward`."""
        maps = [output.feats[i] for output, levels in zip(teachers, self._levels, strict=True) for i in levels]
        pairs = []
        for project, x, target in zip(self.projections, student.feats * len(teachers), maps, strict=True):
            pairs.append((project(x), F.adaptive_avg_pool2d(target, (x.shape[2], x.shape[3]))))
        return self.terms(pairs, teachers, batch)

    @abstractmethod
    def terms(
        self, pairs: Sequence[tuple[Tensor, Tensor]], teachers: Sequence[DetectorOutput], batch: Mapping[str, Any]
    ) -> dict[str, Term]:
        """Compute the terms.

        Args:
            pairs: Projected map of the student and map of the teacher, (B, C, H, W) both, for each pair.
            teachers: The teachers' outputs.
            batch: Labels, see `DistillMethod.forward`.
        """
