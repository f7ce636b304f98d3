"""Bridging cross-task distillation (BCKD): scores as independent yes or no, boxes by IoU, both where student errs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meddet_yolo.distill.method import DetectorOutput, Term
from meddet_yolo.distill.options import Options, number
from meddet_yolo.distill.predictions import Guidance, PredictionMethod, corners, distances, score_errors

__all__ = ["BCKD", "BCKDOptions"]


@dataclass(frozen=True, kw_only=True)
class BCKDOptions(Options):
    """Options of `distill=bckd`.

    Attributes:
        bckd_cls_weight: Weight of the classification term, at least 0.
        bckd_box_weight: Weight of the localisation term, at least 0.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    bckd_cls_weight: float = 1.0
    bckd_box_weight: float = 4.0

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        self.put("bckd_cls_weight", number("bckd_cls_weight", self.bckd_cls_weight, low=0))
        self.put("bckd_box_weight", number("bckd_box_weight", self.bckd_box_weight, low=0))


class BCKD(PredictionMethod):
    """Binary cross-entropy to scores and GIoU to boxes, weighted by how far the scores are apart (arXiv 2308.14286).

    The method of Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection"
    (ICCV 2023). At anchor a, with the student's probabilities s and the teachers' t:

        L_cls = sum_a sum_c |t - s| BCE(s, t) / n
        L_box = sum_a max_c |t - s| (1 - GIoU(student's box, teachers' box)) / n

    The weights of the boxes carry no gradient. The paper's n is the number of positive anchors; a method does not see
    the assignment here, and takes the sum of the teachers' top scores (our own decision). Boxes are compared as seen
    from their common anchor. No module is needed.

    Examples:
        >>> import torch
        >>> from meddet_yolo.distill.method import DetectorSpec
        >>> student = DetectorSpec("student", [8], [8], nc=2, reg_max=16)
        >>> method = BCKD(student, [DetectorSpec("a.pt", [16], [8], nc=2, reg_max=16)], BCKDOptions())
        >>> small = DetectorOutput([torch.randn(2, 8, 4, 4)], torch.randn(2, 2, 16), torch.randn(2, 64, 16))
        >>> large = DetectorOutput([torch.randn(2, 16, 4, 4)], torch.randn(2, 2, 16), torch.randn(2, 64, 16))
        >>> sorted(method(small, [large], {}, head_loss=lambda maps: maps[0].mean()))
        ['bckd_box', 'bckd_cls']
    """

    Options = BCKDOptions
    name = "bckd"

    def terms(self, student: DetectorOutput, guidance: Guidance, batch: Mapping[str, Any]) -> dict[str, Term]:
        """Compute the terms `bckd_cls` and `bckd_box`."""
        assert student.logits is not None and student.boxes is not None
        errors, apart = score_errors(student.logits, guidance)
        mine, theirs = (
            corners(sides.transpose(1, 2).flatten(0, 1))
            for sides in (distances(student.boxes, self._reg_max), guidance.distances)
        )
        from torchvision.ops import generalized_box_iou_loss  # half of the time of an import

        boxes = generalized_box_iou_loss(mine, theirs) * apart.detach().amax(1).flatten()
        return {
            "bckd_cls": Term(errors.sum() / guidance.total, self.options.bckd_cls_weight),
            "bckd_box": Term(boxes.sum() / guidance.total, self.options.bckd_box_weight),
        }
