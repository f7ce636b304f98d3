"""Ultralytics' detectors: the maps that their heads read, and what the heads say of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from meddet_yolo.distill.adapters.branches import detection_branches, run_from_stems, stem_widths
from meddet_yolo.distill.adapters.network import Network
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec

__all__ = ["YOLONetwork", "detector_spec", "head_output", "neck_features", "probe_neck"]


def neck_features(layers: Iterable[Any], taps: Sequence[int], images: Tensor) -> list[Tensor]:
    """Run a YAML-built network layer by layer and return the maps that its head would read.

    Args:
        layers: The network's layers without its head, each with Ultralytics' routing attributes `i` and `f`.
        taps: Indices of the layers whose outputs are wanted, fine to coarse.
        images: Images of shape (B, C, H, W), values in [0, 1].

    Returns:
        One map of shape (B, C_l, H_l, W_l) a tap, in the order of `taps`.
    """
    layers = list(layers)
    routes = []  # of every layer, where it reads; negative numbers count back from the layer itself
    for index, layer in enumerate(layers):
        sources = [layer.f] if isinstance(layer.f, int) else layer.f
        routes.append([source + index if source < 0 else source for source in sources])
    needed = {*taps, *(source for index, route in enumerate(routes) for source in route if source != index - 1)}
    outputs: dict[int, Any] = {}
    x: Any = images  # some layers hand on lists
    for index, (layer, route) in enumerate(zip(layers, routes, strict=True)):
        inputs = [x if source == index - 1 else outputs[source] for source in route]
        x = layer(inputs[0] if isinstance(layer.f, int) else inputs)
        if index in needed:
            outputs[index] = x
    return [outputs[tap] for tap in taps]


def _split_head(model: nn.Module) -> tuple[nn.Sequential, list[int]]:
    """Return a detector's layers without its head, and the indices of the maps that the head reads."""
    layers = getattr(model, "model", None)
    if not isinstance(layers, nn.Sequential) or len(layers) < 2:
        raise TypeError(
            f"Expected an Ultralytics detection model (a module with a `model` Sequential), got {type(model).__name__}"
        )
    head = layers[-1]
    sources = getattr(head, "f", None)
    if not isinstance(sources, (list, tuple)):
        raise TypeError(
            f"The last layer of {type(model).__name__} is {type(head).__name__}, which does not read several neck "
            "maps; expected a detection head"
        )
    return layers[:-1], [source if source >= 0 else len(layers) - 1 + source for source in sources]


@torch.no_grad()
def probe_neck(model: nn.Module) -> tuple[list[int], list[float]]:
    """Return the channels and strides of the neck maps that a detector's head reads.

    The model runs once on a blank image in eval mode, so that the answer is right for any backbone and neck; its
    training mode is restored.

    Args:
        model: An Ultralytics detection model.

    Returns:
        Channels and strides (input pixels per map cell), fine to coarse.

    Raises:
        TypeError: If the model has no head that reads several neck maps.
    """
    layers, taps = _split_head(model)
    parameter = next(model.parameters())
    head: Any = model.model[-1]  # type: ignore[index]  # its strides, where it has them, may exceed the model's
    known = [torch.as_tensor(getattr(owner, "stride", 32.0)) for owner in (model, head)]
    size = 2 * max(32, *(int(strides.max()) for strides in known if strides.numel()))
    blank = torch.zeros(1, _input_channels(model), size, size, device=parameter.device, dtype=parameter.dtype)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        maps = neck_features(layers, taps, blank)
    finally:
        for module, mode in training.items():
            module.training = mode
    return [m.shape[1] for m in maps], [size / m.shape[-2] for m in maps]


def detector_spec(model: nn.Module, name: str) -> DetectorSpec:
    """Return what a method may know of a detector before it runs.

    Args:
        model: An Ultralytics detection model.
        name: What to call it in messages.

    Raises:
        TypeError: If the model has no head that reads several neck maps.
    """
    channels, strides = probe_neck(model)
    head: Any = model.model[-1]  # type: ignore[index]
    return DetectorSpec(name, channels, strides, *_predictions(head), stem_widths(head))


def _predictions(head: Any) -> tuple[int, int]:
    """Return a head's number of classes and of bins; no bins where it gives no dense predictions."""
    return int(getattr(head, "nc", 0)), int(getattr(head, "reg_max", 0))


def _input_channels(model: nn.Module) -> int:
    """Return the number of image channels that a detector expects."""
    yaml = getattr(model, "yaml", None)
    return int(yaml.get("channels", 3)) if isinstance(yaml, Mapping) else 3


class YOLONetwork(Network):
    """A detector of Ultralytics' families or ours, RT-DETR included; of segmentation and pose models, that part.

    The model is copied, fused (batch normalisation folded into convolutions) and cut off before its head, which is kept
    apart: feature distillation needs no predictions, and the head is a quarter of a small detector's work.

    Args:
        model: Ultralytics model with a multi-level neck.

    Raises:
        TypeError: If it has none.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        _split_head(model)
        copied: Any = deepcopy(model).float().eval()
        self.predictions = _predictions(copied.model[-1])
        self.stems = stem_widths(copied.model[-1])
        head = deepcopy(copied.model[-1])  # unfused: fusing takes the one-to-many branch from NMS-free heads
        if hasattr(copied, "fuse"):
            copied = copied.fuse(verbose=False)
        for layer in copied.model:
            if hasattr(layer, "fuse_norms"):  # a backbone of ours, which Ultralytics' fusion passes over
                layer.fuse_norms()
        self.names = dict(getattr(model, "names", {}))
        self.image_channels = _input_channels(copied)
        self.channels, self.strides = probe_neck(copied)
        own = int(torch.as_tensor(getattr(model, "stride", 32.0)).max())  # may exceed that of the maps its head reads
        self.multiple = max(own, math.ceil(max(self.strides)))
        self.layers, self._taps = _split_head(copied)
        self.layers.eval()
        self.head: nn.Module | None = None
        if self.predictions[1]:  # dense ones; an RT-DETR has none
            self.head = head
            head.training = True  # it gives logits, not boxes; its layers stay as they are in inference
        self.requires_grad_(False)

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Return true: what is no such model is refused when it is read."""
        return True

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps that the head reads."""
        return neck_features(self.layers, self._taps, images)

    def drop_head(self) -> None:
        """Give the head up."""
        self.head = None

    def predict(self, maps: Sequence[Tensor]) -> DetectorOutput:
        """Return the maps with what the head says of them."""
        head: Any = self.head
        parts = detection_branches(head)
        if any(part is None for part in parts.values()):  # masks and keypoints are of no use here
            return head_output(head.forward_head(list(maps), **parts))
        return head_output(head(list(maps)))

    def finish(self, stems: Sequence[tuple[Tensor, Tensor]]) -> DetectorOutput:
        """Return what the rest of the head says of maps behind the first blocks of its branches."""
        return head_output(run_from_stems(self.head, stems))


def head_output(preds: Any) -> DetectorOutput:
    """Return what a head gives in training as a method sees it; of an NMS-free head, its one-to-many branch."""
    many = preds.get("one2many") or preds
    return DetectorOutput(feats=list(many["feats"]), logits=many["scores"], boxes=many["boxes"])
