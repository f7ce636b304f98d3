"""Score-weighted L2: imitate the teachers' maps where the teachers see something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from meddet_yolo.distill.levels import match_teacher
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, DistillMethod, HeadLoss, Term
from meddet_yolo.distill.options import Options, number
from meddet_yolo.distill.standardise import standardise

__all__ = ["ScoreWeightedL2", "ScoreWeightedL2Options"]


@dataclass(frozen=True, kw_only=True)
class ScoreWeightedL2Options(Options):
    """Options of `distill=l2`.

    Attributes:
        l2_weight: Weight of the score-weighted squared error, at least 0. The error is 2 for a student unrelated to its
            teachers and 0 for one whose maps give theirs.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    l2_weight: float = 1.0

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        self.put("l2_weight", number("l2_weight", self.l2_weight, low=0))


class ScoreWeightedL2(DistillMethod):
    """Squared error between projected student maps and teacher maps, weighted by the teacher's top class score.

    At level l, with the student's map S, the teacher's T, a 1x1 convolution P and the teacher's top score
    w(x) = max_c sigmoid(logit_c(x)) at position x:

        L_l = sum_x w(x) |P(S)(x) - T(x)|^2 / (C sum_x w(x))

    and the loss is the mean over levels and teachers. The weighting is that of Ultralytics' own `distill_model=`
    (8.4.190). Ours are the standardisation of both sides, as in PKD (Cao et al., NeurIPS 2022), so that neither a
    teacher's scale nor the batch size moves the weight, and the resampling of teachers that read another image size.

    Examples:
        >>> student = DetectorSpec("student", [8, 8], [8, 16], nc=2, reg_max=16)
        >>> teacher = DetectorSpec("a.pt", [16, 16], [8, 16], nc=2, reg_max=16)
        >>> method = ScoreWeightedL2(student, [teacher], ScoreWeightedL2Options())
        >>> small = DetectorOutput([torch.randn(2, 8, 4, 4), torch.randn(2, 8, 2, 2)])
        >>> large = DetectorOutput([torch.randn(2, 16, 4, 4), torch.randn(2, 16, 2, 2)], logits=torch.randn(2, 2, 20))
        >>> sorted(method(small, [large], {}, head_loss=lambda maps: maps[0].mean()))
        ['l2']
    """

    Options = ScoreWeightedL2Options
    needs_predictions = True
    partial_classes = True  # the top score of the classes that a teacher knows

    def __init__(
        self, student: DetectorSpec, teachers: Sequence[DetectorSpec], options: ScoreWeightedL2Options
    ) -> None:
        """Match the levels and build a projection for each."""
        super().__init__(student, teachers, options)
        self.options = options
        self._levels = [match_teacher(student, teacher) for teacher in teachers]
        self.projections = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(channels, teacher.channels[level], 1, bias=False)
                for channels, level in zip(student.channels, levels, strict=True)
            )
            for teacher, levels in zip(teachers, self._levels, strict=True)
        )

    def forward(
        self,
        student: DetectorOutput,
        teachers: Sequence[DetectorOutput],
        batch: Mapping[str, Any],
        *,
        head_loss: HeadLoss,
    ) -> dict[str, Term]:
        """Compute the one term, `l2`; see `DistillMethod.forward`."""
        losses = []
        for output, levels, projections in zip(teachers, self._levels, self.projections, strict=True):
            assert output.logits is not None  # needs_predictions
            scores = output.by_level(output.logits.float().sigmoid().amax(1, keepdim=True))
            for level, project, x in zip(levels, projections, student.feats, strict=True):  # type: ignore[call-overload]
                size = (x.shape[2], x.shape[3])
                target = standardise(F.adaptive_avg_pool2d(output.feats[level], size))
                weights = F.adaptive_avg_pool2d(scores[level], size)
                error = (standardise(project(x)) - target).square().mean(1, keepdim=True)
                losses.append((error * weights).sum() / weights.sum().clamp(min=1e-9))
        return {"l2": Term(torch.stack(losses).mean(), self.options.l2_weight)}
