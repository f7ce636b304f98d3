"""The MedDet method as one module: the student's and the teachers' maps in, named losses out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddet_yolo.distill.adversary import AdversarialAuxiliaryTeacher
from meddet_yolo.distill.align import AdaptiveFeatureAlignment
from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.distill.foreground import box_mask, foreground_weights
from meddet_yolo.distill.fusion import FUSIONS
from meddet_yolo.distill.reconstruction import ReconstructionGuard, linear_explained_variance
from meddet_yolo.distill.standardise import full_precision, standardise


@dataclass
class DetectorOutput:
    """What a distillation method sees of one detector.

    Attributes:
        feats: Maps of the neck, (B, C_l, H_l, W_l) for each level, from fine to coarse.
    """

    feats: list[Tensor]


class MedDetDistiller(nn.Module):
    """Alignment, fusion, guard, distillation loss and adversary of the MedDet method (arXiv 2409.00204).

    At every level the teachers' maps are standardised, aligned to the student's shape (AFA) and fused (LWFF). The
    student's map, through a 1x1 convolution of its own because the fused channels come in no particular basis, is
    compared with the fused one by the mean squared error of the standardised maps (L_dist). A generator on the
    student's map plays against a discriminator (L_adv). The student never pulls the fused map towards itself: its
    gradient is stopped there, and alignment and fusion learn from the guard, except with `guard: none`, where nothing
    but L_dist trains them and the fused map is free to shrink to what the student finds easiest. `metrics()` shows when
    it does.

    Modules that a configuration does not use are not built, and building draws nothing from the global random state, so
    a run with distillation starts with the same student as one without.

    Args:
        student_channels: Channels of the student's maps, from fine to coarse.
        teacher_channels: For every teacher the channels of the map matched to each of the student's levels.
        config: The options.

    Raises:
        ValueError: No level, no teacher, or a teacher with another number of levels than the student.

    Examples:
        >>> distiller = MedDetDistiller([8, 16], [[16, 32], [32, 32]], DistillConfig())
        >>> student = DetectorOutput([torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)])
        >>> small = DetectorOutput([torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)])
        >>> large = DetectorOutput([torch.randn(2, 32, 16, 16), torch.randn(2, 32, 8, 8)])
        >>> sorted(distiller(student, [small, large]))
        ['adv', 'dist', 'guard']
        >>> distiller.discriminator_loss().requires_grad
        True
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[Sequence[int]], config: DistillConfig
    ) -> None:
        """Build the modules that the configuration asks for."""
        super().__init__()
        self.student_channels = [int(c) for c in student_channels]
        self.teacher_channels = [[int(c) for c in channels] for channels in teacher_channels]
        self.config = config
        if not self.student_channels or not self.teacher_channels:
            raise ValueError(
                f"Expected at least one level and one teacher, got student channels {self.student_channels} and "
                f"teacher channels {self.teacher_channels}. Name the teachers with teachers=[a.pt, ...]."
            )
        for t, channels in enumerate(self.teacher_channels):
            if len(channels) != len(self.student_channels):
                raise ValueError(
                    f"Teacher {t} has channels for {len(channels)} levels {channels}, the student has "
                    f"{len(self.student_channels)} levels {self.student_channels}. Give one matched level for each, "
                    "see match_levels()."
                )
        levels = list(zip(self.student_channels, zip(*self.teacher_channels, strict=True), strict=True))
        with torch.random.fork_rng(devices=[]):
            self.align = nn.ModuleList(
                nn.ModuleList(AdaptiveFeatureAlignment(t, s) for t in teachers) for s, teachers in levels
            )
            self.fusion = nn.ModuleList(FUSIONS[config.fusion](len(teachers), s) for s, teachers in levels)
            self.guard: nn.ModuleList | None = None
            self.student_align: nn.ModuleList | None = None
            self.adversary: AdversarialAuxiliaryTeacher | None = None
            if config.guard == "reconstruction":
                self.guard = nn.ModuleList(ReconstructionGuard(s, teachers) for s, teachers in levels)
            if config.dist_weight > 0:
                self.student_align = nn.ModuleList(nn.Conv2d(s, s, 1, bias=False) for s, _ in levels)
            if config.adv_weight > 0:
                self.adversary = AdversarialAuxiliaryTeacher(self.student_channels, config.disc_grid)
        self._metrics: dict[str, Tensor] = {}

    def forward(
        self,
        student: DetectorOutput,
        teachers: Sequence[DetectorOutput],
        batch: Mapping[str, Any] | None = None,
        *,
        progress: float = 1.0,
        detection_loss: Callable[[list[Tensor]], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the distillation losses of one batch.

        Args:
            student: The student's output.
            teachers: One output for each teacher, the levels matched to the student's. No gradient reaches them.
            batch: Labels as Ultralytics collates them; `bboxes` (N, 4) and `batch_idx` (N,) are read when
                `foreground_weight` is above 0.
            progress: Share of training that is done, in [0, 1]. Methods share one signature; this one has no use for
                it.
            detection_loss: Detection loss of the student's head on the maps it is given, needed by `guard: detection`.

        Returns:
            Scalars `dist`, `adv` and `guard` in float32 with gradient, not weighted. All are means: they depend neither
            on the batch size nor on the size of the maps. A term that the configuration switches off is a plain zero.

        Raises:
            ValueError: The maps are not those the module was built for, or `batch` or `detection_loss` is missing.
        """
        self._check(student, teachers)
        with torch.no_grad():
            known = [
                [standardise(x) for x in maps] for maps in zip(*(teacher.feats for teacher in teachers), strict=True)
            ]
        fused = [self._fuse(level, maps, x) for level, (maps, x) in enumerate(zip(known, student.feats, strict=True))]
        target = [standardise(x) for x in fused]
        free = self.config.guard == "none"  # nothing but L_dist trains the fused map
        zero = target[0].new_zeros(())
        losses = {"dist": zero, "adv": zero, "guard": zero}

        if self.student_align is not None:
            weights = self._spatial_weights(batch, student.feats)
            losses["dist"] = torch.stack(
                [
                    _distance(standardise(conv(x)), z if free else z.detach(), w)
                    for conv, x, z, w in zip(self.student_align, student.feats, target, weights, strict=True)
                ]
            ).mean()
        if self.adversary is not None:
            losses["adv"] = self.adversary.generator_loss(student.feats, target, standardised=True)
        losses["guard"], explained = self._guard(fused, target, known, detection_loss, zero)
        self._measure(fused, explained)
        return losses

    def metrics(self) -> dict[str, Tensor]:
        """Return measures of the last forward pass as detached scalars.

        Returns:
            `disc_acc`, accuracy of the discriminators (0.5 is a draw); `ev_t0`, `ev_t1`, ..., share of each teacher's
            variance that can be read linearly from the fused map, mean over levels (the measure of collapse);
            `fused_ev`, its mean over teachers; `fused_var`, variance of the fused map's channels before it is
            standardised, mean over channels and levels; `w_p0_t0`, ..., share of each teacher in the fusion at each
            level.
        """
        return dict(self._metrics)

    def discriminator_loss(self) -> Tensor:
        """Return the loss of the discriminators on the last forward pass, and forget that pass.

        Returns:
            Scalar in float32, computed outside autocast on detached features. Its gradient reaches the discriminators
            only.

        Raises:
            RuntimeError: The configuration has no adversary, or there was no forward pass since the last call.
        """
        if self.adversary is None:
            raise RuntimeError(
                "There is no discriminator because adv_weight is 0. Set adv_weight above 0 to train one."
            )
        return self.adversary.discriminator_loss()

    def main_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters that learn in the student's optimizer: all but the discriminators'."""
        excluded = {id(p) for p in self.discriminator_parameters()}
        return (p for p in self.parameters() if id(p) not in excluded)

    def discriminator_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of the discriminators; none without an adversary."""
        return iter(()) if self.adversary is None else self.adversary.discriminator_parameters()

    def _fuse(self, level: int, maps: Sequence[Tensor], like: Tensor) -> Tensor:
        """Align the teachers' standardised maps of one level to the shape of the student's, and fuse them."""
        size = (like.shape[2], like.shape[3])
        aligns: Iterable[nn.Module] = self.align[level]  # type: ignore[assignment]  # a ModuleList
        return self.fusion[level]([align(x, size) for align, x in zip(aligns, maps, strict=True)])

    def _check(self, student: DetectorOutput, teachers: Sequence[DetectorOutput]) -> None:
        """Check that the maps are those the module was built for."""
        if len(teachers) != len(self.teacher_channels):
            raise ValueError(f"Built for {len(self.teacher_channels)} teachers, got the output of {len(teachers)}.")
        expected = [self.student_channels, *self.teacher_channels]
        for index, (output, channels) in enumerate(zip([student, *teachers], expected, strict=True)):
            given = [x.shape[1] for x in output.feats]
            if given != channels:
                who = f"Teacher {index - 1}" if index else "Student"
                raise ValueError(
                    f"{who}: built for maps of {channels} channels from fine to coarse, got maps of {given} channels. "
                    "Hand in the levels that were matched when the module was built."
                )

    def _spatial_weights(self, batch: Mapping[str, Any] | None, feats: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the weight of every position at each level, or None where all weigh the same."""
        share = self.config.foreground_weight
        if share == 0:
            return [None] * len(feats)
        if batch is None or "bboxes" not in batch or "batch_idx" not in batch:
            raise ValueError(
                "foreground_weight is above 0, so the batch with its 'bboxes' and 'batch_idx' must be given."
            )
        boxes, image = (batch[key].to(feats[0].device) for key in ("bboxes", "batch_idx"))
        return [foreground_weights(box_mask(boxes, image, (x.shape[0], x.shape[2], x.shape[3])), share) for x in feats]

    def _guard(
        self,
        fused: list[Tensor],
        target: list[Tensor],
        known: list[list[Tensor]],
        detection_loss: Callable[[list[Tensor]], Tensor] | None,
        zero: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the guard's loss, and every teacher's explained variance at each level, (levels, teachers)."""
        with torch.no_grad():
            known = [[_resize(x, z) for x in maps] for maps, z in zip(known, target, strict=True)]
        if self.guard is not None:
            pairs = [guard(z, maps) for guard, z, maps in zip(self.guard, target, known, strict=True)]
            return torch.stack([loss for loss, _ in pairs]).mean(), torch.stack([ev for _, ev in pairs])
        explained = torch.stack(
            [
                torch.stack([linear_explained_variance(z, x) for x in maps])
                for z, maps in zip(target, known, strict=True)
            ]
        )
        if self.config.guard == "none":
            return zero, explained
        if detection_loss is None:
            raise ValueError(
                "guard 'detection' needs the detection_loss of the student's head on the fused maps, and got None. "
                "Hand it in, or use guard: reconstruction."
            )
        return detection_loss(fused), explained

    @torch.no_grad()
    def _measure(self, fused: list[Tensor], explained: Tensor) -> None:
        """Keep the measures of this forward pass."""
        self._metrics = {f"ev_t{t}": ev for t, ev in enumerate(explained.mean(dim=0))}
        self._metrics["fused_ev"] = explained.mean()
        variance = [full_precision(x.detach()).var(dim=(0, 2, 3), unbiased=False).mean() for x in fused]
        self._metrics["fused_var"] = torch.stack(variance).mean()
        if self.adversary is not None:
            self._metrics["disc_acc"] = self.adversary.accuracy()
        for level, fusion in enumerate(self.fusion):
            for t, share in enumerate(fusion.weights()):  # type: ignore[operator]
                self._metrics[f"w_p{level}_t{t}"] = share


def _distance(student: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean squared difference of two maps (B, C, H, W), positions weighed by `weights` (B, H, W)."""
    if weights is None:
        return F.mse_loss(student, target)
    return ((student - target).square().mean(dim=1) * weights).sum()


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Bring a standardised map to the size of another, standardised again where that changes it."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return standardise(F.adaptive_avg_pool2d(x, (like.shape[2], like.shape[3])))


def match_levels(student_strides: Sequence[float], teacher_strides: Sequence[float]) -> list[int]:
    """Find, for every pyramid level of the student, the level of the teacher that it learns from.

    The level of the same stride is taken where there is one; otherwise the nearest within a factor of 2, the finer of
    two that are equally near (our own decision: pooling loses less than repetition invents).

    Args:
        student_strides: Strides of the student's maps, as pixels of the student's input for each cell.
        teacher_strides: Strides of the teacher's maps in the same unit: a teacher with an input of its own size has its
            strides multiplied by student size over teacher size.

    Returns:
        One index into `teacher_strides` for each of `student_strides`.

    Raises:
        ValueError: A student's level has no teacher's level within a factor of 2.

    Examples:
        >>> match_levels([8, 16, 32], [4, 8, 16, 32, 64])
        [1, 2, 3]
        >>> match_levels([8, 16, 32, 64], [8, 16, 32])
        [0, 1, 2, 2]
    """
    student, teacher = [float(s) for s in student_strides], [float(s) for s in teacher_strides]
    if not teacher or not student or min(student + teacher) <= 0:
        raise ValueError(f"Expected lists of positive strides, got student {student} and teacher {teacher}.")
    indices = []
    for stride in student:
        # sort key: how far in ratio (1 is exact), then the finer stride
        ratio, _, index = min((max(stride / t, t / stride), t, i) for i, t in enumerate(teacher))
        if ratio > 2 + 1e-6:
            raise ValueError(
                f"The student's level of stride {stride:g} has no counterpart in the teacher: student strides "
                f"{[f'{s:g}' for s in student]}, teacher strides {[f'{t:g}' for t in teacher]}, and the nearest may "
                "differ by a factor of 2 at most. Use a teacher with that level (for example a P2 or P6 variant), a "
                "student without it, or change the teacher's input size with teacher_imgsz."
            )
        indices.append(index)
    return indices
