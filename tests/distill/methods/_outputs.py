"""Random outputs of detectors, small enough for plain loops."""

from __future__ import annotations

import torch

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
