"""ATSS: which anchors of a feature pyramid are responsible for which box.

Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection"
(CVPR 2020), as GFL uses it: one square anchor of eight strides a position, nine candidates a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["assign_atss", "paired_iou"]

TOPK = 9
ANCHOR_SIZE = 8.0  # side of an anchor in strides
_INSIDE = 0.01  # a position on the very edge of a box is outside


def paired_iou(a: Tensor, b: Tensor, generalized: bool = False) -> Tensor:
    """Intersection over union of boxes, pair by pair.

    Args:
        a: Boxes x1, y1, x2, y2 of shape (..., 4).
        b: Boxes of a shape that broadcasts with that of `a`.
        generalized: Return the generalized IoU (Rezatofighi et al., CVPR 2019), in [-1, 1].

    Returns:
        Tensor of shape (...), the IoU in [0, 1]; 0 for a pair of empty boxes.

    Examples:
        >>> a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 3.0, 2.0])
        >>> paired_iou(a, b), paired_iou(a, b + 4, generalized=True)
        (tensor(0.3333), tensor(-0.8095))
    """
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    iou = overlap / union.clamp(min=1e-7)
    if not generalized:
        return iou
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return iou - (hull - union) / hull.clamp(min=1e-7)


@torch.no_grad()
def assign_atss(
    boxes: Tensor, valid: Tensor, points: Tensor, strides: Tensor, level_sizes: Sequence[int], topk: int = TOPK
) -> tuple[Tensor, Tensor]:
    """Assign boxes to the positions of a feature pyramid.

    For every box, the `topk` positions nearest to its centre are candidates on each level. A candidate is positive if
    it lies inside the box and the IoU of its anchor with the box reaches the mean plus the standard deviation of all
    candidates' IoUs. A position that is positive for several boxes goes to the one of the highest IoU.

    Args:
        boxes: Ground-truth boxes x1, y1, x2, y2 in pixels, padded, of shape (B, M, 4).
        valid: Which of them are real, of shape (B, M), bool.
        points: Centres of all positions in pixels, of shape (A, 2), level after level.
        strides: Stride of each position in pixels, of shape (A,).
        level_sizes: Number of positions of each level; their sum is A.
        topk: Candidates of a box on each level.

    Returns:
        Whether a position is positive, of shape (B, A), bool, and the index of its box in [0, M), 0 where it is not.

    Examples:
        >>> points = torch.tensor([[32.0, 32.0], [96.0, 96.0], [160.0, 160.0], [224.0, 224.0]])
        >>> box = torch.tensor([[[4.0, 4.0, 60.0, 62.0]]])
        >>> foreground, owner = assign_atss(box, torch.ones(1, 1, dtype=torch.bool), points, torch.full((4,), 8.0), [4])
        >>> foreground
        tensor([[ True, False, False, False]])
    """
    batch, most = valid.shape
    total = len(points)
    if most == 0:
        none = torch.zeros(batch, total, dtype=torch.long, device=points.device)
        return none.bool(), none
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    candidates, start = [], 0
    for size in level_sizes:
        distance = torch.cdist(centres, points[start : start + size].expand(batch, -1, -1))
        candidates.append(distance.topk(min(topk, size), largest=False).indices + start)
        start += size
    index = torch.cat(candidates, -1)  # (B, M, K)
    at, half = points[index], strides[index][..., None] * ANCHOR_SIZE / 2
    iou = paired_iou(torch.cat([at - half, at + half], -1), boxes[:, :, None])
    spread = iou.std(-1) if index.shape[-1] > 1 else torch.zeros_like(iou[..., 0])
    margin = torch.cat([at - boxes[:, :, None, :2], boxes[:, :, None, 2:] - at], -1).amin(-1)
    positive = (iou >= (iou.mean(-1) + spread)[..., None]) & (margin > _INSIDE) & valid[..., None]
    overlaps = iou.new_full((batch, most, total), -1.0)
    overlaps.scatter_(2, index, torch.where(positive, iou, -1.0))
    best, owner = overlaps.max(1)
    foreground = best >= 0
    return foreground, owner * foreground
