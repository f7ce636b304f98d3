"""Focal and global distillation (FGD): objects and background apart, where the teachers attend, and their relations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meddet_yolo.distill.foreground import box_mask
from meddet_yolo.distill.maps import MapMethod
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, Term
from meddet_yolo.distill.options import Options, number
from meddet_yolo.distill.standardise import full_precision, standardise

__all__ = ["FGD", "FGDOptions"]


@dataclass(frozen=True, kw_only=True)
class FGDOptions(Options):
    """Options of `distill=fgd`.

    Attributes:
        fgd_weight: Weight of the whole, at least 0.
        fgd_foreground: The paper's alpha, of the features inside boxes, at least 0; 1e-3 times 256 channels there.
        fgd_background: Its beta, of the features outside, at least 0; 5e-4 times 256 channels there.
        fgd_attention: Its gamma, of the attention, at least 0; 5e-4 times the 1050 positions of the middle level there.
        fgd_global: Its lambda, of the relations, at least 0; 5e-6 times 256 channels and 1050 positions there.
        fgd_temperature: Temperature of the attention, above 0.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    fgd_weight: float = 1.0
    fgd_foreground: float = 0.25
    fgd_background: float = 0.125
    fgd_attention: float = 0.5
    fgd_global: float = 1.3
    fgd_temperature: float = 0.5

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        for key in ("fgd_weight", "fgd_foreground", "fgd_background", "fgd_attention", "fgd_global"):
            self.put(key, number(key, getattr(self, key), low=0))
        self.put("fgd_temperature", number("fgd_temperature", self.fgd_temperature, low=0, open_low=True))


class ContextBlock(nn.Module):
    """The relation of positions by a global-context block (Cao et al., GCNet, 2019), the R of FGD.

        R(F) = F + W2(ReLU(LN(W1(sum_x softmax_x(w F)(x) F(x)))))

    Args:
        channels: Number of channels of the map.

    Examples:
        >>> ContextBlock(8)(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.change = nn.Sequential(
            nn.Conv2d(channels, inner, 1),
            nn.LayerNorm([inner, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, 1),
        )
        for parameter in self.change[-1].parameters():
            nn.init.zeros_(parameter)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with what the whole of it says added at every position; (B, C, H, W) both."""
        weights = self.mask(x).float().flatten(2).softmax(2)  # (B, 1, HW)
        context = (x.flatten(2) * weights).sum(2)[:, :, None, None]
        return x + self.change(context)


class FGD(MapMethod):
    """Focal and global distillation (Yang et al., CVPR 2022, arXiv 2111.11837).

    At one level, with the student's map S, the teacher's T and F either of them:

        A_s = HW softmax(mean_c |F| / tau),  A_c = C softmax(mean_x |F| / tau)
        L_fea = sum_x W(x) A_s(x) mean_c A_c(c) (T - S)^2
        L_at = mean |A_s(T) - A_s(S)| + mean |A_c(T) - A_c(S)|
        L_global = mean (R(T) - R(S))^2

    W(x) is alpha over the area, in positions, of the smallest box at x; outside all boxes it is beta over the number of
    such positions of the image. The loss is L_fea + gamma L_at + lambda L_global, mean over images, levels and
    teachers. R is a global-context block, one for student and one for teacher, which both learn. The paper sums where
    these are means over channels and positions, of maps as they are; ours are standardised, S after a 1x1 convolution,
    and the weights converted (our own decision), so that neither scale nor size of the maps moves them.

    Examples:
        >>> student = DetectorSpec("student", [8], [8], nc=2, reg_max=16)
        >>> method = FGD(student, [DetectorSpec("a.pt", [16], [8], nc=2, reg_max=16)], FGDOptions())
        >>> small, large = DetectorOutput([torch.randn(2, 8, 4, 4)]), DetectorOutput([torch.randn(2, 16, 4, 4)])
        >>> labels = {"bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]), "batch_idx": torch.zeros(1)}
        >>> sorted(method(small, [large], labels, head_loss=lambda maps: maps[0].mean()))
        ['fgd']
    """

    Options = FGDOptions
    reads_labels = True

    def __init__(self, student: DetectorSpec, teachers: Sequence[DetectorSpec], options: FGDOptions) -> None:
        """Match the levels; build a projection and two context blocks for each."""
        super().__init__(student, teachers, options)
        self.own = nn.ModuleList(ContextBlock(channels) for channels in self.pairs)
        self.theirs = nn.ModuleList(ContextBlock(channels) for channels in self.pairs)

    def terms(
        self, pairs: Sequence[tuple[Tensor, Tensor]], teachers: Sequence[DetectorOutput], batch: Mapping[str, Any]
    ) -> dict[str, Term]:
        """Compute the one term, `fgd`."""
        o = self.options
        losses, weights = [], {}
        for own, other, (x, target) in zip(self.own, self.theirs, pairs, strict=True):
            s, t = standardise(x), standardise(target)
            shape = (s.shape[0], s.shape[2], s.shape[3])
            if shape not in weights:
                weights[shape] = focal_weights(batch, shape, o.fgd_foreground, o.fgd_background)
            (s_place, s_channel), (t_place, t_channel) = (attention(m, o.fgd_temperature) for m in (s, t))
            error = ((t - s).square() * t_channel[:, :, None, None]).mean(1) * t_place
            focal = (error * weights[shape]).sum() / shape[0]
            attend = (t_place - s_place).abs().mean() + (t_channel - s_channel).abs().mean()
            relations = full_precision(other(t)) - full_precision(own(s))
            losses.append(focal + o.fgd_attention * attend + o.fgd_global * relations.square().mean())
        return {"fgd": Term(torch.stack(losses).mean(), o.fgd_weight)}


def attention(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the attention of a map (B, C, H, W) to positions (B, H, W) and channels (B, C), means of 1 an image."""
    size = x.abs()
    place = (size.mean(1).flatten(1) / temperature).softmax(1) * size[0, 0].numel()
    return place.view(x.shape[0], *x.shape[2:]), (size.mean((2, 3)) / temperature).softmax(1) * x.shape[1]


def focal_weights(
    batch: Mapping[str, Any], shape: tuple[int, int, int], foreground: float, background: float
) -> Tensor:
    """Return the weight of each position (B, H, W): foreground by the area of its box, background by its size.

    Args:
        batch: Labels, see `DistillMethod.forward`.
        shape: Batch size, height and width of the map.
        foreground: Sum of the weights inside a box that no smaller one overlaps.
        background: Sum of the weights outside all boxes of an image.

    Examples:
        >>> labels = {"bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]), "batch_idx": torch.zeros(1)}
        >>> focal_weights(labels, (1, 4, 4), 1.0, 1.2)[0, :2]
        tensor([[0.1000, 0.1000, 0.1000, 0.1000],
                [0.1000, 0.2500, 0.2500, 0.1000]])
    """
    boxes, image = batch["bboxes"], batch["batch_idx"].reshape(-1)
    one_each = torch.arange(len(boxes), device=boxes.device)
    masks = box_mask(boxes, one_each, (len(boxes), *shape[1:])).float()  # (N, H, W)
    areas = masks.sum((1, 2), keepdim=True).clamp(min=1)
    weights = torch.zeros(shape, device=boxes.device)
    index = image.to(boxes.device, torch.long)[:, None, None].expand_as(masks)
    weights = weights.scatter_reduce(0, index, masks * foreground / areas, "amax")
    outside = weights == 0 if foreground else ~box_mask(boxes, image, shape)
    return torch.where(outside, background / outside.sum((1, 2), keepdim=True).clamp(min=1), weights)
