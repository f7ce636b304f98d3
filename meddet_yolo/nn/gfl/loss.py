"""Losses of GFL: quality focal loss, distribution focal loss and generalized IoU, on positions that ATSS assigns.

Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection"
(NeurIPS 2020). `GFLCriterion` speaks the language of Ultralytics' criteria: training output and batch in, a loss vector
multiplied by the batch size and named items out. GFL's own weights apply; Ultralytics' gains `box`, `cls` and `dfl`
belong to its stock loss and are not used.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.utils.tal import make_anchors

from meddet_yolo.nn.gfl.assign import assign_atss, paired_iou

__all__ = ["GFLCriterion", "distribution_focal_loss", "quality_focal_loss"]

QFL_BETA = 2.0
QFL_WEIGHT, DFL_WEIGHT, GIOU_WEIGHT = 1.0, 0.25, 2.0


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = QFL_BETA) -> Tensor:
    """Binary cross-entropy with a soft target, weighted by the distance to it to the power of `beta`.

    Args:
        logits: Class logits of any shape.
        quality: Targets in [0, 1] of the same shape: the box's IoU for the class of a positive, otherwise 0.
        beta: Focusing exponent; 0 gives plain cross-entropy.

    Returns:
        Losses of the shape of `logits`, each at least the entropy of its target where the distance is not 0.

    Examples:
        >>> quality_focal_loss(torch.tensor([0.0, 3.0]), torch.tensor([0.5, 0.0]))
        tensor([0.0000, 2.7663])
    """
    distance = (quality - logits.sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * distance.pow(beta)


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the two bins next to a target, each weighted by its nearness.

    Args:
        logits: Logits over the bins 0, 1, ..., n - 1, of shape (N, n).
        target: Targets in [0, n - 1), of shape (N,).

    Returns:
        Losses of shape (N,).

    Examples:
        >>> distribution_focal_loss(torch.zeros(1, 4), torch.tensor([1.25]))
        tensor([1.3863])
    """
    left = target.long()
    share = target - left
    log_p = logits.log_softmax(-1)
    near, far = (log_p.gather(-1, bins[:, None])[:, 0] for bins in (left, left + 1))
    return -(near * (1 - share) + far * share)


class GFLCriterion:
    """GFL's training loss for a model whose head is `GFLDetect`.

    Every term is a mean over positives: QFL by their number, GIoU and DFL weighted by the predicted score and divided
    by the sum of these weights. (Some implementations never divide by less than 1. With small batches that holds boxes
    back until scores have grown, so it is not done here: our own decision.) With several processes, both divisors are
    averaged over them, so that the gradient is that of one process with the whole batch.

    Args:
        model: An Ultralytics detection model with that head; its `class_weights` (argument `cls_pw`) scale QFL.

    Examples:
        >>> from ultralytics.nn.tasks import DetectionModel
        >>> model = DetectionModel("gfl-shufflenetv2.yaml", nc=1, verbose=False)
        >>> batch = {"img": torch.zeros(1, 3, 64, 64), "batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1)}
        >>> loss, items = model.loss({**batch, "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])})
        >>> list(items)
        ['box_loss', 'cls_loss', 'dfl_loss']
    """

    def __init__(self, model: nn.Module) -> None:
        head: Any = model.model[-1]  # type: ignore[index]  # a Sequential
        self.nc: int = head.nc
        self.bins: int = head.reg_max
        self.stride: Tensor = head.stride
        weights = getattr(model, "class_weights", None)
        self.class_weights: Tensor | None = weights if isinstance(weights, Tensor) else None

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss vector (box, cls, dfl) times the batch size, and its detached items.

        Args:
            preds: Training output of the head, alone or behind the decoded predictions (as validation has it).
            batch: `batch_idx` (N,), `cls` (N, 1) and `bboxes` (N, 4), x, y, width, height relative to the image.
        """
        preds = preds[1] if isinstance(preds, tuple) else preds
        scores = preds["scores"]
        with torch.autocast(scores.device.type, enabled=False):
            loss = self._loss(scores.float().transpose(1, 2), preds["boxes"].float(), preds["feats"], batch)
        items = dict(zip(("box_loss", "cls_loss", "dfl_loss"), loss.detach(), strict=True))
        return loss * len(scores), items

    def _loss(self, scores: Tensor, boxes: Tensor, feats: list[Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Return the three weighted terms for scores (B, A, nc) and box logits (B, 4 * bins, A)."""
        count, device = len(scores), scores.device
        cells, strides = make_anchors(feats, self.stride.to(device), 0.5)
        cells, strides = cells.float(), strides.float()
        sizes = [feat.shape[-2] * feat.shape[-1] for feat in feats]
        height, width = (side * float(self.stride[0]) for side in feats[0].shape[-2:])
        targets, labels, valid = _pad(batch, count, scores.new_tensor([width, height, width, height]))
        positive, owner = assign_atss(targets, valid, cells * strides, strides[:, 0], sizes)

        image, cell = positive.nonzero(as_tuple=True)
        owner = owner[image, cell]
        centre, stride = cells[cell], strides[cell]
        target = targets[image, owner] / stride
        logits = boxes.view(count, 4, self.bins, -1)[image, :, :, cell]  # (P, 4, bins)
        sides = logits.softmax(-1) @ torch.arange(self.bins, device=device, dtype=logits.dtype)
        predicted = torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], -1)
        wanted = torch.cat([centre - target[:, :2], target[:, 2:] - centre], -1).clamp(0, self.bins - 1 - 0.1)

        quality = torch.zeros_like(scores)
        quality[image, cell, labels[image, owner]] = paired_iou(predicted.detach(), target)
        qfl = quality_focal_loss(scores, quality)
        if self.class_weights is not None:
            qfl = qfl * self.class_weights.to(device).view(1, 1, -1)
        weight = scores.detach()[image, cell].sigmoid().amax(-1)
        giou = weight * (1 - paired_iou(predicted, target, generalized=True))
        dfl = distribution_focal_loss(logits.flatten(0, 1), wanted.flatten()).view(-1, 4).mean(-1) * weight
        divisors = torch.stack([weight.new_tensor(float(len(weight))), weight.sum()])
        # Validation runs as many batches as each process happens to have: only training may wait for the others.
        if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(divisors)
            divisors = divisors / dist.get_world_size()
        positives, weights = divisors[0].clamp(min=1.0), divisors[1].clamp(min=1e-6)
        return torch.stack(
            [
                GIOU_WEIGHT * giou.sum() / weights,
                QFL_WEIGHT * qfl.sum() / positives,
                DFL_WEIGHT * dfl.sum() / weights,
            ]
        )


def _pad(batch: dict[str, Tensor], count: int, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort a batch's boxes by image: corners in pixels (B, M, 4), classes (B, M), and which are real (B, M)."""
    device = size.device
    image = batch["batch_idx"].to(device).view(-1).long()
    order = image.argsort(stable=True)
    image = image[order]
    counts = torch.bincount(image, minlength=count)
    most = int(counts.max()) if len(image) else 0
    slot = torch.arange(len(image), device=device) - (counts.cumsum(0) - counts)[image]
    xy, wh = batch["bboxes"].to(device, torch.float32)[order].split(2, -1)
    boxes = size.new_zeros(count, most, 4)
    boxes[image, slot] = torch.cat([xy - wh / 2, xy + wh / 2], -1) * size
    labels = torch.zeros(count, most, dtype=torch.long, device=device)
    labels[image, slot] = batch["cls"].to(device).view(-1).long()[order]
    valid = torch.arange(most, device=device) < counts[:, None]
    return boxes, labels, valid
