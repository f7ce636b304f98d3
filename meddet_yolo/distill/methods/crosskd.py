"""Cross-head distillation (CrossKD): the student's head maps judged by the teacher's own head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddet_yolo.distill.levels import match_teacher
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, DistillMethod, HeadLoss, Term
from meddet_yolo.distill.options import Options, number
from meddet_yolo.distill.predictions import Guidance, corners, resample, score_errors

__all__ = ["CrossKD", "CrossKDOptions"]


@dataclass(frozen=True, kw_only=True)
class CrossKDOptions(Options):
    """Options of `distill=crosskd`.

    Attributes:
        crosskd_cls_weight: Weight of the classification term, at least 0.
        crosskd_box_weight: Weight of the localisation term, at least 0.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    crosskd_cls_weight: float = 1.0
    crosskd_box_weight: float = 4.0

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        for key in self.keys():
            self.put(key, number(key, getattr(self, key), low=0))


class CrossKD(DistillMethod):
    """Maps of the student's head go through the rest of the frozen teacher's head (Wang et al., arXiv 2306.11369).

    The method of "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (CVPR 2024). What the first block of
    each branch of the student's head gives goes on through all blocks but the first of the same branch of the
    teacher's. So the labels' and the teacher's demands meet in the student's maps, not in one prediction. At anchor a,
    with the teacher's probabilities t, those of the crossed pass s, and w = max_c t:

        L_cls = sum_a sum_c |t - s| BCE(s, t) / n,    n = sum_a w_a
        L_box = sum_a w_a (mean over 4 sides of KL(t || s) of the box distributions) / n

    Without distributions 1 - GIoU of the boxes stands for the divergence, as in the paper. The weights carry no
    gradient. Our own decisions: the paper cuts heads of one width; here a 1x1 convolution without bias, one for each
    level and branch, leads from the student's width to the teacher's where they differ, and learns with the student.
    The cut is behind the first block: a YOLO head has one more before its prediction layer, which leaves as much as the
    paper's own choice, GFL's towers have three more. The paper divides the classes' term by the number of positive
    anchors, for which n stands here. Of several teachers the mean of the losses is taken. A teacher's predictions are
    resampled to the student's grid where it reads another image size, and boxes are compared in its own cells and bins.

    Examples:
        >>> student = DetectorSpec("student", [8], [8], nc=2, reg_max=16, stems=[(8, 16)])
        >>> teacher = DetectorSpec("a.pt", [16], [8], nc=2, reg_max=16, stems=[(16, 16)])
        >>> [type(adapter).__name__ for adapter in CrossKD(student, [teacher], CrossKDOptions()).adapters]
        ['Conv2d', 'Identity']
    """

    Options = CrossKDOptions
    needs_predictions = True
    reads_stems = True

    def __init__(self, student: DetectorSpec, teachers: Sequence[DetectorSpec], options: CrossKDOptions) -> None:
        """Match the levels and build the adapters; refuse heads that cannot be cut."""
        super().__init__(student, teachers, options)
        self.options = options
        for detector in (student, *teachers):
            if not detector.stems:
                raise ValueError(
                    "distill=crosskd leads maps of the student's head through its teachers' heads, and the head of "
                    f"{detector.name} is not made of branches of blocks; use response or bckd, which read predictions"
                )
        self._teachers = teachers
        self._levels = [match_teacher(student, teacher) for teacher in teachers]
        self.adapters = nn.ModuleList()
        for teacher, levels in zip(teachers, self._levels, strict=True):
            for mine, level in zip(student.stems, levels, strict=True):
                self.adapters.extend(_adapter(*widths) for widths in zip(mine, teacher.stems[level], strict=True))

    def forward(
        self,
        student: DetectorOutput,
        teachers: Sequence[DetectorOutput],
        batch: Mapping[str, Any],
        *,
        head_loss: HeadLoss,
    ) -> dict[str, Term]:
        """Compute the terms `crosskd_cls` and `crosskd_box`."""
        losses = [self._losses(student, output, index) for index, output in enumerate(teachers)]
        classes, boxes = (torch.stack(parts).mean() for parts in zip(*losses, strict=True))
        return {
            "crosskd_cls": Term(classes, self.options.crosskd_cls_weight),
            "crosskd_box": Term(boxes, self.options.crosskd_box_weight),
        }

    def _losses(self, student: DetectorOutput, output: DetectorOutput, index: int) -> tuple[Tensor, Tensor]:
        """Return the losses of classes and boxes to one teacher."""
        bins = self._teachers[index].reg_max
        crossed = self._cross(student, output, index)
        with torch.autocast(crossed[0].device.type, enabled=False):
            logits, boxes = (part.float() for part in crossed)
            told = self._told(student, output, index)
            classes = score_errors(logits, told)[0].sum()
            if told.bins is not None:
                logs = boxes.unflatten(1, (4, bins)).log_softmax(2)
                apart = F.kl_div(logs, told.bins, reduction="none").sum(2).mean(1)
            else:
                from torchvision.ops import generalized_box_iou_loss  # half of the time of an import

                mine, theirs = (corners(s.transpose(1, 2).flatten(0, 1)) for s in (boxes, told.distances))
                apart = generalized_box_iou_loss(mine, theirs).view_as(told.confidence)
            return classes / told.total, (apart * told.confidence).sum() / told.total

    def _cross(self, student: DetectorOutput, output: DetectorOutput, index: int) -> tuple[Tensor, Tensor]:
        """Return logits and boxes of the teacher's head from the student's maps, at the student's anchors."""
        assert student.stems is not None and output.finish is not None
        levels, widths = self._levels[index], self._teachers[index].stems
        first = 2 * len(levels) * index
        blank = student.stems[0][0]  # of a level that no student's level matches, a single cell
        parts: dict[int, tuple[Tensor, Tensor]] = {}
        while len(parts) < len(levels):  # more than one round where two of the student's levels match one
            chosen = {level: i for i, level in enumerate(levels) if i not in parts}
            stems = [(blank.new_zeros(len(blank), c, 1, 1), blank.new_zeros(len(blank), b, 1, 1)) for c, b in widths]
            for level, i in chosen.items():
                adapt = self.adapters[first + 2 * i], self.adapters[first + 2 * i + 1]
                stems[level] = (adapt[0](student.stems[i][0]), adapt[1](student.stems[i][1]))
            crossed = output.finish(stems)
            assert crossed.logits is not None and crossed.boxes is not None
            scores, sides = crossed.by_level(crossed.logits), crossed.by_level(crossed.boxes)
            parts |= {i: (scores[level].flatten(2), sides[level].flatten(2)) for level, i in chosen.items()}
        ordered = [parts[i] for i in range(len(levels))]
        return torch.cat([logits for logits, _ in ordered], 2), torch.cat([boxes for _, boxes in ordered], 2)

    @torch.no_grad()
    def _told(self, student: DetectorOutput, output: DetectorOutput, index: int) -> Guidance:
        """Return what the teacher says at the student's anchors; boxes in cells and bins of the teacher's own level."""
        assert output.logits is not None and output.boxes is not None  # needs_predictions
        bins = self._teachers[index].reg_max
        scores, boxes = output.by_level(output.logits.float().sigmoid()), output.boxes.float()
        if bins > 1:
            boxes = boxes.unflatten(1, (4, bins)).softmax(2).flatten(1, 2)
        sides = output.by_level(boxes)
        at_student = [
            torch.cat(
                [
                    resample(part[level], (x.shape[2], x.shape[3])).flatten(2)
                    for x, level in zip(student.feats, self._levels[index], strict=True)
                ],
                dim=2,
            )
            for part in (scores, sides)
        ]
        known = torch.ones(at_student[0].shape[1], dtype=torch.bool, device=boxes.device)
        if bins == 1:
            return Guidance(at_student[0], known, at_student[1], None)
        shares = at_student[1].unflatten(1, (4, bins))
        places = torch.arange(bins, device=boxes.device, dtype=boxes.dtype)
        return Guidance(at_student[0], known, torch.einsum("bsna,n->bsa", shares, places), shares)


def _adapter(given: int, wanted: int) -> nn.Module:
    return nn.Identity() if given == wanted else nn.Conv2d(given, wanted, 1, bias=False)
