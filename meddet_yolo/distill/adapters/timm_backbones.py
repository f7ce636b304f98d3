"""Backbones of timm: the maps of their stages."""

from __future__ import annotations

import difflib
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from meddet_yolo.console import how_to_install, may_fetch
from meddet_yolo.distill.adapters.network import Network
from meddet_yolo.distill.adapters.weights import load_exactly, read_weights

__all__ = ["TimmNetwork", "open_model"]

_HEADS = ("head", "fc", "classifier", "fc_norm", "pre_logits", "last_linear")  # what num_classes=0 leaves out


class TimmNetwork(Network):
    """The stages of a backbone, of a vision transformer the outputs of its blocks as maps.

    Args:
        model: A model of timm with `forward_intermediates`; it is copied.

    Raises:
        ValueError: If it cannot give maps of its stages, or reads images of one size only.
    """

    pyramid = False
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        source: Any = model
        kind = type(model).__name__
        config = getattr(source, "pretrained_cfg", None) or {}
        self.body: Any = deepcopy(model).float().eval().requires_grad_(False)
        mean, std = config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225))
        self.image_channels = len(mean)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.names = {}
        self.multiple = max(int(stage["reduction"]) for stage in source.feature_info)
        side = 4 * self.multiple
        device = next(self.body.parameters()).device
        try:
            with torch.no_grad():
                stages = self.maps(torch.zeros(1, self.image_channels, side, side, device=device))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{kind} of timm does not give maps of {side} px images ({reason}); choose a backbone that reads "
                "images of any size"
            ) from error
        if any(stage.ndim != 4 for stage in stages):
            raise ValueError(f"{kind} of timm gives no maps of its stages; choose another backbone")
        self.channels = [stage.shape[1] for stage in stages]
        self.strides = [side / stage.shape[-1] for stage in stages]

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Return whether a model is a backbone of timm that gives maps of its stages."""
        return hasattr(model, "forward_intermediates") and hasattr(model, "feature_info")

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the stages, shallow to deep."""
        images = (images - self.mean) / self.std
        maps: list[Tensor] = self.body.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
        return maps


def open_model(name: str, file: str) -> nn.Module:
    """Build a backbone with the weights of a file, or with those that timm has for it.

    Raises:
        FileNotFoundError: If the pretrained weights would have to be fetched and cannot be.
        ModuleNotFoundError: If timm is not installed.
        ValueError: If there is no such backbone, it gives no maps, or the weights are not its.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"teacher timm:{name} needs the package timm: {how_to_install('timm')}", name="timm"
        ) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 1)
        hint = f"did you mean {near[0]}?" if near else "timm.list_models() lists them"
        raise ValueError(f"teacher timm:{name}: timm has no such model; {hint}")
    if not file and not may_fetch():
        raise FileNotFoundError(
            f"teacher timm:{name}: its pretrained weights cannot be downloaded: this machine is offline; give a file "
            f"of them as timm:{name}@FILE"
        )
    model = _create(timm, name, pretrained=not file)
    if not TimmNetwork.fits(model):
        raise ValueError(f"teacher timm:{name}: it gives no maps of its stages; choose another backbone")
    if file:
        load_exactly(model, read_weights(file), file, lambda key: key.partition(".")[0] in _HEADS)
    model.eval()
    return model


def _create(timm: Any, name: str, *, pretrained: bool) -> nn.Module:
    """Build a backbone without classifier, for images of any size where it has a say in that."""
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    try:
        model: nn.Module = timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # no transformer
        try:
            model = timm.create_model(name, **options)
        except (RuntimeError, OSError) as error:
            raise _no_weights(name, error) from error
    except (RuntimeError, OSError) as error:
        raise _no_weights(name, error) from error
    return model


def _no_weights(name: str, error: Exception) -> ValueError:
    reason = str(error).strip().partition("\n")[0]
    return ValueError(f"teacher timm:{name}: no pretrained weights ({reason}); give a file of them as timm:{name}@FILE")
