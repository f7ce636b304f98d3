"""Response distillation: learn the teachers' scores and boxes at the student's own anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from meddet_yolo.distill.method import DetectorOutput, Term
from meddet_yolo.distill.options import Options, number
from meddet_yolo.distill.predictions import Guidance, PredictionMethod, corners, distances, score_errors

__all__ = ["Response", "ResponseOptions"]

BOX, DFL = 7.5, 1.5  # gains of Ultralytics' detection loss


@dataclass(frozen=True, kw_only=True)
class ResponseOptions(Options):
    """Options of `distill=response`.

    Attributes:
        response_weight: Weight of the response term, at least 0, beside a detection loss of Ultralytics' own gains.
        response_threshold: Teachers' top class score above which their box teaches, in [0, 1].
        response_top: Share of the positions of a batch, those of the highest scores, whose scores and boxes teach, in
            (0, 1]; the others teach that nothing is there. 1 takes all as they are, 0.01 is usual for images without
            labels.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    response_weight: float = 1.0
    response_threshold: float = 0.05
    response_top: float = 1.0

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        self.put("response_weight", number("response_weight", self.response_weight, low=0))
        self.put("response_threshold", number("response_threshold", self.response_threshold, low=0, high=1))
        self.put("response_top", number("response_top", self.response_top, low=0, high=1, open_low=True))


class Response(PredictionMethod):
    """Quality focal loss to the teachers' scores, CIoU and divergence of distributions to their boxes.

    At anchor a, with the student's logits s, the teachers' mean probabilities t and their maximum over classes w:

        L_cls = sum_a sum_c BCE(s, t) |sigmoid(s) - t| / n,    n = sum_a w_a
        L_box = sum_{a: w > threshold} w (7.5 (1 - CIoU) + 1.5 mean over 4 sides of KL(t || s)) / n

    and the loss is L_cls + L_box. L_cls is the quality focal loss with exponent 1 (Li et al., GFL, NeurIPS 2020)
    with soft labels, the divergence that of localization distillation at temperature 1 (Zheng et al., LD, CVPR
    2022), the gains those of Ultralytics; weighting by the teachers' score is our own decision. Where the student has
    no distributions, the mean error of the distances over their mean stands for the divergence (our own decision).
    With `response_top` below 1, t is 0 at all but that share of the batch's positions with the highest w, as in Dense
    Teacher (Zhou et al., ECCV 2022, arXiv 2207.02541), whose share is 0.01.
    Teachers without distributions, or with others, have theirs made of their distances, or rebinned.

    Examples:
        >>> import torch
        >>> from meddet_yolo.distill.method import DetectorSpec
        >>> student = DetectorSpec("student", [8], [8], nc=2, reg_max=16)
        >>> method = Response(student, [DetectorSpec("a.pt", [16], [8], nc=2, reg_max=16)], ResponseOptions())
        >>> small = DetectorOutput([torch.randn(2, 8, 4, 4)], torch.randn(2, 2, 16), torch.randn(2, 64, 16))
        >>> large = DetectorOutput([torch.randn(2, 16, 4, 4)], torch.randn(2, 2, 16), torch.randn(2, 64, 16))
        >>> sorted(method(small, [large], {}, head_loss=lambda maps: maps[0].mean()))
        ['response']
    """

    Options = ResponseOptions
    name = "response"

    def terms(self, student: DetectorOutput, guidance: Guidance, batch: Mapping[str, Any]) -> dict[str, Term]:
        """Compute the one term, `response`."""
        assert student.logits is not None and student.boxes is not None
        guidance = guidance.most_confident(self.options.response_top)
        classes = score_errors(student.logits, guidance)[0].sum()
        loss = (classes + self._boxes(student.boxes, guidance)) / guidance.total
        return {"response": Term(loss, self.options.response_weight)}

    def _boxes(self, boxes: Tensor, guidance: Guidance) -> Tensor:
        """Return the weighted sum of the box errors."""
        weights = guidance.confidence
        chosen = (weights > self.options.response_threshold).nonzero(as_tuple=True)  # image, anchor
        images, anchors = chosen
        given = boxes.float()[images, :, anchors]  # (N, 4 * reg_max)
        sides = distances(given.unsqueeze(2), self._reg_max).squeeze(2)
        target = guidance.distances[images, :, anchors]
        from torchvision.ops import complete_box_iou_loss  # half of the time of an import

        error = BOX * complete_box_iou_loss(corners(sides), corners(target))
        if guidance.bins is not None:
            logs = given.unflatten(1, (4, self._reg_max)).log_softmax(2)
            bins = guidance.bins[images, :, :, anchors]
            error = error + DFL * F.kl_div(logs, bins, reduction="none").sum(2).mean(1)
        else:
            error = error + DFL * (sides - target).abs().mean(1) / target.abs().mean(1).clamp(min=1e-3)
        return (error * weights[chosen]).sum()
