"""Pearson distillation (PKD): imitate the teachers' maps up to each channel's scale and offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meddet_yolo.distill.maps import MapMethod
from meddet_yolo.distill.method import DetectorOutput, Term
from meddet_yolo.distill.options import Options, number
from meddet_yolo.distill.standardise import standardise

__all__ = ["PKD", "PKDOptions"]


@dataclass(frozen=True, kw_only=True)
class PKDOptions(Options):
    """Options of `distill=pkd`.

    Attributes:
        pkd_weight: Weight of the term, at least 0, the paper's alpha. The term is 1 for a student unrelated to its
            teachers and 0 for one whose channels correlate with theirs.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    pkd_weight: float = 6.0

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        self.put("pkd_weight", number("pkd_weight", self.pkd_weight, low=0))


class PKD(MapMethod):
    """Squared error of standardised maps (Cao et al., NeurIPS 2022, arXiv 2207.02039).

    With every channel brought to mean 0 and variance 1 over the batch and all positions, S_hat and T_hat:

        L = 1 / (2 M C) sum_c sum (S_hat_c - T_hat_c)^2 = mean over channels of 1 - r_c

    with M the positions of the batch and r_c Pearson's correlation of channel c, as the paper derives. S is the
    student's map through a 1x1 convolution; the loss is the mean over levels and teachers.

    Examples:
        >>> from meddet_yolo.distill.method import DetectorSpec
        >>> student = DetectorSpec("student", [8], [8], nc=2, reg_max=16)
        >>> method = PKD(student, [DetectorSpec("a.pt", [16], [8], nc=2, reg_max=16)], PKDOptions())
        >>> small, large = DetectorOutput([torch.randn(2, 8, 4, 4)]), DetectorOutput([torch.randn(2, 16, 4, 4)])
        >>> sorted(method(small, [large], {}, head_loss=lambda maps: maps[0].mean()))
        ['pkd']
    """

    Options = PKDOptions

    def terms(
        self, pairs: Sequence[tuple[Tensor, Tensor]], teachers: Sequence[DetectorOutput], batch: Mapping[str, Any]
    ) -> dict[str, Term]:
        """Compute the one term, `pkd`."""
        losses = [(standardise(x) - standardise(target)).square().mean() / 2 for x, target in pairs]
        return {"pkd": Term(torch.stack(losses).mean(), self.options.pkd_weight)}
