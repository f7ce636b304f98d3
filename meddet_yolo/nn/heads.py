"""A YOLO detection head whose branches end in nmODE² before their prediction layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv, Detect

from meddet_yolo.nn.nmode.forms import NmODE2Beside, NmODE2Gate
from meddet_yolo.nn.nmode.layers import NmODE2, NmODE2Activation
from meddet_yolo.nn.nmode.start import start_on_flank

BRANCHES = ("cls", "reg")
INJECTIONS = ("beside", "gate", "act", "conv")
_BLOCKS = {"conv": NmODE2, "gate": NmODE2Gate}  # those that stand between the last convolution and the prediction layer
_EARLY_SIGMOID = ("onnx", "openvino", "engine")  # formats in whose graph the scores need no pass of their own
_ODE_DEFAULTS = {"standardise": True}  # where they differ from those of `NmODE2Activation`

# Attribute of `Detect` that holds the layers of a branch -> (branch, attribute of ours for its extra blocks). Ours keep
# the `one2one_` prefix too, by which `Detect.fuse` tells which set it may drop.
_SETS = {
    "cv2": ("reg", "nmode_reg"),
    "cv3": ("cls", "nmode_cls"),
    "one2one_cv2": ("reg", "one2one_nmode_reg"),
    "one2one_cv3": ("cls", "one2one_nmode_cls"),
}


class NmODE2Detect(Detect):
    """`Detect` with nmODE² at the end of its classification branch, its regression branch, or both.

    MedDet (arXiv 2409.00204) puts nmODE² after the convolutions of both branches and before their prediction layers.
    Four ways of doing so are offered; which one the authors used is not known. The first two are our own and start as
    the stock head does, to the last bit; the other two take the paper's figure at its word:

    - `inject="beside"`: SiLU(g) + c * f(g), with f(g) the standardised nmODE² of what the SiLU behind the last
      convolution reads, and c a learnt factor a channel that starts at 0 (`NmODE2Beside`).
    - `inject="gate"`: x + W3((W2 x) * f(W1 x)) between the last convolution and the prediction layer, with W3 starting
      at 0 (`NmODE2Gate`). The shipped model files have this form.
    - `inject="act"`: nmODE² takes the place of the SiLU behind the last convolution of the branch. That convolution and
      its normalisation are then the `W x + b` of the ODE. No parameter is added, so stock weights of the same layout
      load completely.
    - `inject="conv"`: an `NmODE2` block (1x1 convolution, normalisation, nmODE²) of its own stands between the last
      convolution and the prediction layer.

    With "act" and "conv" the output of nmODE² is standardised and the normalisation before it starts on the flank of
    its function, without which a detector learns markedly slower (`meddet_yolo.nn.nmode.start`); `standardise=False`
    switches both off.

    Everything else is the stock head's: end-to-end (NMS-free) branch, DFL and DFL-free regression, decoding, export.

    Args:
        nc: Number of classes, >= 1.
        reg_max: Number of DFL bins; 1 means DFL-free.
        end2end: Build the one-to-one (NMS-free) branches too; Ultralytics uses them for inference with `nms=False`.
        ch: Channels of the feature maps, one per level.
        branches: Which branches end in nmODE²: any of "cls" and "reg", possibly none (then the head equals `Detect`).
        inject: "beside", "gate", "act" or "conv", see above.
        levels: Which levels have it, by number from the finest, 0; all by default. Most of its cost is on the finest.
        legacy: Classification branch of plain 3x3 convolutions (YOLOv8 and before) in place of depthwise ones.
        **ode: Options of `NmODE2Activation` (`t_end`, `solver`, `steps`, ...).

    Raises:
        ValueError: If `branches`, `inject` or `levels` is not one of the values above.

    Example:
        >>> head = NmODE2Detect(nc=2, ch=(16, 32), branches=["cls"])
        >>> preds = head.train()([torch.zeros(1, 16, 8, 8), torch.zeros(1, 32, 4, 4)])
        >>> preds["boxes"].shape, preds["scores"].shape
        (torch.Size([1, 64, 80]), torch.Size([1, 2, 80]))
    """

    branches: tuple[str, ...]
    inject: str
    levels: tuple[int, ...] | None = None  # of heads pickled before there was a choice, too
    ode: dict[str, Any]

    def __init__(
        self,
        nc: int = 80,
        reg_max: int = 16,
        end2end: bool = False,
        ch: Iterable[int] = (),
        *,
        branches: Iterable[str] = BRANCHES,
        inject: str = "act",
        levels: Iterable[int] | None = None,
        legacy: bool = False,
        **ode: Any,
    ) -> None:
        """Build the head; see the class for the arguments."""
        self.legacy = legacy  # read while the stock layers are built; an attribute of ours, never of the class
        super().__init__(nc, reg_max, end2end, list(ch))
        self._equip(branches, inject, levels, ode)

    @classmethod
    def from_detect(
        cls,
        stock: Detect,
        *,
        branches: Iterable[str] = BRANCHES,
        inject: str = "act",
        levels: Iterable[int] | None = None,
        **ode: Any,
    ) -> NmODE2Detect:
        """Turn a stock head into ours. The layers are taken over, not copied: do not use `stock` afterwards.

        Args:
            stock: An unfused `Detect` of any layout.
            branches: See the class.
            inject: See the class.
            levels: See the class.
            **ode: See the class.

        Returns:
            A head with the same layers, strides, class count, DFL bins and branches.

        Raises:
            TypeError: If `stock` is not exactly a `Detect` (heads of other tasks carry layers that we would lose).
            ValueError: If an option has a value that is not allowed.

        Example:
            >>> head = NmODE2Detect.from_detect(Detect(nc=2, ch=(16, 32)), branches=["cls", "reg"])
            >>> head.nc, isinstance(head, Detect)
            (2, True)
        """
        if type(stock) is not Detect:
            raise TypeError(f"expected a stock Detect head to build NmODE2Detect from, got {type(stock).__name__}")
        head = cls.__new__(cls)
        head.__dict__ = stock.__dict__
        head.legacy = isinstance(stock.cv3[0][0], Conv)  # the class attribute may belong to a model parsed since
        head._equip(branches, inject, levels, ode)
        return head

    def _equip(self, branches: Iterable[str], inject: str, levels: Iterable[int] | None, ode: dict[str, Any]) -> None:
        """Check the options, keep them, and put nmODE² into every branch that is there."""
        branches = (branches,) if isinstance(branches, str) else tuple(branches)
        if unknown := [b for b in branches if b not in BRANCHES]:
            raise ValueError(f"branches={list(branches)}: {unknown[0]!r} is no branch, use any of {BRANCHES}")
        if inject not in INJECTIONS:
            raise ValueError(f"inject={inject!r} is not known, expected one of {INJECTIONS}")
        NmODE2Activation(**ode)  # refuses bad options even where no branch uses them
        self.branches = tuple(b for b in BRANCHES if b in branches)
        self.inject = inject
        self.levels = None if levels is None else self._checked(levels)
        self.ode = ode
        for name in _SETS:
            if getattr(self, name, None) is not None:
                self._inject(name)
        for name in ("nmode_reg", "nmode_cls"):  # as the stock head does: both sets start from the same weights
            if hasattr(self, f"one2one_{name}"):
                setattr(self, f"one2one_{name}", deepcopy(getattr(self, name)))

    def _checked(self, levels: Iterable[int]) -> tuple[int, ...]:
        """Return the numbers of levels in order."""
        given = list(levels) if isinstance(levels, Iterable) else [levels]
        if not given or any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < self.nl for n in given):
            raise ValueError(f"levels={levels!r}: expected numbers from 0, the finest, to {self.nl - 1}")
        return tuple(sorted(set(given)))

    def _ends_in_ode(self, branch: str, index: int) -> bool:
        """Whether a branch ends in nmODE² at a level."""
        return branch in self.branches and (self.levels is None or index in self.levels)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep nmODE² where it belongs when Ultralytics replaces the layers of a branch.

        `BaseModel.load` does so with the classification branch of weights that have another number of classes.
        """
        super().__setattr__(name, value)
        if name in _SETS and isinstance(value, nn.ModuleList) and "ode" in self.__dict__:
            self._inject(name)

    def _inject(self, name: str) -> None:
        """Put nmODE² into the layers of one branch, given by its attribute (`cv2`, `one2one_cv3`, ...)."""
        branch, extra = _SETS[name]
        levels = getattr(self, name)
        for index, level in enumerate(levels):
            conv = _last_conv(level)
            here = self._ends_in_ode(branch, index)
            if here and self.inject == "act":
                fresh = not isinstance(conv.act, NmODE2Activation)
                conv.act = self._activation()
                if fresh:
                    self._start(conv)
            elif here and self.inject == "beside":
                conv.act = self._beside(level)
            elif isinstance(conv.act, NmODE2Activation | NmODE2Beside):  # layers taken from a head with other options
                conv.act = _stock_act(level)
        if self.inject in _BLOCKS and branch in self.branches:
            widths = [lv[-1].in_channels if self._ends_in_ode(branch, n) else None for n, lv in enumerate(levels)]
            if widths != [_width(block) for block in getattr(self, extra, None) or ()]:
                pairs = zip(levels, widths, strict=True)
                blocks = (nn.Identity() if width is None else self._block(lv[-1]) for lv, width in pairs)
                setattr(self, extra, nn.ModuleList(blocks))

    def _activation(self) -> NmODE2Activation:
        return NmODE2Activation(**{**_ODE_DEFAULTS, **self.ode})

    def _beside(self, level: nn.Sequential) -> NmODE2Beside:
        """Return what stands behind the last convolution of a level; it keeps factors that have been learnt there."""
        prediction: Any = level[-1]
        beside = NmODE2Beside(prediction.in_channels, _stock_act(level), **{**_ODE_DEFAULTS, **self.ode})
        learnt = _last_conv(level).act
        if isinstance(learnt, NmODE2Beside):
            beside.factor.data.copy_(learnt.factor.data)
        return _fitted(beside, prediction, self.training)

    @staticmethod
    def _start(conv: Conv) -> None:
        """Bring a convolution whose activation has become nmODE² to the starting point."""
        if conv.act.scale != 1.0 and hasattr(conv, "bn"):
            start_on_flank(conv.bn, conv.act.t_end)

    def restart(self) -> None:
        """Put the normalisations before nmODE² back to the starting point.

        Needed when weights of a head with another activation have been loaded: on what fitted a SiLU, nmODE² would give
        back little of its input. What the other forms add is not in such weights and needs nothing.
        """
        for name, (branch, _) in _SETS.items():
            for index, level in enumerate(getattr(self, name, None) or ()):
                if self.inject == "act" and self._ends_in_ode(branch, index):
                    self._start(_last_conv(level))

    def _block(self, prediction: nn.Conv2d) -> nn.Module:
        """Return a new block to stand in front of a prediction layer."""
        block = _BLOCKS[self.inject](prediction.in_channels, **{**_ODE_DEFAULTS, **self.ode})
        for m in block.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eps, m.momentum = 1e-3, 0.03  # as everywhere else in a YOLO model
        return _fitted(block, prediction, self.training)

    @property
    def one2many(self) -> dict[str, nn.Module | None]:
        """Layers of the one-to-many branches, as keywords of `forward_head`."""
        return {"box_head": self.cv2, "cls_head": self.cv3, **self._extras("")}

    @property
    def one2one(self) -> dict[str, nn.Module | None]:
        """Layers of the one-to-one branches, as keywords of `forward_head`."""
        return {"box_head": self.one2one_cv2, "cls_head": self.one2one_cv3, **self._extras("one2one_")}

    def _extras(self, prefix: str) -> dict[str, nn.Module | None]:
        if self.inject not in _BLOCKS:
            return {}
        return {
            "box_nmode": getattr(self, f"{prefix}nmode_reg", None),
            "cls_nmode": getattr(self, f"{prefix}nmode_cls", None),
        }

    def forward_head(
        self,
        x: list[Tensor],
        box_head: nn.ModuleList | None = None,
        cls_head: nn.ModuleList | None = None,
        box_nmode: nn.ModuleList | None = None,
        cls_nmode: nn.ModuleList | None = None,
    ) -> dict[str, Any]:
        """Run both branches on every level.

        Args:
            x: Feature maps, one (B, C_i, H_i, W_i) per level.
            box_head: Layers of the regression branch; None in a fused head that has lost this set.
            cls_head: Layers of the classification branch, likewise.
            box_nmode: nmODE² blocks of the regression branch (`inject` "gate" and "conv" only).
            cls_nmode: nmODE² blocks of the classification branch (likewise).

        Returns:
            "boxes" (B, 4 * reg_max, A), "scores" (B, nc, A), "feats" (the input), A anchors over all levels; {} without
            layers. Scores are logits, except in an export to ONNX, OpenVINO or TensorRT, where they are probabilities.
        """
        classes = _with_blocks(cls_head, cls_nmode)
        if self._scores_are_probabilities() and classes is not None:
            classes = [_compose(level, torch.sigmoid) for level in classes]
        return super().forward_head(x, _with_blocks(box_head, box_nmode), classes)

    def _scores_are_probabilities(self) -> bool:
        """Whether the sigmoid follows each prediction layer: runtimes then compute it with the convolution.

        After the concatenation of the levels, where the stock head has it, it is a pass of its own.
        """
        return self.export and not self.training and self.format in _EARLY_SIGMOID

    def _inference(self, x: dict[str, Any]) -> Tensor:
        """Decode the boxes and join them with the probabilities, (B, 4 + nc, A)."""
        if not self._scores_are_probabilities():
            return super()._inference(x)
        return torch.cat((self._get_decode_boxes(x), x["scores"]), 1)

    def fuse(self) -> None:
        """Drop the branches that inference does not use; fold our blocks' normalisation and standardisation."""
        super().fuse()
        for name, (branch, extra) in _SETS.items():
            levels = getattr(self, name, None)
            if levels is None or branch not in self.branches or self.inject == "gate":  # a gate has no constants
                continue
            blocks = getattr(self, extra) if self.inject == "conv" else [_last_conv(level) for level in levels]
            for index, (level, block) in enumerate(zip(levels, blocks, strict=True)):
                if self._ends_in_ode(branch, index):
                    block.act.fold_into(level[-1])
        for m in self.modules():
            if isinstance(m, NmODE2 | NmODE2Gate):
                m.fuse()

    def extra_repr(self) -> str:
        """Return the options that tell this head from another."""
        ode = "" if self.levels is None else f", levels={list(self.levels)}"
        ode += "".join(f", {k}={v}" for k, v in self.ode.items())
        return (
            f"nc={self.nc}, reg_max={self.reg_max}, one2one={getattr(self, 'one2one_cv2', None) is not None}, "
            f"branches=[{', '.join(self.branches)}], inject={self.inject}{ode}"
        )


def _with_blocks(levels: nn.ModuleList | None, blocks: nn.ModuleList | None) -> Any:
    """Return, level by level, a branch that runs its nmODE² block before its prediction layer."""
    if levels is None or blocks is None:
        return levels
    pairs: Any = zip(levels, blocks, strict=True)
    return [_compose(*level[:-1], block, level[-1]) for level, block in pairs]


def _compose(*layers: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return run


def _width(block: Any) -> int | None:
    """Return the channels of an nmODE² block; None of what stands where there is none."""
    return None if isinstance(block, nn.Identity) else int(block.conv.in_channels)


def _last_conv(level: nn.Sequential) -> Conv:
    """Return the convolution before the prediction layer: `Conv`, or the last one of a depthwise-separable pair."""
    layer = level[-2]
    while isinstance(layer, nn.Sequential):
        layer = layer[-1]
    return layer


def _stock_act(level: nn.Sequential) -> nn.Module:
    """Return the activation that Ultralytics has built into a level, read off its first convolution."""
    layer = level[0]
    while isinstance(layer, nn.Sequential):
        layer = layer[0]
    act: nn.Module = layer.act  # type: ignore[assignment]  # a `Conv` has one
    return act


def _fitted(module: nn.Module, prediction: nn.Conv2d, training: bool) -> Any:
    """Bring a new module to the device and dtype of the prediction layer it stands before; frozen if that is frozen."""
    module.requires_grad_(prediction.weight.requires_grad)
    return module.to(prediction.weight.device, prediction.weight.dtype).train(training)


torch.serialization.add_safe_globals([NmODE2Detect, NmODE2, NmODE2Activation])  # for loading with weights_only=True
