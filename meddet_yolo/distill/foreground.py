"""Where the objects are: spatial weights for a distillation loss from the ground-truth boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def box_mask(boxes: Tensor, image_index: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Mark the cells of a map that any box of its image touches.

    Counts the boxes over each cell from their four corners alone (a two-dimensional difference array, summed up along
    both axes), so the cost does not grow with the boxes' areas. A box covers one cell at least.

    Args:
        boxes: Boxes of shape (N, 4): centre x, centre y, width, height, each as a share of the image.
        image_index: Index of every box's image in the batch, shape (N,) or (N, 1).
        shape: Batch size, height and width of the map.

    Returns:
        Boolean mask of shape (B, H, W).

    Examples:
        >>> box_mask(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.zeros(1), (1, 4, 4)).int()
        tensor([[[0, 0, 0, 0],
                 [0, 1, 1, 0],
                 [0, 1, 1, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    batch, height, width = shape
    boxes = boxes.reshape(-1, 4).float()
    image = image_index.reshape(-1).to(boxes.device, torch.long)
    size = boxes.new_tensor([width, height])
    low = ((boxes[:, :2] - boxes[:, 2:] / 2) * size).floor().long()
    high = ((boxes[:, :2] + boxes[:, 2:] / 2) * size).ceil().long()
    limit = torch.tensor([width, height], device=boxes.device)
    low = torch.minimum(low.clamp_min(0), limit - 1)
    high = torch.minimum(torch.maximum(high, low + 1), limit)
    (x0, y0), (x1, y1) = low.unbind(1), high.unbind(1)
    corners = torch.zeros(batch, height + 1, width + 1, device=boxes.device)
    one = torch.ones_like(image, dtype=corners.dtype)
    corners.index_put_(
        (image.repeat(4), torch.cat([y0, y1, y0, y1]), torch.cat([x0, x1, x1, x0])),
        torch.cat([one, one, -one, -one]),
        accumulate=True,
    )
    return corners.cumsum(1).cumsum(2)[:, :height, :width] > 0.5


def foreground_weights(mask: Tensor, foreground: float) -> Tensor:
    """Share a total weight of 1 between the marked cells and the rest.

    Args:
        mask: Boolean mask of shape (B, H, W).
        foreground: Share of the marked cells, in [0, 1]; the rest of the batch's cells get `1 - foreground`. When every
            cell of the batch is marked, or none is, all weigh the same.

    Returns:
        Weights of shape (B, H, W) that sum to 1.

    Examples:
        >>> foreground_weights(torch.tensor([[[True, False, False, False, False]]]), 0.6)
        tensor([[[0.6000, 0.1000, 0.1000, 0.1000, 0.1000]]])
    """
    inside = mask.sum()
    outside = mask.numel() - inside
    weights = torch.where(mask, foreground / inside.clamp_min(1), (1 - foreground) / outside.clamp_min(1))
    both = (inside > 0) & (outside > 0)
    return torch.where(both, weights, torch.full_like(weights, 1 / mask.numel()))
