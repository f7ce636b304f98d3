"""Classification networks as backbones: torchvision's, and our ShuffleNet V1, cut at strides 8, 16 and 32.

ImageNet weights are used where this machine has them or can fetch them; otherwise a network starts at random, with a
warning, and learns its batch statistics. With ImageNet weights the statistics stay as they are (`frozen_bn: auto`), as
detectors of this family are trained, because a detector's batches are small.
"""

from __future__ import annotations

import difflib
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import efficientnet, mobilenetv2, resnet, shufflenetv2
from ultralytics.utils import LOGGER

from meddet_yolo.console import may_fetch
from meddet_yolo.nn.nmode.layers import NmODE2Activation
from meddet_yolo.nn.shufflenet import ShuffleNet

__all__ = ["BACKBONES", "Backbone"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours in [0, 1]
_TIMEOUT = 5.0  # seconds without an answer after which a download is given up
_WEIGHTS = "IMAGENET1K_V1"


def _cut_resnet(net: Any) -> list[nn.Sequential]:
    return [
        nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2),
        nn.Sequential(net.layer3),
        nn.Sequential(net.layer4),
    ]


def _cut_features(*ends: int) -> Callable[[Any], list[nn.Sequential]]:
    return lambda net: [net.features[a:b] for a, b in itertools.pairwise((0, *ends))]


def _cut_shufflenetv2(net: Any) -> list[nn.Sequential]:
    return [nn.Sequential(net.conv1, net.maxpool, net.stage2), nn.Sequential(net.stage3), nn.Sequential(net.stage4)]


def _cut_shufflenet(net: Any) -> list[nn.Sequential]:
    return [nn.Sequential(net.stem, net.stages[0]), nn.Sequential(net.stages[1]), nn.Sequential(net.stages[2])]


@dataclass(frozen=True)
class _Network:
    """How to build a classification network and where to cut it."""

    build: Callable[[], nn.Module]
    cut: Callable[[Any], list[nn.Sequential]]
    weights: str | None  # torchvision's name of the network that has ImageNet weights


# MobileNetV2 includes its last 1x1 convolution (1280 channels), with which the MedDet paper's 10.42 M parameters come
# out; the others end where detectors usually tap them (our own decision: the paper gives no counts for them).
_mobilenet_cut = _cut_features(7, 14, 19)
_NETWORKS: dict[str, _Network] = {
    **{n: _Network(getattr(torchvision.models, n), _cut_resnet, n) for n in ("resnet50", "resnet101", "resnet152")},
    "mobilenetv2": _Network(torchvision.models.mobilenet_v2, _mobilenet_cut, "mobilenet_v2"),
    "mobilenetv2-1.4": _Network(lambda: torchvision.models.mobilenet_v2(width_mult=1.4), _mobilenet_cut, None),
    "efficientnet-b0": _Network(torchvision.models.efficientnet_b0, _cut_features(4, 6, 8), "efficientnet_b0"),
    "efficientnet-b1": _Network(torchvision.models.efficientnet_b1, _cut_features(4, 6, 8), "efficientnet_b1"),
    "shufflenet": _Network(ShuffleNet, _cut_shufflenet, None),
    "shufflenetv2": _Network(torchvision.models.shufflenet_v2_x1_0, _cut_shufflenetv2, "shufflenet_v2_x1_0"),
}
BACKBONES = tuple(_NETWORKS)


class BackboneNorm(nn.BatchNorm2d):
    """Batch normalisation that keeps its `eps`: Ultralytics gives plain ones another, which does not suit the weights.

    Examples:
        >>> BackboneNorm(4).eps
        1e-05
    """


class Backbone(nn.Module):
    """A classification network up to its last map, giving the maps of strides 8, 16 and 32.

    Images in [0, 1] are standardised by ImageNet's mean and deviation first, which is what the weights expect.

    Args:
        name: One of `BACKBONES`.
        in_channels: Channels of the images; for another number than 3 the first convolution is made of the means over
            its colour filters.
        pretrained: Use ImageNet weights if they are on this machine or can be downloaded.
        frozen_bn: True: batch statistics never change in training; False: they do; "auto": they do not if there are
            ImageNet weights. The normalisations' weight and bias are learnt in either case. The choice is part of the
            state dict, so that a checkpoint goes on as it was trained.
        nmode: Put nmODE², standardised and without parameters, behind each map (the MedDet paper tries it there, too;
            how is our own decision).

    Attributes:
        channels: Channels of the three maps.

    Raises:
        ValueError: If the name is unknown or `frozen_bn` is none of the three.

    Examples:
        >>> backbone = Backbone("mobilenetv2", pretrained=False)
        >>> [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 64, 64))]
        [(1, 32, 8, 8), (1, 96, 4, 4), (1, 1280, 2, 2)]
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        *,
        pretrained: bool = True,
        frozen_bn: bool | str = "auto",
        nmode: bool = False,
    ) -> None:
        super().__init__()
        if name not in _NETWORKS:
            near = difflib.get_close_matches(str(name), BACKBONES, 1, 0.0)[0]
            raise ValueError(f"unknown backbone {name!r}, did you mean {near!r}? Known: {', '.join(BACKBONES)}")
        if frozen_bn not in (True, False, "auto"):
            raise ValueError(f"frozen_bn must be true, false or auto, got {frozen_bn!r}")
        self.name = name
        network = _NETWORKS[name]
        net = network.build()
        file = _imagenet_file(name, network.weights) if pretrained else None
        if file is not None:
            net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.stages = nn.ModuleList(network.cut(net))
        if in_channels != 3:
            self._widen(in_channels)
        for module in self.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = BackboneNorm
        frozen = file is not None if frozen_bn == "auto" else bool(frozen_bn)
        self.register_buffer("frozen_bn", torch.tensor(frozen))
        mean, std = (torch.tensor(v if in_channels == 3 else [sum(v) / 3] * in_channels) for v in (_MEAN, _STD))
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1), persistent=False)
        if nmode:
            self.nmode = NmODE2Activation(standardise=True)
        self.channels = self._probe(in_channels)

    def _widen(self, in_channels: int) -> None:
        """Let the first convolution read another number of channels, at the same scale of its output."""
        for parent in self.modules():
            for name, module in parent.named_children():
                if isinstance(module, nn.Conv2d):
                    wide = nn.Conv2d(
                        in_channels,
                        module.out_channels,
                        module.kernel_size,  # type: ignore[arg-type]  # pairs, typed as of any length
                        module.stride,  # type: ignore[arg-type]
                        module.padding,  # type: ignore[arg-type]
                        bias=module.bias is not None,
                    )
                    filters = module.weight.detach().mean(1, keepdim=True) * 3 / in_channels
                    wide.weight.data.copy_(filters.expand_as(wide.weight))
                    setattr(parent, name, wide)
                    return

    @torch.no_grad()
    def _probe(self, in_channels: int) -> list[int]:
        self.eval()
        channels = [m.shape[1] for m in self(torch.zeros(1, in_channels, 64, 64))]
        self.train()
        return channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of strides 8, 16 and 32 of images (B, C, H, W) in [0, 1], sides multiples of 32."""
        x = (x - self.get_buffer("mean")) / self.get_buffer("std")
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [self.nmode(x) for x in maps] if hasattr(self, "nmode") else maps

    def train(self, mode: bool = True) -> Backbone:
        """Set the training mode; frozen batch statistics stay as they are."""
        super().train(mode)
        if mode and bool(self.get_buffer("frozen_bn")):
            for module in self.modules():
                if isinstance(module, BackboneNorm):
                    module.eval()
        return self

    @torch.no_grad()
    def fuse_norms(self) -> Backbone:
        """Fold every batch normalisation into the convolution before it, in place, for inference; returns self."""
        self.eval()
        for parent in list(self.modules()):
            for (first, conv), (second, norm) in itertools.pairwise(list(parent.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, BackboneNorm):
                    setattr(parent, first, nn.utils.fuse_conv_bn_eval(conv, norm))
                    setattr(parent, second, nn.Identity())
        return self

    def extra_repr(self) -> str:
        """Return the network's name and whether its batch statistics are frozen."""
        return f"{self.name}, frozen_bn={bool(self.get_buffer('frozen_bn'))}"


@lru_cache(maxsize=len(_NETWORKS))
def _imagenet_file(name: str, network: str | None) -> Path | None:
    """Return the local file of a network's ImageNet weights, downloaded if that works; warn once if there is none."""
    reason = "torchvision has none for it"
    if network is not None:
        url = torchvision.models.get_weight(_weights_name(network)).url
        file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        if file.is_file():
            return file
        reason = f"{file} does not exist and this machine is offline"
        if may_fetch():
            timeout = socket.getdefaulttimeout()
            socket.setdefaulttimeout(_TIMEOUT)  # the download itself would wait for ever
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[-1], progress=False)
                return file
            except Exception as error:  # no address, no permission, a wrong hash: a start at random serves as well
                reason = f"{url} cannot be loaded ({type(error).__name__})"
            finally:
                socket.setdefaulttimeout(timeout)
    LOGGER.warning(f"No ImageNet weights for {name}: {reason}. It starts at random, with batch statistics learnt.")
    return None


def _weights_name(network: str) -> str:
    """Return torchvision's name of a network's weights, e.g. "ResNet50_Weights.IMAGENET1K_V1"."""
    return f"{torchvision.models.get_model_weights(network).__name__}.{_WEIGHTS}"


# For loading with weights_only=True.
torch.serialization.add_safe_globals(
    [
        Backbone,
        BackboneNorm,
        resnet.Bottleneck,
        mobilenetv2.InvertedResidual,
        efficientnet.MBConv,
        shufflenetv2.InvertedResidual,
        torchvision.ops.Conv2dNormActivation,
        torchvision.ops.SqueezeExcitation,
        torchvision.ops.StochasticDepth,
    ]
)
