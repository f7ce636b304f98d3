"""Random outputs of detectors, small enough for plain loops."""

from __future__ import annotations

import math

import torch

from meddet_yolo.distill.maps import MapMethod
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec

STRIDES = [8.0, 16.0]


def spec(name: str, channels: list[int], scale: float = 1.0, nc: int = 2, reg_max: int = 4) -> DetectorSpec:
    """A detector whose strides are STRIDES times a scale."""
    strides = [stride * scale for stride in STRIDES[: len(channels)]]
    return DetectorSpec(name, channels, strides, nc=nc, reg_max=reg_max)


def output(
    channels: list[int], seed: int, size: int = 4, nc: int = 2, reg_max: int = 4, batch: int = 2
) -> DetectorOutput:
    """Its output: the finest map of a size, each further one half of it."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, c, size >> i, size >> i, generator=generator) for i, c in enumerate(channels)]
    anchors = sum(m.shape[2] * m.shape[3] for m in maps)
    boxes = torch.randn(batch, 4 * reg_max, anchors, generator=generator)
    return DetectorOutput(
        maps,
        torch.randn(batch, nc, anchors, generator=generator),
        boxes if reg_max > 1 else boxes.abs() + 0.1,
    )


def no_head(maps: list[torch.Tensor]) -> torch.Tensor:
    """Stand for the student's head where a method does not use it."""
    raise AssertionError("the method has no use for the student's head")


def projected(method: MapMethod, pair: int, x: torch.Tensor) -> torch.Tensor:
    """A student's map through the 1x1 convolution of a pair, in float64."""
    weight = method.projections[pair].get_parameter("weight")[:, :, 0, 0].detach().double()
    return torch.einsum("dc,bchw->bdhw", weight, x.double())


def channel(x: torch.Tensor, c: int) -> list[list[float]]:
    """One channel of a map, standardised over the batch: values of each image, row by row."""
    values = x[:, c].flatten(1).tolist()
    pooled = [v for row in values for v in row]
    mean = sum(pooled) / len(pooled)
    scale = (sum((v - mean) ** 2 for v in pooled) / len(pooled) + 1e-6) ** 0.5
    return [[(v - mean) / scale for v in row] for row in values]


def sides_of(boxes: torch.Tensor, b: int, a: int, bins: int) -> tuple[list[float], list[list[float]]]:
    """Distances and distributions at an anchor."""
    means, shares = [], []
    for side in range(4):
        given_logits = [boxes[b, side * bins + k, a].item() for k in range(bins)]
        total = sum(math.exp(z) for z in given_logits)
        shares.append([math.exp(z) / total for z in given_logits])
        means.append(sum(k * p for k, p in enumerate(shares[-1])) if bins > 1 else given_logits[0])
    return means, shares
