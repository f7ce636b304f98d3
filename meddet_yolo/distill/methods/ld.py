"""Localisation distillation (LD): learn how sure the teachers are of each side of a box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F

from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, Term
from meddet_yolo.distill.options import Options, number
from meddet_yolo.distill.predictions import Guidance, PredictionMethod
from meddet_yolo.distill.regions import main_and_valuable

__all__ = ["LD", "LDOptions"]


@dataclass(frozen=True, kw_only=True)
class LDOptions(Options):
    """Options of `distill=ld`.

    Attributes:
        ld_weight: Weight of the divergence in the main region, at least 0.
        ld_valuable_weight: Weight of the same in the valuable region, at least 0.
        ld_temperature: Temperature of the distributions, above 0.
        ld_gamma: How far the valuable region reaches, in [0, 1]: the share of the main region's threshold that an
            anchor's DIoU with an object must reach.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    ld_weight: float = 0.25
    ld_valuable_weight: float = 0.25
    ld_temperature: float = 10.0
    ld_gamma: float = 0.25

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        for key in ("ld_weight", "ld_valuable_weight"):
            self.put(key, number(key, getattr(self, key), low=0))
        self.put("ld_temperature", number("ld_temperature", self.ld_temperature, low=0, open_low=True))
        self.put("ld_gamma", number("ld_gamma", self.ld_gamma, low=0, high=1))


class LD(PredictionMethod):
    """Divergence of the box distributions at a temperature (Zheng et al., CVPR 2022, arXiv 2102.12252).

    With the logits z of the distribution of one side, of the student and of the teachers:

        L = mean over anchors of a region and 4 sides of T^2 KL(softmax(z_t / T) || softmax(z_s / T))

    once over the main region and once over the valuable localisation region, see
    `meddet_yolo.distill.regions.main_and_valuable`. The paper's terms of the classes are left to other methods
    (our own decision): `distill=[ld,response]`. Several teachers' distributions are averaged after the softmax.

    Examples:
        >>> import torch
        >>> student = DetectorSpec("student", [8], [8], nc=2, reg_max=16)
        >>> method = LD(student, [DetectorSpec("a.pt", [16], [8], nc=2, reg_max=16)], LDOptions())
        >>> small = DetectorOutput([torch.randn(2, 8, 4, 4)], torch.randn(2, 2, 16), torch.randn(2, 64, 16))
        >>> large = DetectorOutput([torch.randn(2, 16, 4, 4)], torch.randn(2, 2, 16), torch.randn(2, 64, 16))
        >>> labels = {"bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]), "batch_idx": torch.zeros(1)}
        >>> sorted(method(small, [large], labels, head_loss=lambda maps: maps[0].mean()))
        ['ld', 'ld_valuable']
    """

    Options = LDOptions
    reads_labels = True
    name = "ld"

    def __init__(self, student: DetectorSpec, teachers: Sequence[DetectorSpec], options: LDOptions) -> None:
        """Match the levels; refuse detectors without distributions."""
        super().__init__(student, teachers, options)
        for detector in (student, *teachers):
            if detector.reg_max == 1:
                raise ValueError(
                    f"distill=ld compares distributions of box sides, and {detector.name} has none (reg_max=1, as "
                    "YOLO26 has); use response or bckd, which compare boxes"
                )
        self.temperature = options.ld_temperature

    def terms(self, student: DetectorOutput, guidance: Guidance, batch: Mapping[str, Any]) -> dict[str, Term]:
        """Compute the terms `ld` and `ld_valuable`."""
        assert student.boxes is not None
        o = self.options
        target = guidance.bins
        assert target is not None
        shapes = [(x.shape[2], x.shape[3]) for x in student.feats]
        regions = main_and_valuable(shapes, batch, len(student.boxes), o.ld_gamma)
        terms = {}
        for name, weight, region in zip(
            ("ld", "ld_valuable"), (o.ld_weight, o.ld_valuable_weight), regions, strict=True
        ):
            images, anchors = region.nonzero(as_tuple=True)
            logits = student.boxes.float()[images, :, anchors].unflatten(1, (4, self._reg_max))
            errors = F.kl_div(
                (logits / o.ld_temperature).log_softmax(2), target[images, :, :, anchors], reduction="none"
            ).sum()
            terms[name] = Term(o.ld_temperature**2 * errors / (4 * max(len(images), 1)), weight)
        return terms
