"""Which anchors lie where objects are, and which near enough to be worth imitating: the regions of LD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["main_and_valuable"]

TOPK = 9  # candidates a level, as in ATSS
SIDE = 8  # of an anchor's square box, in cells, as in ATSS


def main_and_valuable(
    shapes: Sequence[tuple[int, int]], batch: Mapping[str, Any], images: int, gamma: float
) -> tuple[Tensor, Tensor]:
    """Part the anchors of a batch by how they lie to the ground truth.

    Each anchor stands for a square of `SIDE` cells around its position. For each object, the `TOPK` nearest anchors of
    every level are candidates and the mean plus the standard deviation of their IoU is a threshold, as in ATSS (Zhang
    et al., CVPR 2020). Main are candidates of at least the threshold whose position lies in the box; valuable are other
    anchors whose DIoU with the object is at least gamma times the threshold, and below it (LD, Zheng et al., CVPR 2022,
    algorithm 1).

    Args:
        shapes: Height and width of each level's map.
        batch: Labels, see `DistillMethod.forward`.
        images: Number of images.
        gamma: See above, in [0, 1].

    Returns:
        Booleans of shape (B, A): main, and valuable.

    Examples:
        >>> labels = {"bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]), "batch_idx": torch.zeros(1)}
        >>> main, valuable = main_and_valuable([(16, 16)], labels, 2, 0.25)
        >>> main.sum(1).tolist(), (main & valuable).any().item()
        ([4, 0], False)
    """
    boxes, image = batch["bboxes"].float(), batch["batch_idx"].reshape(-1).long()
    centres, squares, levels = _anchors(shapes, boxes.device)
    main = torch.zeros(images, len(centres), dtype=torch.bool, device=boxes.device)
    valuable = main.clone()
    if not len(boxes):
        return main, valuable
    truth = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
    from torchvision.ops import box_iou, distance_box_iou  # half of the time of an import

    overlap, distance = box_iou(truth, squares), distance_box_iou(truth, squares)  # (N, A)
    away = torch.cdist(boxes[:, :2], centres)
    candidates = torch.zeros_like(overlap, dtype=torch.bool)
    for start, count in levels:
        nearest = away[:, start : start + count].topk(min(TOPK, count), dim=1, largest=False).indices + start
        candidates.scatter_(1, nearest, True)
    number = candidates.sum(1, keepdim=True)
    mean = (overlap * candidates).sum(1, keepdim=True) / number
    spread = ((overlap - mean).square() * candidates).sum(1, keepdim=True) / (number - 1).clamp(min=1)
    # An object inside all of its candidates' squares has the same IoU with each: rounding must not cost it its region.
    threshold = mean + spread.sqrt() - 1e-5
    inside = ((centres > truth[:, None, :2]) & (centres < truth[:, None, 2:])).all(2)
    of_main = candidates & (overlap >= threshold) & inside
    of_valuable = (distance >= gamma * threshold) & (distance < threshold)
    main.index_put_((image,), of_main, accumulate=True)
    valuable.index_put_((image,), of_valuable, accumulate=True)
    return main, valuable & ~main


def _anchors(shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Return positions (A, 2), squares (A, 4) in fractions of the image, and first anchor and number of each level."""
    centres, squares, levels, start = [], [], [], 0
    for height, width in shapes:
        y, x = torch.meshgrid(
            (torch.arange(height, device=device) + 0.5) / height,
            (torch.arange(width, device=device) + 0.5) / width,
            indexing="ij",
        )
        centre = torch.stack([x, y], dim=2).flatten(0, 1)
        half = centre.new_tensor([SIDE / 2 / width, SIDE / 2 / height])
        centres.append(centre)
        squares.append(torch.cat([centre - half, centre + half], dim=1))
        levels.append((start, height * width))
        start += height * width
    return torch.cat(centres), torch.cat(squares), levels
