"""Frozen teachers: any Ultralytics detector, run up to its neck or, where a method reads predictions, to its head."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddet_yolo.distill.classes import ClassMap
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec

__all__ = ["Teacher", "detector_spec", "head_output", "neck_features", "probe_neck"]


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
    return DetectorSpec(name, channels, strides, *_predictions(model.model[-1]))  # type: ignore[index]


def _predictions(head: Any) -> tuple[int, int]:
    """Return a head's number of classes and of bins; no bins where it gives no dense predictions."""
    return int(getattr(head, "nc", 0)), int(getattr(head, "reg_max", 0))


def _input_channels(model: nn.Module) -> int:
    """Return the number of image channels that a detector expects."""
    yaml = getattr(model, "yaml", None)
    return int(yaml.get("channels", 3)) if isinstance(yaml, Mapping) else 3


class Teacher:
    """A frozen detector that gives its neck maps, and its predictions where they are wanted.

    Not a module, so that no optimizer, EMA, checkpoint or DDP wrapper can pick its weights up by accident. The model is
    copied, fused (batch normalisation folded into convolutions), set to eval mode, laid out channels-last and cut off
    before its head, which is kept apart: feature distillation needs no predictions, and the head is a quarter of a
    small detector's work.

    Args:
        model: Any Ultralytics detection model (YOLOv5u to YOLO26, RT-DETR, ours), trained.
        name: What to call it in messages, e.g. its file.
        imgsz: Input size in pixels of the longer image side; None takes the student's images in their own size. Either
            is rounded up to what the teacher's coarsest stride divides.
        classes: Which of its classes speak for those of the data set; None takes them for the same.

    Attributes:
        channels: Channels of the neck maps, fine to coarse.
        strides: Their strides in pixels of the teacher's input; `strides_at` has them in pixels of the student's.
        names: Its own class names by index.
        classes: See above; its predictions are of the data set's classes.

    Raises:
        TypeError: If the model is not a detector with a multi-level neck.
        ValueError: If `imgsz` is not positive.

    Examples:
        >>> import torch
        >>> from ultralytics.nn.tasks import DetectionModel
        >>> teacher = Teacher(DetectionModel("yolo11n.yaml", nc=2, verbose=False), name="yolo11n")
        >>> [tuple(feat.shape) for feat in teacher(torch.zeros(1, 3, 64, 64)).feats]
        [(1, 64, 8, 8), (1, 128, 4, 4), (1, 256, 2, 2)]
    """

    def __init__(
        self, model: nn.Module, name: str = "teacher", imgsz: int | None = None, classes: ClassMap | None = None
    ) -> None:
        if imgsz is not None and imgsz <= 0:
            raise ValueError(f"Expected teacher_imgsz > 0 for {name}, got {imgsz}")
        _split_head(model)
        copied: Any = deepcopy(model).float().eval()
        self._predictions = _predictions(copied.model[-1])
        head = deepcopy(copied.model[-1])  # unfused: fusing takes the one-to-many branch from NMS-free heads
        if hasattr(copied, "fuse"):
            copied = copied.fuse(verbose=False)
        for layer in copied.model:
            if hasattr(layer, "fuse_norms"):  # a backbone of ours, which Ultralytics' fusion passes over
                layer.fuse_norms()
        copied.requires_grad_(False)
        self.name = name
        self.imgsz = imgsz
        self.classes = classes
        self.names: dict[int, str] = dict(getattr(model, "names", {}))
        self.image_channels = _input_channels(copied)
        self.channels, self.strides = probe_neck(copied)
        own = int(torch.as_tensor(getattr(model, "stride", 32.0)).max())  # may exceed that of the maps its head reads
        self._multiple = max(own, math.ceil(max(self.strides)))  # that the input's sides must be of
        self.layers, self._taps = _split_head(copied)
        self.layers = self.layers.eval().to(memory_format=torch.channels_last)
        self._head: nn.Module | None = None
        if self._predictions[1]:  # dense ones; an RT-DETR has none
            self._head = head.requires_grad_(False).to(memory_format=torch.channels_last)
            self._head.training = True  # it gives logits, not boxes; its layers stay as they are in inference

    def to(self, device: torch.device | str) -> Teacher:
        """Move the weights to a device."""
        self.layers.to(device)
        if self._head is not None:
            self._head.to(device)
        return self

    def keep_head(self, keep: bool) -> None:
        """Say whether predictions are wanted; without, the head is dropped and never runs."""
        if not keep:
            self._head = None

    def spec_at(self, imgsz: int) -> DetectorSpec:
        """Return what a method may know of this teacher, strides in pixels of the student's input.

        Args:
            imgsz: Side of the student's square input in pixels.
        """
        nc, bins = self._predictions
        if self.classes is not None:
            nc, bins = len(self.classes.sources), bins if any(self.classes.known) else 0
        return DetectorSpec(self.name, list(self.channels), self.strides_at(imgsz), nc, bins)

    @property
    def silent(self) -> str:
        """Why no method can read its predictions, in words; empty where one can."""
        if self._predictions[1] == 0:
            return "has no dense ones"
        if self.classes is not None and not any(self.classes.known):
            labels = [str(label) for label in self.names.values()]
            shown = ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
            return f"has other classes ({shown}), which teacher_classes can map to the data set's"
        return ""

    def use(self, data: Mapping[int, str]) -> str:
        """Return what a run has this teacher for, in words.

        Args:
            data: The data set's class names by index.
        """
        if self._head is None:
            return f"features only: {self.silent}" if self.silent else "features"
        if self.classes is None or self.classes.same:
            return "features and predictions"
        return f"features and predictions: {self.classes.describe(self.names, data)}"

    def strides_at(self, imgsz: int) -> list[float]:
        """Return the strides of the neck maps in pixels of the student's input, as `match_levels` compares them.

        Args:
            imgsz: Side of the student's square input in pixels.

        Examples:
            >>> from ultralytics.nn.tasks import DetectionModel
            >>> Teacher(DetectionModel("yolo11n.yaml", nc=2, verbose=False), imgsz=128).strides_at(64)
            [4.0, 8.0, 16.0]
        """
        side, _ = self._input_size(imgsz, imgsz)
        return [stride * imgsz / side for stride in self.strides]

    def _input_size(self, height: int, width: int) -> list[int]:
        """Return the height and width that images are scaled to: the longer `imgsz`, both multiples of the stride."""
        scale = 1.0 if self.imgsz is None else self.imgsz / max(height, width)
        stride = self._multiple
        return [max(stride, math.ceil(side * scale / stride - 1e-6) * stride) for side in (height, width)]

    def _resize(self, images: Tensor) -> Tensor:
        """Scale images (B, C, H, W) to the teacher's input size.

        Sides that its coarsest stride does not divide are stretched, not padded, so that its maps cover what the
        student's cover.
        """
        height, width = images.shape[-2:]
        size = self._input_size(height, width)
        if size == [height, width]:
            return images
        return F.interpolate(
            images, size=size, mode="bilinear", align_corners=False, antialias=min(size) < min(height, width)
        )

    def _match_channels(self, images: Tensor) -> Tensor:
        """Turn grey images into colour or colour into grey where the teacher was trained on the other."""
        given = images.shape[1]
        if given == self.image_channels:
            return images
        if self.image_channels == 1:
            return images.mean(1, keepdim=True)
        if given == 1:
            return images.expand(-1, self.image_channels, -1, -1)
        raise ValueError(
            f"Teacher {self.name} expects images of {self.image_channels} channels, got {given}; "
            "set `channels` in the data set's YAML to the teacher's"
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> DetectorOutput:
        """Return the neck maps of a batch of images of shape (B, C, H, W), values in [0, 1]; predictions if kept."""
        images = self._resize(self._match_channels(images)).contiguous(memory_format=torch.channels_last)
        feats = neck_features(self.layers, self._taps, images)
        if self._head is None:
            return DetectorOutput(feats)
        output = head_output(self._head(list(feats)))
        if self.classes is not None and output.logits is not None:
            output.logits = self.classes(output.logits)
            output.known = torch.tensor(self.classes.known, device=output.logits.device)
        return output


def head_output(preds: Any) -> DetectorOutput:
    """Return what a head gives in training as a method sees it; of an NMS-free head, its one-to-many branch."""
    many = preds.get("one2many") or preds
    return DetectorOutput(feats=list(many["feats"]), logits=many["scores"], boxes=many["boxes"])
