"""The MedDet method as one module: the student's and the teachers' maps in, named losses out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.distill.foreground import box_mask, foreground_weights
from meddet_yolo.distill.methods.meddet.adversary import AdversarialAuxiliaryTeacher
from meddet_yolo.distill.methods.meddet.align import AdaptiveFeatureAlignment
from meddet_yolo.distill.methods.meddet.fusion import FUSIONS
from meddet_yolo.distill.methods.meddet.reconstruction import ReconstructionGuard, linear_explained_variance
from meddet_yolo.distill.standardise import full_precision, standardise

SAMPLED_SIZE = 8
"""The reconstruction guard learns from a quarter of the positions of maps of this height and width or more."""


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
    student's map is compared with the fused one by the mean squared error of the standardised maps (L_dist). A
    generator on the student's map plays against a discriminator (L_adv). The student never pulls the fused map towards
    itself: its gradient is stopped there, and alignment and fusion learn from the guard, except with `guard: none`,
    where nothing but L_dist trains them and the fused map is free to shrink to what the student finds easiest.
    `metrics()` shows when it does.

    With `guard: detection` the student's head reads both maps, so they share their channels and are compared as they
    are. With the other guards the fused channels come in no particular basis, and the student's map first goes through
    a 1x1 convolution of its own.

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
            if config.dist_weight > 0 and config.guard != "detection":
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
        detection_loss: Callable[[list[Tensor]], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the distillation losses of one batch.

        Args:
            student: The student's output.
            teachers: One output for each teacher, the levels matched to the student's. No gradient reaches them.
            batch: Labels as Ultralytics collates them; `bboxes` (N, 4) and `batch_idx` (N,) are read when
                `foreground_weight` is above 0.
            detection_loss: Detection loss of the student's head on the maps it is given, needed by `guard: detection`.

        Returns:
            Scalars `dist`, `adv` and `guard` in float32 with gradient, not weighted. All are means: they depend neither
            on the batch size nor on the size of the maps. A term that the configuration switches off is a plain zero.

        Raises:
            ValueError: The maps are not those the module was built for, or `batch` or `detection_loss` is missing.
        """
        self._check(student, teachers)
        with torch.no_grad():
            levels = zip(*(teacher.feats for teacher in teachers), strict=True)
            known = [[standardise(x) for x in maps] for maps in levels]
        # The reconstruction guard trains alignment and fusion on a sample of the positions, which it fuses once more.
        learns = self.config.guard != "reconstruction" and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            fused = [self._fuse(i, maps, x) for i, (maps, x) in enumerate(zip(known, student.feats, strict=True))]
            target = [standardise(x) for x in fused]
        losses = dict.fromkeys(("dist", "adv", "guard"), target[0].new_zeros(()))

        if self.config.dist_weight > 0:
            weights = self._spatial_weights(batch, student.feats)
            taught = target if self.config.guard == "none" else [z.detach() for z in target]
            learnt = student.feats
            if self.student_align is not None:
                learnt = [conv(x) for conv, x in zip(self.student_align, learnt, strict=True)]
            losses["dist"] = torch.stack(
                [_distance(standardise(x), z, w) for x, z, w in zip(learnt, taught, weights, strict=True)]
            ).mean()
        if self.adversary is not None:
            losses["adv"] = self.adversary.generator_loss(student.feats, target, standardised=True)
        if self.guard is not None:
            losses["guard"], explained, fused = self._reconstruct(known, student.feats)
        else:
            explained = _explained_variance(target, known)
        if self.config.guard == "detection":
            if detection_loss is None:
                raise ValueError(
                    "guard 'detection' needs the detection_loss of the student's head on the fused maps, and got None. "
                    "Hand it in, or use guard: reconstruction."
                )
            losses["guard"] = detection_loss(fused)
        self._measure(fused, explained)
        return losses

    def metrics(self) -> dict[str, Tensor]:
        """Return measures of the last forward pass as detached scalars.

        Returns:
            `disc_acc`, accuracy of the discriminators (0.5 is a draw), and `disc_loss`, their loss; `ev_t0`, `ev_t1`,
            ..., share of each teacher's variance that can be read linearly from the fused map, mean over levels (the
            measure of collapse); `fused_ev`, its mean over teachers; `fused_var`, variance of the fused map's channels
            before it is standardised, mean over channels and levels; `w_p0_t0`, ..., share of each teacher in the
            fusion at each level.
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

    def _fuse(self, level: int, maps: Sequence[Tensor], like: Tensor, step: int = 1) -> Tensor:
        """Fuse the teachers' standardised maps of one level.

        Args:
            level: Index of the level.
            maps: The teachers' maps, (B, C_t, H_t, W_t).
            like: The student's map, (B, C, H, W).
            step: Take every step-th position along both axes only.

        Returns:
            Fused map of shape (B, C, ceil(H / step), ceil(W / step)).
        """
        size = (like.shape[2], like.shape[3])
        aligned = []
        for align, x in zip(self.align[level], maps, strict=True):  # type: ignore[call-overload]  # a ModuleList
            if x.shape[-2:] == size:  # no pooling: choosing positions and aligning them may change places
                x = x[..., ::step, ::step]
                aligned.append(align(x, tuple(x.shape[-2:])))
            else:
                aligned.append(align(x, size)[..., ::step, ::step])
        return self.fusion[level](aligned)

    def _reconstruct(self, known: list[list[Tensor]], like: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the guard's loss, every teacher's explained variance (levels, teachers), and the maps they are of.

        Of large maps every second row and column is taken: what a 1x1 convolution has to learn is the same everywhere,
        and a quarter of the positions costs a quarter.
        """
        assert self.guard is not None
        losses, explained, fused = [], [], []
        for level, (guard, maps, x) in enumerate(zip(self.guard, known, like, strict=True)):
            step = 2 if min(x.shape[-2:]) >= SAMPLED_SIZE else 1
            fused.append(self._fuse(level, maps, x, step))
            with torch.no_grad():
                truth = [_resize(m, x)[..., ::step, ::step] for m in maps]
            loss, share = guard(standardise(fused[-1]), truth)
            losses.append(loss)
            explained.append(share)
        return torch.stack(losses).mean(), torch.stack(explained), fused

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

    @torch.no_grad()
    def _measure(self, fused: list[Tensor], explained: Tensor) -> None:
        """Keep the measures of this forward pass."""
        self._metrics = {f"ev_t{t}": ev for t, ev in enumerate(explained.mean(dim=0))}
        self._metrics["fused_ev"] = explained.mean()
        self._metrics["fused_var"] = torch.stack([_mean_variance(full_precision(x.detach())) for x in fused]).mean()
        if self.adversary is not None and self.adversary.accuracy is not None:
            self._metrics["disc_acc"] = self.adversary.accuracy
        for level, fusion in enumerate(self.fusion):
            for t, share in enumerate(fusion.weights()):  # type: ignore[operator]
                self._metrics[f"w_p{level}_t{t}"] = share
        if self.adversary is not None and self.adversary.loss is not None:
            self._metrics["disc_loss"] = self.adversary.loss


def _distance(student: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean squared difference of two standardised maps (B, C, H, W); `weights` (B, H, W) of positions."""
    if weights is None:  # not 2 (1 - r): a channel that is dead on both sides has no correlation, and is no difference
        return F.mse_loss(student, target)
    return ((student - target).square().mean(dim=1) * weights).sum()


@torch.no_grad()
def _explained_variance(fused: Sequence[Tensor], known: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return every teacher's explained variance at each level, (levels, teachers), for guards that have no decoders."""
    shares = [[linear_explained_variance(z, _resize(x, z)) for x in maps] for z, maps in zip(fused, known, strict=True)]
    return torch.stack([torch.stack(level) for level in shares])


def _mean_variance(x: Tensor) -> Tensor:
    """Return the variance of the channels of a map (B, C, H, W), mean over channels; `Tensor.var` is much slower."""
    mean_square = torch.linalg.vector_norm(x).square() / x.numel()
    return (mean_square - x.mean(dim=(0, 2, 3)).square().mean()).clamp_min(0)


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
