"""The GFL detector's neck and head: a feature pyramid of five levels, and towers that all levels share.

Neck: Lin et al., "Feature Pyramid Networks for Object Detection" (CVPR 2017), with P6 and P7 made from P5. Head: Li et
al., "Generalized Focal Loss" (NeurIPS 2020). Both in the form in which the MedDet paper's parameter counts come out
(docs/gfl.md). The places that nmODE² takes in the head, `inject`, are our own decision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.nn.modules import Detect

from meddet_yolo.nn.gfl.loss import GFLCriterion
from meddet_yolo.nn.nmode.forms import NmODE2Beside, NmODE2Gate
from meddet_yolo.nn.nmode.layers import NmODE2Activation
from meddet_yolo.nn.nmode.start import start_on_flank

__all__ = ["FPN", "GFLDetect"]

# Those of `nn.heads`, which cannot be imported here: importing it imports this file, by way of Ultralytics.
BRANCHES = ("cls", "reg")
INJECTIONS = ("beside", "gate", "act", "conv")
GROUPS = 32  # of the group normalisation
PRIOR = 0.01  # probability of an object that the class bias starts with
LARGEST_PADDING = 32  # the input's sides need be multiples of this alone: P6 and P7 take any size


class FPN(nn.Module):
    """Feature pyramid: the backbone's maps brought to one width, coarse added to fine, and coarser levels appended.

    Args:
        in_channels: Channels of the backbone's maps, fine to coarse.
        channels: Channels of every level.
        levels: Number of levels; those beyond the backbone's are 3x3 convolutions of stride 2 on the level before.
        nmode: Put nmODE², standardised and without parameters, behind each level, as in `Backbone`.

    Raises:
        ValueError: If there is no map, or there are fewer levels than maps.

    Examples:
        >>> import torch
        >>> maps = [torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4), torch.zeros(1, 32, 2, 2)]
        >>> [tuple(level.shape) for level in FPN([8, 16, 32], channels=64)(maps)][-2:]
        [(1, 64, 1, 1), (1, 64, 1, 1)]
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, levels: int = 5, nmode: bool = False) -> None:
        super().__init__()
        if not in_channels or levels < len(in_channels):
            raise ValueError(
                f"FPN needs at least one map and as many levels as maps, got {len(in_channels)} maps, {levels} levels"
            )
        self.channels = channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extra = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(levels - len(in_channels))
        )
        if nmode:
            self.nmode = NmODE2Activation(standardise=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]  # it has a bias

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn maps (B, C_l, H_l, W_l), each half as high and wide as the one before, into the pyramid's levels."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], scale_factor=2.0, mode="nearest")
        levels = [output(x) for output, x in zip(self.output, merged, strict=True)]
        for extra in self.extra:
            levels.append(extra(levels[-1]))
        return [self.nmode(level) for level in levels] if hasattr(self, "nmode") else levels


class ConvGN(nn.Module):
    """Convolution, group normalisation, activation.

    Args:
        channels: Channels in and out, a multiple of 32.
        kernel: Side of the kernel.
        act: Activation; ReLU by default.

    Examples:
        >>> import torch
        >>> ConvGN(32)(torch.zeros(1, 32, 4, 4)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(self, channels: int, kernel: int = 3, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.act = act or nn.ReLU(inplace=True)
        nn.init.normal_(self.conv.weight, std=0.01)
        if isinstance(self.act, NmODE2Activation) and self.act.scale != 1.0:
            start_on_flank(self.norm, self.act.t_end)  # type: ignore[arg-type]  # it has a weight and a bias as well

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        result: Tensor = self.act(self.norm(self.conv(x)))
        return result


class Integral(nn.Module):
    """Mean of a distribution over the bins 0 to `bins` - 1, for each of a box's four sides.

    Args:
        bins: Number of bins.

    Examples:
        >>> import torch
        >>> Integral(5)(torch.zeros(1, 20, 3))[0, 0]
        tensor([2., 2., 2.])
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.register_buffer("bins", torch.arange(bins, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Turn logits (B, 4 * bins, A) into distances in cells (B, 4, A)."""
        bins: Tensor = self.get_buffer("bins")
        shares = logits.unflatten(1, (4, len(bins))).softmax(2)
        return (shares * bins.to(logits.dtype).view(1, 1, -1, 1)).sum(2)


class GFLDetect(Detect):
    """GFL's head, with Ultralytics' outputs.

    Two towers of 3x3 convolutions with group normalisation, for classes and for boxes, run on every level; each ends in
    a 3x3 prediction layer. A class score is the estimated quality (IoU) of the box for that class. A box side is a
    distribution over `reg_max` + 1 distances of 0, 1, ..., `reg_max` cells; its logits are multiplied by a learnable
    scale of the level. Positions are the centres of the cells, as everywhere in Ultralytics.

    The towers are kept where Ultralytics looks for a head's layers: `cv2` (boxes) and `cv3` (classes), each with one
    entry for all levels, whose element 2 is the prediction layer.

    Args:
        nc: Number of classes, >= 1.
        ch: Channels of the levels, all the same, a multiple of 32 and at least 64.
        reg_max: Largest distance in cells.
        stack: Convolutions of a tower, >= 2.
        branches: Towers that end in nmODE²: any of "cls" and "reg"; none by default.
        inject: "act", which is the paper's form as we read it: nmODE² takes the place of the last ReLU, and the
            convolution and normalisation before it are the `W x + b` of the ODE; adds no parameter. "conv": a 1x1
            convolution with normalisation and nmODE² is added behind the tower. "beside" (`NmODE2Beside`, next to the
            last ReLU) and "gate" (`NmODE2Gate`, behind the tower) start as the head without nmODE² does.
        **ode: Options of `NmODE2Activation`; `standardise` is on by default, as in `NmODE2Detect`.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import torch
        >>> head = GFLDetect(nc=2, ch=(64, 64)).train()
        >>> preds = head([torch.zeros(1, 64, 8, 8), torch.zeros(1, 64, 4, 4)])
        >>> preds["boxes"].shape, preds["scores"].shape
        (torch.Size([1, 68, 80]), torch.Size([1, 2, 80]))
    """

    def __init__(
        self,
        nc: int = 80,
        ch: Iterable[int] = (),
        *,
        reg_max: int = 16,
        stack: int = 4,
        branches: Iterable[str] = (),
        inject: str = "act",
        **ode: Any,
    ) -> None:
        nn.Module.__init__(self)  # not that of Detect, which would build its own layers
        ch = list(ch)
        branches = (branches,) if isinstance(branches, str) else tuple(branches)
        if len(set(ch)) != 1 or ch[0] % GROUPS or ch[0] < 2 * GROUPS:  # a group of one value cannot be normalised
            raise ValueError(
                f"GFLDetect reads levels of one width, a multiple of {GROUPS} and at least {2 * GROUPS}, got {ch}"
            )
        if reg_max < 1 or stack < 2:
            raise ValueError(f"expected reg_max >= 1 and stack >= 2, got reg_max={reg_max}, stack={stack}")
        if unknown := [b for b in branches if b not in BRANCHES]:
            raise ValueError(f"branches={list(branches)}: {unknown[0]!r} is no branch, use any of {BRANCHES}")
        if inject not in INJECTIONS:
            raise ValueError(f"inject={inject!r} is not known, expected one of {INJECTIONS}")
        self.branches = tuple(b for b in BRANCHES if b in branches)
        self.inject = inject
        self.ode = {"standardise": True, **ode}
        NmODE2Activation(**self.ode)  # refuses bad options even where no branch uses them
        self.nc = nc
        self.nl = len(ch)
        self.reg_max = reg_max + 1  # number of bins, which is what Ultralytics means by it
        self.no = nc + 4 * self.reg_max
        self.stride = torch.zeros(self.nl)
        self.cv2 = nn.ModuleList([self._tower("reg", ch[0], stack, 4 * self.reg_max)])
        self.cv3 = nn.ModuleList([self._tower("cls", ch[0], stack, nc)])
        self.scales = nn.Parameter(torch.ones(self.nl))
        self.dfl = Integral(self.reg_max)

    def _tower(self, branch: str, channels: int, stack: int, outputs: int) -> nn.Sequential:
        """Return the layers of a branch: first convolution, the others, prediction."""
        ode = branch in self.branches
        blocks: list[nn.Module] = [ConvGN(channels) for _ in range(stack)]
        if ode and self.inject == "act":
            blocks[-1] = ConvGN(channels, act=NmODE2Activation(**self.ode))
        elif ode and self.inject == "beside":
            blocks[-1] = ConvGN(channels, act=NmODE2Beside(channels, nn.ReLU(inplace=True), **self.ode))
        elif ode and self.inject == "gate":
            blocks.append(NmODE2Gate(channels, lambda width: nn.GroupNorm(math.gcd(GROUPS, width), width), **self.ode))
        elif ode:
            blocks.append(ConvGN(channels, kernel=1, act=NmODE2Activation(**self.ode)))
        predict = nn.Conv2d(channels, outputs, 3, padding=1)
        nn.init.normal_(predict.weight, std=0.01)
        nn.init.constant_(predict.bias, 0.0)  # type: ignore[arg-type]  # it has a bias
        return nn.Sequential(blocks[0], nn.Sequential(*blocks[1:]), predict)

    def forward_head(
        self, x: list[Tensor], box_head: nn.ModuleList | None = None, cls_head: nn.ModuleList | None = None
    ) -> dict[str, Any]:
        """Run both towers on every level.

        Args:
            x: Levels of shape (B, C, H_l, W_l), fine to coarse.
            box_head: `cv2`.
            cls_head: `cv3`.

        Returns:
            "boxes" (B, 4 * bins, A), "scores" (B, nc, A), "feats" (the input), A positions over all levels.
        """
        if box_head is None or cls_head is None:
            return {}
        boxes = [(box_head[0](level) * self.scales[i]).flatten(2) for i, level in enumerate(x)]
        scores = [cls_head[0](level).flatten(2) for level in x]
        return {"boxes": torch.cat(boxes, -1), "scores": torch.cat(scores, -1), "feats": x}

    def bias_init(self) -> None:
        """Start the class bias at a small probability; Ultralytics calls this once, when the strides are known.

        The model shares its stride tensor with the head here and derives from it what the input's sides must be
        multiples of. P6 and P7 need no such thing, so the model's is limited and the head keeps one of its own.
        """
        predict: Any = self.cv3[0]
        nn.init.constant_(predict[-1].bias, -math.log((1 - PRIOR) / PRIOR))
        of_model, self.stride = self.stride, self.stride.clone()
        of_model.clamp_(max=LARGEST_PADDING)

    def build_criterion(self, model: nn.Module) -> GFLCriterion:
        """Return the training loss of a model with this head."""
        return GFLCriterion(model)

    def extra_repr(self) -> str:
        """Return the options that tell this head from another."""
        return f"nc={self.nc}, reg_max={self.reg_max - 1}, branches=[{', '.join(self.branches)}], inject={self.inject}"


# For loading with weights_only=True.
torch.serialization.add_safe_globals([FPN, ConvGN, Integral, GFLDetect, NmODE2Activation])
