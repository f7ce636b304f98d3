"""Rules for classification networks as backbones: torchvision's ResNet, MobileNetV2 and EfficientNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meddet_yolo.distill.inherit.spaces import Axis
from meddet_yolo.distill.inherit.walk import Rule, Walk, kind_of

__all__ = ["BACKBONE_BLOCKS", "backbone"]


def backbone(walk: Walk, s: Any, t: Any, read: Axis) -> list[Axis]:
    """Walk through a `Backbone`; returns the dimensions of its maps of strides 8, 16 and 32.

    One like the teacher's to the last tensor is taken over as it is, whatever blocks it is made of (ShuffleNets, whose
    shuffled groups leave no choice of channels, come in one width).
    """
    setting = "frozen_bn"  # a buffer of `Backbone`, nothing that was learnt
    walk.leave(s, "says how the student's is trained", setting)
    shapes = [[(kind_of(m), [v.shape for v in m.state_dict().values()]) for m in x.modules()] for x in (s, t)]
    if shapes[0] == shapes[1]:
        for mine, other in zip(s.modules(), t.modules(), strict=True):
            walk.copy(mine, other, skip=[setting])
        return [walk.new(channels, channels) for channels in s.channels]
    if _kinds(s) != _kinds(t) or len(s.stages) != len(t.stages):
        raise walk.other_family(f"backbone {s.name} in the student and {t.name} in the teacher")
    maps = []
    for mine, other in zip(s.stages, t.stages, strict=True):
        read = walk.sequence(mine, other, read)
        maps.append(read)
    return maps


def _kinds(x: Any) -> set[str]:
    """Return the kinds of blocks that a backbone consists of, which tell its family."""
    return {kind_of(m) for m in x.stages.modules()}


def _resnet_bottleneck(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    out = read
    for i in (1, 2, 3):
        out = walk.conv2d(getattr(s, f"conv{i}"), getattr(t, f"conv{i}"), out)
        walk.norm(getattr(s, f"bn{i}"), getattr(t, f"bn{i}"), out)
    if (s.downsample is None) != (t.downsample is None):
        raise walk.other_family(f"{walk.where}: short cuts differ")
    walk.join(out, read if s.downsample is None else walk.sequence(s.downsample, t.downsample, read))
    return out


def _inverted_residual(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    """MobileNetV2's `InvertedResidual` and EfficientNet's `MBConv`."""
    layers = "conv" if hasattr(s, "conv") else "block"
    out = walk.sequence(getattr(s, layers), getattr(t, layers), read)
    if s.use_res_connect:
        walk.join(out, read)
    return out


def _squeeze_excitation(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    return walk.conv2d(s.fc2, t.fc2, walk.conv2d(s.fc1, t.fc1, read), out=read)


BACKBONE_BLOCKS: Mapping[str, Rule] = {
    "ResNetBottleneck": _resnet_bottleneck,
    "InvertedResidual": _inverted_residual,
    "MBConv": _inverted_residual,
    "SqueezeExcitation": _squeeze_excitation,
}
