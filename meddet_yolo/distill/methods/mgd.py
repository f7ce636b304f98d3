"""Masked generative distillation (MGD): make the teachers' maps of what is left of the student's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meddet_yolo.distill.maps import MapMethod
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, Term
from meddet_yolo.distill.options import Options, number
from meddet_yolo.distill.standardise import full_precision, standardise

__all__ = ["MGD", "MGDOptions"]


@dataclass(frozen=True, kw_only=True)
class MGDOptions(Options):
    """Options of `distill=mgd`.

    Attributes:
        mgd_weight: Weight of the generation error, at least 0. The error is about 1 for maps that say nothing of the
            teachers' and 0 where theirs can be made of them.
        mgd_masked: Share of the positions that are masked, in [0, 1], the paper's lambda; 0.65 is its choice for
            detectors of one stage.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    mgd_weight: float = 1.0
    mgd_masked: float = 0.65

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        self.put("mgd_weight", number("mgd_weight", self.mgd_weight, low=0))
        self.put("mgd_masked", number("mgd_masked", self.mgd_masked, low=0, high=1))


class MGD(MapMethod):
    """Squared error between teacher maps and those generated of masked student maps (Yang et al., ECCV 2022).

    With R uniform in [0, 1) for each image and position (arXiv 2205.01529), at one level:

        M(x) = 0 where R(x) < lambda, else 1
        G(F) = W2(ReLU(W1(F))),    W1, W2 convolutions of 3x3
        L = mean (T - G(M * P(S)))^2

    P is a 1x1 convolution and the mask is the same for all channels. The paper sums and multiplies by 2e-5; here the
    teachers' maps are standardised and the mean is taken, so that neither their scale nor the size of the image moves
    the weight (our own decision). The loss is the mean over levels and teachers.

    Examples:
        >>> student = DetectorSpec("student", [8], [8], nc=2, reg_max=16)
        >>> method = MGD(student, [DetectorSpec("a.pt", [16], [8], nc=2, reg_max=16)], MGDOptions())
        >>> small, large = DetectorOutput([torch.randn(2, 8, 4, 4)]), DetectorOutput([torch.randn(2, 16, 4, 4)])
        >>> sorted(method(small, [large], {}, head_loss=lambda maps: maps[0].mean()))
        ['mgd']
    """

    Options = MGDOptions

    def __init__(self, student: DetectorSpec, teachers: Sequence[DetectorSpec], options: MGDOptions) -> None:
        """Match the levels; build a projection and a generator for each."""
        super().__init__(student, teachers, options)
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for channels in self.pairs
        )

    def terms(
        self, pairs: Sequence[tuple[Tensor, Tensor]], teachers: Sequence[DetectorOutput], batch: Mapping[str, Any]
    ) -> dict[str, Term]:
        """Compute the one term, `mgd`."""
        losses = []
        for generate, (x, target) in zip(self.generators, pairs, strict=True):
            mask = torch.rand(x.shape[0], 1, *x.shape[2:], device=x.device) >= self.options.mgd_masked
            losses.append((full_precision(generate(x * mask)) - standardise(target)).square().mean())
        return {"mgd": Term(torch.stack(losses).mean(), self.options.mgd_weight)}
