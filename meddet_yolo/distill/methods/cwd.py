"""Channel-wise distillation (CWD): imitate where each channel of the teachers looks."""

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

__all__ = ["CWD", "CWDOptions"]


@dataclass(frozen=True, kw_only=True)
class CWDOptions(Options):
    """Options of `distill=cwd`.

    Attributes:
        cwd_weight: Weight of the channel-wise divergence, at least 0.
        cwd_temperature: What the maps are divided by before the softmax over positions, above 0.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    cwd_weight: float = 1.0
    cwd_temperature: float = 1.0

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        self.put("cwd_weight", number("cwd_weight", self.cwd_weight, low=0))
        self.put("cwd_temperature", number("cwd_temperature", self.cwd_temperature, low=0, open_low=True))


class CWD(MapMethod):
    """Divergence of each channel's softmax over the positions (Shu et al., ICCV 2021, arXiv 2011.13256).

    With phi_c(y)(x) = exp(y_c(x) / tau) / sum_x' exp(y_c(x') / tau), as in the paper, at one level:

        L = tau^2 / C  sum_c sum_x phi_c(T)(x) log(phi_c(T)(x) / phi_c(S)(x)),    mean over images

    S is the student's map through a 1x1 convolution; both sides are standardised by channel before, as detectors that
    ship with the method do (a batch normalisation without parameters), since the scale of a neck's maps is arbitrary.
    The loss is the mean over levels and teachers.

    Examples:
        >>> from meddet_yolo.distill.method import DetectorSpec
        >>> student = DetectorSpec("student", [8], [8], nc=2, reg_max=16)
        >>> method = CWD(student, [DetectorSpec("a.pt", [16], [8], nc=2, reg_max=16)], CWDOptions())
        >>> small, large = DetectorOutput([torch.randn(2, 8, 4, 4)]), DetectorOutput([torch.randn(2, 16, 4, 4)])
        >>> sorted(method(small, [large], {}, head_loss=lambda maps: maps[0].mean()))
        ['cwd']
    """

    Options = CWDOptions

    def terms(
        self, pairs: Sequence[tuple[Tensor, Tensor]], teachers: Sequence[DetectorOutput], batch: Mapping[str, Any]
    ) -> dict[str, Term]:
        """Compute the one term, `cwd`."""
        tau = self.options.cwd_temperature
        losses = []
        for x, target in pairs:
            mine = (standardise(x) / tau).flatten(2).log_softmax(2)
            theirs = (standardise(target) / tau).flatten(2).log_softmax(2)
            losses.append(tau**2 * (theirs.exp() * (theirs - mine)).sum(2).mean())
        return {"cwd": Term(torch.stack(losses).mean(), self.options.cwd_weight)}
