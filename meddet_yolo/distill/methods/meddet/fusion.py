"""Fusion of the aligned maps of several teachers into one map of the student's width.

Three ways with one interface: LWFF of the MedDet paper, and the two alternatives of its ablation, sum and
concatenation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fusion(nn.Module, ABC):
    """Common interface: a list of maps, one a teacher, to one map of the same shape.

    Args:
        num_teachers: Number of maps to fuse, at least 1.
        channels: Channels of every map, and of the result.
    """

    def __init__(self, num_teachers: int, channels: int) -> None:
        """Check and keep the two numbers."""
        super().__init__()
        if num_teachers < 1 or channels < 1:
            raise ValueError(f"Expected at least 1 teacher and 1 channel, got {num_teachers} and {channels}.")
        self.num_teachers = num_teachers
        self.channels = channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse the aligned maps.

        Args:
            maps: One map of shape (B, channels, H, W) for each teacher, all of one size.

        Returns:
            Fused map of shape (B, channels, H, W).

        Raises:
            ValueError: The number of maps is not the number of teachers.
        """
        if len(maps) != self.num_teachers:
            raise ValueError(f"Expected {self.num_teachers} maps, one for each teacher, got {len(maps)}.")
        return self.fuse(maps)

    @abstractmethod
    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse the maps, the number of which is checked."""

    @abstractmethod
    def weights(self) -> Tensor:
        """Return the share of every teacher in the fusion, shape (num_teachers,), summing to 1, without gradient."""


class ConcatFusion(Fusion):
    """Concatenate along the channels, then bring back to one map's width by a 1x1 convolution.

    Examples:
        >>> fusion = ConcatFusion(num_teachers=2, channels=4)
        >>> fusion([torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)]).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(self, num_teachers: int, channels: int) -> None:
        """Build the convolution. It has no bias: the alignments before it have one."""
        super().__init__(num_teachers, channels)
        self.conv = nn.Conv2d(num_teachers * channels, channels, 1, bias=False)
        nn.init.orthogonal_(self.conv.weight)

    def weight(self) -> Tensor:
        """Return the weight of the convolution, shape (channels, num_teachers * channels, 1, 1)."""
        return self.conv.weight

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Concatenate and convolve."""
        stacked = maps[0] if len(maps) == 1 else torch.cat(list(maps), dim=1)
        return F.conv2d(stacked, self.weight())

    def weights(self) -> Tensor:
        """Return the share of every teacher in the absolute weights of the convolution."""
        size = self.conv.weight.detach().abs().view(self.channels, self.num_teachers, self.channels).mean(dim=(0, 2))
        return size / size.sum().clamp_min(torch.finfo(size.dtype).tiny)


class LearnableWeightedFeatureFusion(ConcatFusion):
    """LWFF: weigh every channel of every teacher, concatenate, and bring back to one map's width by a convolution.

    One learnable weight for each teacher and channel, as drawn in the MedDet paper (arXiv 2409.00204); they start at 1.
    A weighted channel under a convolution is a column of the convolution times that weight, so the weights multiply the
    small kernel rather than the maps: the same numbers at no cost.

    Examples:
        >>> fusion = LearnableWeightedFeatureFusion(num_teachers=2, channels=4)
        >>> fusion([torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)]).shape
        torch.Size([1, 4, 8, 8])
        >>> fusion.weights()
        tensor([0.5000, 0.5000])
    """

    def __init__(self, num_teachers: int, channels: int) -> None:
        """Build the convolution and the weights."""
        super().__init__(num_teachers, channels)
        self.scale = nn.Parameter(torch.ones(num_teachers, channels))

    def weight(self) -> Tensor:
        """Return the weight of the convolution times the teachers' weights."""
        return self.conv.weight * self.scale.view(1, -1, 1, 1)

    def weights(self) -> Tensor:
        """Return every teacher's mean absolute weight as a share of their sum."""
        size = self.scale.detach().abs().mean(dim=1)
        return size / size.sum().clamp_min(torch.finfo(size.dtype).tiny)


class SumFusion(Fusion):
    """Add the maps; the alignments before it carry all the weights.

    Examples:
        >>> SumFusion(num_teachers=2, channels=1)([torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)]).item()
        2.0
    """

    def __init__(self, num_teachers: int, channels: int) -> None:
        """Keep a buffer only to know the device."""
        super().__init__(num_teachers, channels)
        self.register_buffer("share", torch.full((num_teachers,), 1 / num_teachers), persistent=False)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Add the maps."""
        fused = maps[0]
        for other in maps[1:]:
            fused = fused + other
        return fused

    def weights(self) -> Tensor:
        """Return equal shares."""
        return self.get_buffer("share")


FUSIONS: dict[str, type[Fusion]] = {
    "lwff": LearnableWeightedFeatureFusion,
    "sum": SumFusion,
    "concat": ConcatFusion,
}
"""Fusion by the name that the `fusion` option takes."""
