"""Frozen teachers: any detector or backbone that there is an adapter for, run as far as a run's methods read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddet_yolo.distill.adapters import adapt
from meddet_yolo.distill.adapters.yolo import detector_spec, head_output, neck_features, probe_neck
from meddet_yolo.distill.classes import ClassMap
from meddet_yolo.distill.levels import choose_stages
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec

__all__ = ["Teacher", "detector_spec", "head_output", "neck_features", "probe_neck"]


class Teacher:
    """A frozen network that gives its maps, and its predictions where it has any and they are wanted.

    Not a module, so that no optimizer, EMA, checkpoint or DDP wrapper can pick its weights up by accident. The model is
    copied, set to eval mode, laid out channels-last and cut down by its adapter to what can be read of it.

    Args:
        model: A trained model that `meddet_yolo.distill.adapters` has an adapter for: Ultralytics' (YOLOv5u to YOLO26,
            RT-DETR, segmentation and pose) and ours, torchvision's detectors, backbones of timm.
        name: What to call it in messages, e.g. its file.
        imgsz: Input size in pixels of the longer image side; None takes the student's images in their own size. Either
            is rounded up to what the teacher's coarsest stride divides.
        classes: Which of its classes speak for those of the data set; None takes them for the same.

    Attributes:
        channels: Channels of the maps it gives, fine to coarse.
        strides: Strides of its network's maps in pixels of the teacher's input; `strides_at` has those of the maps it
            gives in pixels of the student's.
        names: Its own class names by index.
        classes: See above; its predictions are of the data set's classes.

    Raises:
        TypeError: If there is no adapter for the model.
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
        self._network = adapt(model).to(memory_format=torch.channels_last)
        self.name = name
        self.imgsz = imgsz
        self.classes = classes
        self.names: dict[int, str] = dict(self._network.names)
        self.image_channels = self._network.image_channels
        self.channels, self.strides = list(self._network.channels), list(self._network.strides)
        self._keeps_head = self._network.predictions[1] > 0
        self._stages: list[int] | None = None  # where maps are resampled: of which stage each is, ...
        self._targets: list[float] = []  # ... and to which stride in pixels of the student's image

    def to(self, device: torch.device | str) -> Teacher:
        """Move the weights to a device."""
        self._network.to(device)
        return self

    def keep_head(self, keep: bool) -> None:
        """Say whether predictions are wanted; without, the head is dropped and never runs."""
        if not keep:
            self._keeps_head = False
            self._network.drop_head()

    def resample_to(self, strides: Sequence[float], imgsz: int) -> None:
        """Give maps of these strides from now on, where the network's own are no pyramid of a detector's.

        Every map is of the network's stage of the nearest stride; a detector of Ultralytics' keeps its own levels.

        Args:
            strides: Strides of the student's maps.
            imgsz: Side of the student's square input in pixels.
        """
        if self._network.pyramid:
            return
        self._stages = choose_stages(strides, self._own_strides_at(imgsz))
        self._targets = [float(stride) for stride in strides]
        self.channels = [self._network.channels[stage] for stage in self._stages]

    def spec_at(self, imgsz: int) -> DetectorSpec:
        """Return what a method may know of this teacher, strides in pixels of the student's input.

        Args:
            imgsz: Side of the student's square input in pixels.
        """
        nc, bins = self._network.predictions
        if self.classes is not None:
            nc, bins = len(self.classes.sources), bins if any(self.classes.known) else 0
        return DetectorSpec(self.name, list(self.channels), self.strides_at(imgsz), nc, bins, list(self._network.stems))

    @property
    def silent(self) -> str:
        """Why no method can read its predictions, in words; empty where one can."""
        if self._network.predictions[1] == 0:
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
        if not self._keeps_head:
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
        return list(self._targets) if self._stages is not None else self._own_strides_at(imgsz)

    def _own_strides_at(self, imgsz: int) -> list[float]:
        side, _ = self._input_size(imgsz, imgsz)
        return [stride * imgsz / side for stride in self._network.strides]

    def _input_size(self, height: int, width: int) -> list[int]:
        """Return the height and width that images are scaled to: the longer `imgsz`, both multiples of the stride."""
        scale = 1.0 if self.imgsz is None else self.imgsz / max(height, width)
        stride = self._network.multiple
        return [max(stride, math.ceil(side * scale / stride - 1e-6) * stride) for side in (height, width)]

    def _resize(self, images: Tensor) -> Tensor:
        """Scale images (B, C, H, W) to the teacher's input size.

        Sides that its coarsest stride does not divide are stretched, not padded, so that its maps cover what the
        student's cover.
        """
        height, width = images.shape[-2:]
        return _scaled(images, self._input_size(height, width))

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
        height, width = images.shape[-2:]
        images = self._resize(self._match_channels(images)).contiguous(memory_format=torch.channels_last)
        feats = self._network.maps(images)
        if self._stages is not None:
            sizes = [[math.ceil(side / stride) for side in (height, width)] for stride in self._targets]
            feats = [_scaled(feats[stage], size) for stage, size in zip(self._stages, sizes, strict=True)]
        if not self._keeps_head:
            return DetectorOutput(feats)
        output = self._network.predict(feats)
        output.finish = self._finish
        return self._in_classes_of_data(output)

    def _finish(self, stems: Sequence[tuple[Tensor, Tensor]]) -> DetectorOutput:
        """Return what the rest of the head says, with gradient to what it is given; see `DetectorOutput.finish`."""
        return self._in_classes_of_data(self._network.finish(stems))

    def _in_classes_of_data(self, output: DetectorOutput) -> DetectorOutput:
        if self.classes is not None and output.logits is not None:
            output.logits = self.classes(output.logits)
            output.known = torch.tensor(self.classes.known, device=output.logits.device)
        return output


def _scaled(maps: Tensor, size: list[int]) -> Tensor:
    """Scale maps (B, C, H, W) to a height and width; what becomes smaller is averaged."""
    given = list(maps.shape[-2:])
    if size == given:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=min(size) < min(given))
