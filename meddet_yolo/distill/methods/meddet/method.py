"""The MedDet method as one module: the student's and the teachers' maps in, named terms out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddet_yolo.distill.foreground import box_mask, foreground_weights
from meddet_yolo.distill.levels import match_teacher
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, DistillMethod, HeadLoss, Opponent, Term
from meddet_yolo.distill.methods.meddet.adversary import AdversarialAuxiliaryTeacher
from meddet_yolo.distill.methods.meddet.align import AdaptiveFeatureAlignment
from meddet_yolo.distill.methods.meddet.fusion import FUSIONS
from meddet_yolo.distill.methods.meddet.options import MedDetOptions
from meddet_yolo.distill.methods.meddet.reconstruction import ReconstructionGuard, linear_explained_variance
from meddet_yolo.distill.standardise import full_precision, standardise

__all__ = ["MedDet"]

SAMPLED_SIZE = 8
"""The reconstruction guard learns from a quarter of the positions of maps of this height and width or more."""


class MedDet(DistillMethod):
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

    Args:
        student: The student.
        teachers: The teachers, one or more, each with a level within a factor of 2 of every level of the student.
        options: The options.

    Raises:
        ValueError: If there is no teacher, or one has no counterpart for a level of the student.

    Examples:
        >>> student = DetectorSpec("student", [8, 16], [8, 16], nc=2, reg_max=16)
        >>> teachers = [DetectorSpec("small", [16, 32], [8, 16], 2, 16), DetectorSpec("large", [32, 32], [4, 8], 2, 16)]
        >>> method = MedDet(student, teachers, MedDetOptions())
        >>> maps = DetectorOutput([torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)])
        >>> small = DetectorOutput([torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)])
        >>> large = DetectorOutput([torch.randn(2, 32, 16, 16), torch.randn(2, 32, 8, 8)])
        >>> terms = method(maps, [small, large], {}, head_loss=lambda fused: fused[0].mean())
        >>> {name: term.weight for name, term in terms.items()}
        {'dist': 1.0, 'adv': 0.1, 'guard': 1.0}
    """

    Options = MedDetOptions
    progress = ("disc_acc", "fused_ev")

    def __init__(self, student: DetectorSpec, teachers: Sequence[DetectorSpec], options: MedDetOptions) -> None:
        """Match the levels and build the modules that the options ask for."""
        super().__init__(student, teachers, options)
        self.options = options
        self.reads_labels = options.foreground_weight > 0
        if not student.channels or not teachers:
            raise ValueError(
                f"Expected at least one level and one teacher, got a student with channels {student.channels} and "
                f"{len(teachers)} teachers. Name the teachers with teachers=[a.pt, ...]."
            )
        self._student = student
        self._teachers = list(teachers)
        self._levels = [match_teacher(student, teacher) for teacher in teachers]
        channels = [[t.channels[i] for i in levels] for t, levels in zip(teachers, self._levels, strict=True)]
        levels = list(zip(student.channels, zip(*channels, strict=True), strict=True))
        self.align = nn.ModuleList(
            nn.ModuleList(AdaptiveFeatureAlignment(t, s) for t in teachers) for s, teachers in levels
        )
        self.fusion = nn.ModuleList(FUSIONS[options.fusion](len(teachers), s) for s, teachers in levels)
        self.guard: nn.ModuleList | None = None
        self.student_align: nn.ModuleList | None = None
        self.adversary: AdversarialAuxiliaryTeacher | None = None
        if options.guard == "reconstruction":
            self.guard = nn.ModuleList(ReconstructionGuard(s, teachers) for s, teachers in levels)
        if options.dist_weight > 0 and options.guard != "detection":
            self.student_align = nn.ModuleList(nn.Conv2d(s, s, 1, bias=False) for s, _ in levels)
        if options.adv_weight > 0:
            self.adversary = AdversarialAuxiliaryTeacher(student.channels, options.disc_grid)
        self._metrics: dict[str, Tensor] = {}

    def forward(
        self,
        student: DetectorOutput,
        teachers: Sequence[DetectorOutput],
        batch: Mapping[str, Any],
        *,
        head_loss: HeadLoss,
    ) -> dict[str, Term]:
        """Compute the distillation terms of one batch; see `DistillMethod.forward`.

        `bboxes` and `batch_idx` of the batch are read when `foreground_weight` is above 0, `head_loss` with
        `guard: detection`.

        Returns:
            `dist`, `adv` and `guard`. A term that the options switch off is a plain zero.

        Raises:
            ValueError: The maps are not those the module was built for, or the labels that it needs are missing.
        """
        self._check(student, teachers)
        with torch.no_grad():
            matched = ([t.feats[i] for i in levels] for t, levels in zip(teachers, self._levels, strict=True))
            levels = zip(*matched, strict=True)
            known = [[standardise(x) for x in maps] for maps in levels]
        # The reconstruction guard trains alignment and fusion on a sample of the positions, which it fuses once more.
        learns = self.options.guard != "reconstruction" and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            fused = [self._fuse(i, maps, x) for i, (maps, x) in enumerate(zip(known, student.feats, strict=True))]
            target = [standardise(x) for x in fused]
        losses = dict.fromkeys(("dist", "adv", "guard"), target[0].new_zeros(()))

        if self.options.dist_weight > 0:
            weights = self._spatial_weights(batch, student.feats)
            taught = target if self.options.guard == "none" else [z.detach() for z in target]
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
        if self.options.guard == "detection":
            losses["guard"] = head_loss(fused)
        self._measure(fused, explained)
        options = self.options
        return {
            "dist": Term(losses["dist"], options.dist_weight),
            "adv": Term(losses["adv"], options.adv_weight),
            "guard": Term(losses["guard"], options.guard_weight, student=False, schedule=False),
        }

    def metrics(self) -> dict[str, Tensor]:
        """Return measures of the last forward pass as detached scalars.

        Returns:
            `disc_acc`, accuracy of the discriminators (0.5 is a draw), and `disc_loss`, their loss; `ev_t0`, `ev_t1`,
            ..., share of each teacher's variance that can be read linearly from the fused map, mean over levels (the
            measure of collapse); `fused_ev`, its mean over teachers; `fused_var`, variance of the fused map's channels
            before it is standardised, mean over channels and levels; `w_p3_t0`, ..., share of each teacher in the
            fusion at the level of stride 2^3, and so on.
        """
        return dict(self._metrics)

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Return the epoch's explained variance by teacher, shares in the fusion by level, and discriminator's loss."""
        parts = []
        variance = [f"{metrics[k]:.2f}" for k in sorted(metrics) if k.startswith("ev_t")]
        if variance:
            parts.append(f"explained variance {' '.join(variance)}")
        levels: dict[str, list[str]] = {}
        for name in sorted(k for k in metrics if k.startswith("w_p")):
            levels.setdefault(name.split("_")[1].upper(), []).append(f"{metrics[name]:.2f}")
        if levels:
            parts.append("fusion " + ", ".join(f"{level} {'/'.join(shares)}" for level, shares in levels.items()))
        if "disc_loss" in metrics:
            parts.append(f"discriminator loss {metrics['disc_loss']:.3f}")
        return " | ".join(parts)

    def opponents(self) -> Sequence[Opponent]:
        """Return the discriminators, all levels' as one; none without the adversarial term."""
        if self.adversary is None:
            return ()
        parameters = list(self.adversary.discriminator_parameters())
        return [Opponent("disc", parameters, self.adversary.discriminator_loss, self.options.disc_lr)]

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
        if len(teachers) != len(self._teachers):
            raise ValueError(f"Built for {len(self._teachers)} teachers, got the output of {len(teachers)}.")
        expected = [self._student, *self._teachers]
        for spec, output in zip(expected, [student, *teachers], strict=True):
            given = [x.shape[1] for x in output.feats]
            if given != spec.channels:
                raise ValueError(
                    f"{spec.name}: built for maps of {spec.channels} channels from fine to coarse, got maps of {given} "
                    "channels."
                )

    def _spatial_weights(self, batch: Mapping[str, Any], feats: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the weight of every position at each level, or None where all weigh the same."""
        share = self.options.foreground_weight
        if share == 0:
            return [None] * len(feats)
        if "bboxes" not in batch or "batch_idx" not in batch:
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
        for stride, fusion in zip(self._student.strides, self.fusion, strict=True):
            level = round(math.log2(stride))  # named as the field does: P3 is the level of stride 8
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
