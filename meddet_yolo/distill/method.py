"""What a distillation method is: the interface that every method keeps to, and the table of those there are."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar

from torch import Tensor, nn

from meddet_yolo.distill.options import Options as BaseOptions

__all__ = ["METHODS", "DetectorOutput", "DetectorSpec", "DistillMethod", "HeadLoss", "Opponent", "Term", "method_class"]

METHODS: dict[str, str] = {
    "meddet": "meddet_yolo.distill.methods.meddet:MedDet",
    "l2": "meddet_yolo.distill.methods.l2:ScoreWeightedL2",
    "response": "meddet_yolo.distill.methods.response:Response",
    "cwd": "meddet_yolo.distill.methods.cwd:CWD",
    "pkd": "meddet_yolo.distill.methods.pkd:PKD",
    "mgd": "meddet_yolo.distill.methods.mgd:MGD",
    "bckd": "meddet_yolo.distill.methods.bckd:BCKD",
    "fgd": "meddet_yolo.distill.methods.fgd:FGD",
    "ld": "meddet_yolo.distill.methods.ld:LD",
    "crosskd": "meddet_yolo.distill.methods.crosskd:CrossKD",
}
"""Where each method's class is, by the name that `distill=` takes."""

HeadLoss = Callable[[list[Tensor]], Tensor]
"""Gives the detection loss, a mean over images, of the student's head on other maps than the student's own."""


@dataclass(frozen=True)
class DetectorSpec:
    """What a method may know of a detector before it runs.

    Attributes:
        name: What to call it in messages: a teacher's file, or "student".
        channels: Channels of its neck maps, fine to coarse.
        strides: Their strides in pixels of the student's input; those of a teacher that reads its images at a size of
            its own are converted.
        nc: Number of classes.
        reg_max: Number of bins of its box distributions; 1 means boxes without distributions, 0 that its head gives no
            dense predictions at all, as RT-DETR's.
        stems: Channels behind the first block of its head's class branch and of its box branch, for each level; none
            where its head is not made of branches with a first block, further ones and a prediction layer.
    """

    name: str
    channels: list[int]
    strides: list[float]
    nc: int
    reg_max: int
    stems: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class DetectorOutput:
    """What a method sees of one detector on one batch.

    Attributes:
        feats: Maps of the neck, (B, C_l, H_l, W_l) for each level, fine to coarse.
        logits: Class scores before the sigmoid, (B, nc, A), the A anchors being the positions of `feats` level by
            level; None where the detector ran without its head.
        boxes: Logits of the box distributions, (B, 4 * reg_max, A), sides left, top, right, bottom; None likewise.
        known: Which of the student's classes a teacher knows, (nc,) booleans; None all of them. The logits of the
            others stand for never, and are nothing to learn from.
        stems: Of the student, what the first block of its head's class branch and that of its box branch give,
            (B, K, H_l, W_l), for each level; None where no method reads it.
        finish: Of a teacher that ran with its head, the rest of it: gives logits and boxes from such maps for each of
            its levels, of any size, with gradient to them.
    """

    feats: list[Tensor]
    logits: Tensor | None = None
    boxes: Tensor | None = None
    known: Tensor | None = None
    stems: list[tuple[Tensor, Tensor]] | None = None
    finish: Callable[[Sequence[tuple[Tensor, Tensor]]], DetectorOutput] | None = None

    def first(self, images: int) -> DetectorOutput:
        """Return what was said of the first images of the batch.

        Examples:
            >>> import torch
            >>> DetectorOutput([torch.zeros(3, 8, 4, 4)]).first(2).feats[0].shape
            torch.Size([2, 8, 4, 4])
        """
        logits, boxes = (None if part is None else part[:images] for part in (self.logits, self.boxes))
        stems = None if self.stems is None else [(scores[:images], sides[:images]) for scores, sides in self.stems]
        return replace(self, feats=[feat[:images] for feat in self.feats], logits=logits, boxes=boxes, stems=stems)

    def by_level(self, predictions: Tensor) -> list[Tensor]:
        """Part predictions (B, K, A) by level, (B, K, H_l, W_l) each.

        Examples:
            >>> import torch
            >>> output = DetectorOutput([torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)], torch.zeros(1, 3, 20))
            >>> [tuple(part.shape) for part in output.by_level(output.logits)]
            [(1, 3, 4, 4), (1, 3, 2, 2)]
        """
        shapes = [feat.shape[-2:] for feat in self.feats]
        parts = predictions.split([height * width for height, width in shapes], dim=-1)
        return [part.unflatten(-1, tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]


@dataclass(frozen=True)
class Term:
    """One named part of the loss.

    Attributes:
        loss: Scalar in float32, a mean: it depends neither on the batch size nor on the size of the maps.
        weight: What it is multiplied by.
        student: Whether it teaches the student; others train the method's own modules only and count in no share.
        schedule: Whether its weight rises over the warm-up.
    """

    loss: Tensor
    weight: float
    student: bool = True
    schedule: bool = True


@dataclass(frozen=True)
class Opponent:
    """An adversary: modules with an optimizer of their own, which learns against the student.

    Attributes:
        name: Tells it from other adversaries of the run.
        parameters: What its optimizer trains; the student's optimizer leaves them alone.
        loss: Gives its loss on the last batch, on detached features; called once a step, outside autocast.
        lr: Learning rate of its optimizer, Adam with betas (0.5, 0.999).
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[], Tensor]
    lr: float = field(default=2e-4)


class DistillMethod(nn.Module, ABC):
    """A way of teaching: outputs of the student and of frozen teachers in, named terms of a loss out.

    A method is a module: its parameters learn in the student's optimizer, those of its opponents in their own. Nothing
    of it is in the student's file. To add one, write a file with a subclass and a line of `METHODS`. Modules that its
    options do not use are not built. A session keeps the random numbers that building draws from the rest of the run,
    so that one with distillation starts with the same student as one without.

    Args:
        student: The student.
        teachers: The teachers, one or more.
        options: The method's own options, an instance of its `Options`.

    Attributes:
        Options: Frozen dataclass of the method's options, validated, with a documented default each. The names are keys
            of `train`, so no two methods share one unless it means the same to both.
        needs_predictions: Whether the teachers must keep their heads.
        reads_stems: Whether it reads `DetectorOutput.stems` of the student.
        partial_classes: Whether it does with teachers that know some of the student's classes only, heeding
            `DetectorOutput.known`; for methods that read predictions.
        reads_labels: Whether it reads the labels of `forward`'s batch; it is then shown labelled images only.
        progress: Measures of `metrics()` that the progress line shows; the others are logged once an epoch.

    Raises:
        ValueError: If the method cannot learn from a teacher, which is named.
    """

    Options: ClassVar[type[BaseOptions]]
    needs_predictions: ClassVar[bool] = False
    reads_stems: ClassVar[bool] = False
    partial_classes: ClassVar[bool] = False
    reads_labels: bool = False
    progress: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, student: DetectorSpec, teachers: Sequence[DetectorSpec], options: Any) -> None:
        super().__init__()

    @abstractmethod
    def forward(
        self,
        student: DetectorOutput,
        teachers: Sequence[DetectorOutput],
        batch: Mapping[str, Any],
        *,
        head_loss: HeadLoss,
    ) -> dict[str, Term]:
        """Compute the terms of one batch.

        Args:
            student: The student's output, with gradient.
            teachers: The output of each teacher, without.
            batch: Labels as Ultralytics collates them: `cls` (N, 1), `bboxes` (N, 4) as centre, width and height in
                fractions of the image, and `batch_idx` (N,).
            head_loss: See `HeadLoss`.

        Returns:
            The terms by name, the same names at every call.
        """

    def metrics(self) -> dict[str, Tensor]:
        """Return measures of the last forward pass by name, detached scalars; none unless a method has any."""
        return {}

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Return what the log says of an epoch's mean measures, in a few words; nothing unless a method has any."""
        return ""

    def opponents(self) -> Sequence[Opponent]:
        """Return the adversaries; none unless a method has any."""
        return ()


def method_class(name: str) -> type[DistillMethod]:
    """Return the class of a method.

    Args:
        name: One of `METHODS`.

    Raises:
        ValueError: If there is no such method; the nearest is named.

    Examples:
        >>> method_class("meddet").needs_predictions
        False
        >>> method_class("medet")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: distill must be one of meddet, l2, ..., got 'medet': did you mean 'meddet'?
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 1)
        tail = f": did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"distill must be one of {', '.join(METHODS)}, got {name!r}{tail}")
    module, _, cls = METHODS[name].partition(":")
    return getattr(import_module(module), cls)
