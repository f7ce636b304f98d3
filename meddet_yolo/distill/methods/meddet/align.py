"""AFA, adaptive feature alignment: a teacher's map brought to the student's width and size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class AdaptiveFeatureAlignment(nn.Module):
    """Bring a teacher's map to the student's number of channels, then to its height and width.

    A 1x1 convolution followed by adaptive max pooling, as drawn in the MedDet paper (arXiv 2409.00204). The pooling is
    left out when the sizes agree already, where it would be the identity. Where the teacher's map is the smaller one,
    adaptive max pooling repeats its values; that is allowed, but adds no detail.

    Args:
        in_channels: Channels of the teacher's map.
        out_channels: Channels of the student's map.

    Examples:
        >>> import torch
        >>> align = AdaptiveFeatureAlignment(128, 64)
        >>> align(torch.zeros(2, 128, 16, 16), (8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Build the convolution. Its weight starts orthogonal: as many directions of the teacher pass as can."""
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.orthogonal_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # a Conv2d built with its bias

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Align one map.

        Args:
            x: Teacher's map of shape (B, in_channels, H_t, W_t).
            size: Height and width of the student's map.

        Returns:
            Aligned map of shape (B, out_channels, *size).
        """
        x = self.conv(x)
        return x if x.shape[-2:] == size else F.adaptive_max_pool2d(x, size)
