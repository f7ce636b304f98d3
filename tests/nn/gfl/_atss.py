"""ATSS as its paper writes it down, slowly: the reference for the assigner and for the criterion."""

import math

import numpy as np
import torch

STRIDES = (8, 16, 32, 64, 128)


def pyramid(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Positions of five levels of an image: centres in pixels, strides, and how many each level has."""
    points, strides, sizes = [], [], []
    for stride in STRIDES:
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        points += [((x + 0.5) * stride, (y + 0.5) * stride) for y in range(rows) for x in range(columns)]
        strides += [float(stride)] * (rows * columns)
        sizes.append(rows * columns)
    return torch.tensor(points), torch.tensor(strides), sizes


def random_boxes(count: int, seed: int, size: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 0.8
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator) * size * 0.5], -1)


def iou_of(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def atss_by_the_book(
    boxes: torch.Tensor, points: torch.Tensor, strides: torch.Tensor, sizes: list[int]
) -> dict[int, int]:
    """The algorithm of the ATSS paper for one image, one box, one position at a time: position -> box."""
    owners: dict[int, tuple[float, int]] = {}
    for g, box in enumerate(boxes.tolist()):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates: list[int] = []
        start = 0
        for size in sizes:
            level = range(start, start + size)
            near = sorted(level, key=lambda p: math.dist(points[p].tolist(), (cx, cy)))
            candidates += near[:9]
            start += size
        overlaps = []
        for p in candidates:
            (x, y), half = points[p].tolist(), 4 * float(strides[p])
            overlaps.append(iou_of([x - half, y - half, x + half, y + half], box))
        threshold = np.mean(overlaps) + np.std(overlaps, ddof=1)
        for p, overlap in zip(candidates, overlaps, strict=True):
            x, y = points[p].tolist()
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= threshold and inside and overlap > owners.get(p, (-1.0, 0))[0]:
                owners[p] = (overlap, g)
    return {p: g for p, (_, g) in owners.items()}
