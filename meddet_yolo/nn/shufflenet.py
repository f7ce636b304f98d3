"""ShuffleNet V1, which torchvision does not have.

Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (CVPR 2018): width 1,
three groups, as in the paper's comparison.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ShuffleNet"]

_GROUPS = 3
_STEM = 24
_STAGES = ((240, 4), (480, 8), (960, 4))  # channels and units


def shuffle(x: Tensor) -> Tensor:
    """Interleave the channels of the groups of a map (B, C, H, W); torch's own operator cannot be exported to ONNX.

    Examples:
        >>> shuffle(torch.arange(6.0).view(1, 6, 1, 1)).flatten().tolist()
        [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]
    """
    return x.unflatten(1, (_GROUPS, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """Grouped 1x1 convolution, channel shuffle, depthwise 3x3 convolution, grouped 1x1 convolution, and a short cut.

    Args:
        c1: Input channels.
        c2: Output channels; with stride 2 the short cut provides `c1` of them by average pooling.
        stride: 1 or 2.
        grouped: Whether the first convolution has groups (not in the first unit of all, whose input is narrow).

    Examples:
        >>> ShuffleUnit(24, 240, stride=2, grouped=False)(torch.zeros(1, 24, 8, 8)).shape
        torch.Size([1, 240, 4, 4])
    """

    def __init__(self, c1: int, c2: int, stride: int = 1, grouped: bool = True) -> None:
        super().__init__()
        self.stride = stride
        middle = c2 // 4
        out = c2 - c1 if stride == 2 else c2
        self.compress = nn.Sequential(
            nn.Conv2d(c1, middle, 1, groups=_GROUPS if grouped else 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False), nn.BatchNorm2d(middle)
        )
        self.expand = nn.Sequential(nn.Conv2d(middle, out, 1, groups=_GROUPS, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c1, H, W) to (B, c2, H / stride, W / stride)."""
        y = self.expand(self.depthwise(shuffle(self.compress(x))))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, stride=2, padding=1), y], 1))
        return F.relu(x + y)


class ShuffleNet(nn.Module):
    """ShuffleNet V1 without its classifier.

    Attributes:
        stem: Convolution and pooling, stride 4.
        stages: Stages of strides 8, 16 and 32 with 240, 480 and 960 channels.

    Examples:
        >>> net = ShuffleNet()
        >>> [stage[-1].expand[0].out_channels for stage in net.stages]
        [240, 480, 960]
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, _STEM, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(_STEM),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages, c1 = [], _STEM
        for c2, units in _STAGES:
            first = ShuffleUnit(c1, c2, stride=2, grouped=c1 != _STEM)
            stages.append(nn.Sequential(first, *(ShuffleUnit(c2, c2) for _ in range(units - 1))))
            c1 = c2
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of strides 8, 16 and 32 of images (B, 3, H, W)."""
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


torch.serialization.add_safe_globals([ShuffleUnit, ShuffleNet])  # for loading with weights_only=True
