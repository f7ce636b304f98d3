"""Teachers' predictions on the student's grid, whatever their strides, image sizes and kinds of box output."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from meddet_yolo.distill.levels import match_teacher
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, DistillMethod, HeadLoss, Term

__all__ = [
    "Guidance",
    "PredictionMethod",
    "PredictionReader",
    "corners",
    "distances",
    "rebin",
    "resample",
    "score_errors",
    "spread",
]


@dataclass(frozen=True)
class Guidance:
    """What teachers say at each of the student's A anchors, float32 and without gradient.

    Attributes:
        scores: Probability of each class, (B, nc, A); 0 for a class that no teacher knows.
        known: Which classes any of the teachers knows, (nc,) booleans.
        distances: From the anchor to the box's sides left, top, right, bottom, in cells of the student's level,
            (B, 4, A).
        bins: The same as distributions over the student's bins, (B, 4, reg_max, A); None where the student has none.
    """

    scores: Tensor
    known: Tensor
    distances: Tensor
    bins: Tensor | None

    @property
    def confidence(self) -> Tensor:
        """The top class score at each anchor, (B, A)."""
        return self.scores.amax(1)

    def most_confident(self, share: float) -> Guidance:
        """Return the same with all scores set to 0 but those of the anchors with the highest confidence of the batch.

        Args:
            share: Share of the anchors that keep theirs, in (0, 1]; at least one does, and all that are equal to it.

        Examples:
            >>> scores = torch.tensor([[[0.1, 0.9, 0.5, 0.2]]])
            >>> told = Guidance(scores, torch.tensor([True]), torch.zeros(1, 4, 4), None)
            >>> told.most_confident(0.5).confidence
            tensor([[0.0000, 0.9000, 0.5000, 0.0000]])
        """
        if share >= 1:
            return self
        confidence = self.confidence
        least = confidence.flatten().topk(max(1, round(share * confidence.numel()))).values[-1]
        return replace(self, scores=self.scores * (confidence >= least)[:, None])

    @property
    def total(self) -> Tensor:
        """The sum of all confidences, at least 1: what stands for the number of objects, as a scalar."""
        return self.confidence.sum().clamp(min=1.0)


def distances(boxes: Tensor, reg_max: int) -> Tensor:
    """Return the distances (B, 4, A), in cells, that box predictions (B, 4 * reg_max, A) stand for.

    Examples:
        >>> distances(torch.zeros(1, 4 * 3, 1), 3).flatten()
        tensor([1., 1., 1., 1.])
    """
    boxes = boxes.float()
    if reg_max == 1:
        return boxes
    places = torch.arange(reg_max, device=boxes.device, dtype=boxes.dtype).view(-1, 1)
    return (boxes.unflatten(1, (4, reg_max)).softmax(2) * places).sum(2)


def corners(sides: Tensor) -> Tensor:
    """Turn distances (N, 4) into boxes (N, 4), corners x1, y1, x2, y2 seen from the anchor, which lies at (0, 0).

    Two boxes of one anchor overlap as they do in the image. Boxes of no size get a small one: heads without
    distributions may give negative distances, at which the aspect ratio of CIoU is undefined.

    Examples:
        >>> corners(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[-1., -2.,  3.,  4.]])
    """
    first, second = -sides[:, :2], sides[:, 2:]
    return torch.cat([first, torch.maximum(second, first + 1e-3)], dim=1)


def spread(values: Tensor, reg_max: int) -> Tensor:
    """Share each distance between its two neighbouring bins, as the targets of the distribution focal loss.

    Args:
        values: Distances in cells, any shape (B, 4, ...); what the bins cannot hold goes to the nearest end.
        reg_max: Number of bins.

    Returns:
        Distributions of shape (B, 4, reg_max, ...), whose means are the distances.

    Examples:
        >>> spread(torch.full((1, 4, 1), 1.25), 4)[0, 0, :, 0]
        tensor([0.0000, 0.7500, 0.2500, 0.0000])
    """
    values = values.clamp(0, reg_max - 1)
    places = torch.arange(reg_max, device=values.device, dtype=values.dtype)
    return (1 - (values.unsqueeze(2) - places.view(-1, *[1] * (values.dim() - 2))).abs()).clamp(min=0)


def rebin(bins: Tensor, ratio: float, reg_max: int) -> Tensor:
    """Carry distributions over to bins of another size or number.

    Each bin's probability goes to where its distance lies among the new bins, shared between the two neighbours (our
    own decision); with the same bins nothing changes.

    Args:
        bins: Distributions of shape (B, 4, R, ...).
        ratio: Size of one of their bins over that of a new one.
        reg_max: Number of new bins.

    Returns:
        Distributions of shape (B, 4, reg_max, ...).

    Examples:
        >>> rebin(torch.tensor([0.0, 1.0, 0.0]).view(1, 1, 3, 1), 1.5, 4).flatten()
        tensor([0.0000, 0.5000, 0.5000, 0.0000])
    """
    if ratio == 1 and bins.shape[2] == reg_max:
        return bins
    places = torch.arange(bins.shape[2], device=bins.device, dtype=bins.dtype) * ratio
    return torch.einsum("bsr...,nr->bsn...", bins, spread(places.view(1, 1, -1), reg_max)[0, 0])


class PredictionReader:
    """Reads the predictions of teachers as guidance on the student's grid.

    Each of the student's levels reads the teacher's level that matches it. Where the sizes of the two differ,
    probabilities, distances and distributions are resampled bilinearly. Distances are scaled by the ratio of the
    strides.

    Args:
        method: Name of the method, for messages.
        student: The student.
        teachers: The teachers.

    Raises:
        ValueError: If the student has no dense predictions, or a level has no counterpart.
    """

    def __init__(self, method: str, student: DetectorSpec, teachers: Sequence[DetectorSpec]) -> None:
        if student.reg_max == 0:
            raise ValueError(
                f"distill={method} teaches a student's dense predictions, and {student.name} has none; use a student "
                "of the YOLO family, or a method that reads feature maps only"
            )
        self._reg_max = student.reg_max
        self._teachers = [
            (
                teacher.reg_max,
                [
                    (level, teacher.strides[level] / stride)
                    for level, stride in zip(match_teacher(student, teacher), student.strides, strict=True)
                ],
            )
            for teacher in teachers
        ]

    @torch.no_grad()
    def each(
        self, student: DetectorOutput, teachers: Sequence[DetectorOutput], temperature: float = 1.0
    ) -> list[Guidance]:
        """Return the guidance of every teacher.

        Args:
            student: The student's output, of which the sizes of the maps are read.
            teachers: The teachers' outputs, with predictions.
            temperature: What the logits of the box distributions are divided by.
        """
        with torch.autocast(student.feats[0].device.type, enabled=False):
            return [
                self._read(student, output, reg_max, levels, temperature)
                for output, (reg_max, levels) in zip(teachers, self._teachers, strict=True)
            ]

    def together(
        self, student: DetectorOutput, teachers: Sequence[DetectorOutput], temperature: float = 1.0
    ) -> Guidance:
        """Return the mean of the teachers' guidance, see `each`.

        A class's probability is the mean of the teachers that know it. Boxes are weighted by each teacher's top score
        at the place, since that of a teacher which sees nothing there means nothing (our own decision).
        """
        given = self.each(student, teachers, temperature)
        if len(given) == 1:
            return given[0]
        known = torch.stack([g.known for g in given]).float()
        scores = torch.stack([g.scores for g in given])
        means = (scores * known[:, None, :, None]).sum(0) / known.sum(0).clamp(min=1)[:, None]
        shares = torch.stack([g.confidence for g in given]).clamp(min=1e-9)
        shares = shares / shares.sum(0)  # (T, B, A)
        sides = torch.stack([g.distances for g in given])
        bins = [g.bins for g in given if g.bins is not None]
        return Guidance(
            means,
            known.sum(0) > 0,
            (sides * shares[:, :, None]).sum(0),
            (torch.stack(bins) * shares[:, :, None, None]).sum(0) if bins else None,
        )

    def _read(
        self,
        student: DetectorOutput,
        output: DetectorOutput,
        reg_max: int,
        levels: list[tuple[int, float]],
        temperature: float,
    ) -> Guidance:
        assert output.logits is not None and output.boxes is not None  # needs_predictions
        nc = output.logits.shape[1]
        known = output.known if output.known is not None else output.logits.new_ones(nc, dtype=torch.bool)
        logits, boxes = output.by_level(output.logits.float()), output.by_level(output.boxes.float())
        scores, sides, bins = [], [], []
        for x, (level, ratio) in zip(student.feats, levels, strict=True):
            size = (x.shape[2], x.shape[3])
            scores.append(resample(logits[level].sigmoid() * known[:, None, None], size).flatten(2))
            flat = boxes[level].flatten(2)
            side = distances(flat, reg_max) * ratio
            sides.append(resample(side.unflatten(2, tuple(boxes[level].shape[2:])), size).flatten(2))
            if self._reg_max == 1:
                continue
            if reg_max == 1:
                part = spread(side, self._reg_max)
            else:
                part = rebin((flat.unflatten(1, (4, reg_max)) / temperature).softmax(2), ratio, self._reg_max)
            part = part.flatten(1, 2).unflatten(2, tuple(boxes[level].shape[2:]))
            bins.append(resample(part, size).flatten(2).unflatten(1, (4, self._reg_max)))
        return Guidance(torch.cat(scores, 2), known, torch.cat(sides, 2), torch.cat(bins, 3) if bins else None)


class PredictionMethod(DistillMethod):
    """A method that compares the student's predictions with what its teachers say together at the same anchors.

    Args:
        student: The student.
        teachers: The teachers.
        options: The method's options.

    Attributes:
        name: What `distill` calls it, for messages.
        temperature: What the logits of the teachers' box distributions are divided by.

    Raises:
        ValueError: If the student has no dense predictions, or a level has no counterpart.
    """

    needs_predictions = True
    partial_classes = True
    name: ClassVar[str]
    temperature: float = 1.0

    def __init__(self, student: DetectorSpec, teachers: Sequence[DetectorSpec], options: Any) -> None:
        super().__init__(student, teachers, options)
        self.options = options
        self._reg_max = student.reg_max
        self._read = PredictionReader(self.name, student, teachers)

    def forward(
        self,
        student: DetectorOutput,
        teachers: Sequence[DetectorOutput],
        batch: Mapping[str, Any],
        *,
        head_loss: HeadLoss,
    ) -> dict[str, Term]:
        """Read the teachers and compute the terms; see `DistillMethod.forward`."""
        return self.terms(student, self._read.together(student, teachers, self.temperature), batch)

    @abstractmethod
    def terms(self, student: DetectorOutput, guidance: Guidance, batch: Mapping[str, Any]) -> dict[str, Term]:
        """Compute the terms.

        Args:
            student: The student's output, with gradient.
            guidance: What the teachers say.
            batch: Labels, see `DistillMethod.forward`.
        """


def score_errors(logits: Tensor, guidance: Guidance) -> tuple[Tensor, Tensor]:
    """Compare scores: binary cross-entropy times the distance of the probabilities, and that distance.

    The product is the quality focal loss with exponent 1 (Li et al., GFL, NeurIPS 2020, eq. 5) with soft labels.

    Args:
        logits: The student's, (B, nc, A).
        guidance: What the teachers say.

    Returns:
        Both of shape (B, nc, A), 0 for classes that no teacher knows.

    Examples:
        >>> told = Guidance(torch.full((1, 1, 1), 0.5), torch.tensor([True]), torch.zeros(1, 4, 1), None)
        >>> [part.item() for part in score_errors(torch.zeros(1, 1, 1), told)]
        [0.0, 0.0]
    """
    logits = logits.float()
    apart = (logits.sigmoid() - guidance.scores).abs() * guidance.known[:, None]
    return apart * F.binary_cross_entropy_with_logits(logits, guidance.scores, reduction="none"), apart


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map (B, K, H, W) to a height and width, bilinearly."""
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
