"""Score-weighted L2: imitate the teachers' maps where the teachers see something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from meddet_yolo.distill.maps import MapMethod
from meddet_yolo.distill.method import DetectorOutput, Term
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


class ScoreWeightedL2(MapMethod):
    """Squared error between projected student maps and teacher maps, weighted by the teacher's top class score.

    At level l, with the student's map S, the teacher's T, a 1x1 convolution P and the teacher's top score
    w(x) = max_c sigmoid(logit_c(x)) at position x:

        L_l = sum_x w(x) |P(S)(x) - T(x)|^2 / (C sum_x w(x))

    and the loss is the mean over levels and teachers. The weighting is that of Ultralytics' own `distill_model=`
    (8.4.190). Ours are the standardisation of both sides, as in PKD (Cao et al., NeurIPS 2022), so that neither a
    teacher's scale nor the batch size moves the weight, and the resampling of teachers that read another image size.

    Examples:
        >>> from meddet_yolo.distill.method import DetectorSpec
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

    def terms(
        self, pairs: Sequence[tuple[Tensor, Tensor]], teachers: Sequence[DetectorOutput], batch: Mapping[str, Any]
    ) -> dict[str, Term]:
        """Compute the one term, `l2`."""
        scores = []
        for output, levels in zip(teachers, self._levels, strict=True):
            assert output.logits is not None  # needs_predictions
            top = output.by_level(output.logits.float().sigmoid().amax(1, keepdim=True))
            scores += [top[level] for level in levels]
        losses = []
        for (projected, target), score in zip(pairs, scores, strict=True):
            weights = F.adaptive_avg_pool2d(score, (target.shape[2], target.shape[3]))
            error = (standardise(projected) - standardise(target)).square().mean(1, keepdim=True)
            losses.append((error * weights).sum() / weights.sum().clamp(min=1e-9))
        return {"l2": Term(torch.stack(losses).mean(), self.options.l2_weight)}
