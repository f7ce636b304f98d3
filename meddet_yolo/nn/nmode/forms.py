"""nmODE² beside an activation, and as a gate: two forms that start as the network without it, to the last bit.

In place of an activation nmODE² costs accuracy: its function is bounded and not monotone, and a network has to do
without what the activation gave it. Both forms here keep the activation and add to it what starts as zero, so that
pretrained weights compute at first what they were trained to. Both are our own decisions; the paper (arXiv 2409.00204)
says only that nmODE² stands before the prediction layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddet_yolo.nn.nmode.layers import NmODE2Activation
from meddet_yolo.nn.nmode.start import moments, start_on_flank

__all__ = ["NmODE2Beside", "NmODE2Gate"]


class NmODE2Beside(nn.Module):
    """An activation with nmODE² beside it: act(g) + factor * (y(t_end) - shift) * scale.

    y(t_end) of the ODE driven by g is standardised with constants, to mean 0 and variance 1 for g behind a batch
    normalisation in its usual state. The factor, one a channel, is learnt and starts at 0.

    Args:
        channels: Number of channels.
        act: The activation; SiLU if omitted.
        standardise: Whether y is standardised; without it, shift is 0 and scale 1.
        **ode: Options of `NmODE2Activation` (`t_end`, `solver`, `steps`, ...).

    Attributes:
        factor: The learnt factors, of shape (channels,).
        shift: Constant subtracted from y.
        scale: Constant that the difference is multiplied with.

    Raises:
        ValueError: If `channels` < 1 or an option is out of its range.

    Examples:
        >>> import torch
        >>> beside = NmODE2Beside(2)
        >>> g = torch.randn(1, 2, 4, 4)
        >>> torch.equal(beside(g), torch.nn.functional.silu(g))
        True
    """

    def __init__(self, channels: int, act: nn.Module | None = None, *, standardise: bool = True, **ode: Any) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}.")
        self.act = nn.SiLU() if act is None else act
        self.ode = NmODE2Activation(**ode)
        self.factor = nn.Parameter(torch.zeros(channels))
        mean, std = moments(self.ode.t_end) if standardise else (0.0, 1.0)
        self.shift, self.scale = mean, 1 / std

    def forward(self, g: Tensor) -> Tensor:
        """Map g (B, C, H, W) to the same shape and dtype."""
        y = self.ode(g)
        if self.shift:
            y = y - self.shift
        factor = self.factor if self.scale == 1.0 else self.factor * self.scale
        return torch.addcmul(self._activate(g), y, factor.to(g.dtype).view(-1, 1, 1))  # in one pass

    def _activate(self, g: Tensor) -> Tensor:
        """Apply the activation and leave g as it is: Ultralytics lets activations work in place."""
        return F.silu(g) if type(self.act) is nn.SiLU else self.act(g.clone())

    def extra_repr(self) -> str:
        """Return the number of channels and the constants."""
        return f"{len(self.factor)}, shift={self.shift:.4f}, scale={self.scale:.4f}"

    @torch.no_grad()
    def fold_into(self, conv: nn.Conv2d) -> None:
        """Let the factor, and the convolution that reads the output, take the constants over, in place, for inference.

        Args:
            conv: A convolution without padding, with bias; its output stays the same.

        Raises:
            ValueError: If the convolution has padding or no bias.
        """
        if conv.bias is None or any(conv.padding):
            raise ValueError(f"Expected a convolution with bias and without padding, got {conv}.")
        factor = self.factor.double() * self.scale
        conv.bias.copy_(conv.bias.double() - self.shift * (conv.weight.double().sum((2, 3)) @ factor))
        self.factor.copy_(factor)
        self.shift, self.scale = 0.0, 1.0


class NmODE2Gate(nn.Module):
    """A gated branch added to its input: x + W3((W2 x) * y(t_end)), the ODE driven by g = normalised W1 x.

    The bracket is the form in which public nmODE blocks use the ODE: never bare, but as a gate on a linear path. The
    sum with x, the start of W3 at 0, and the width of the branch, a quarter of the input's, are our own decisions. The
    normalisation starts on the flank of the ODE's function (`meddet_yolo.nn.nmode.start`), where the gate opens and
    closes as g rises and falls; as a gate it is not standardised.

    Args:
        channels: Number of channels, in and out.
        norm: Makes the normalisation behind W1 from its number of channels; `nn.BatchNorm2d` if omitted.
        standardise: Whether the normalisation starts on the flank; else it starts as usual.
        **ode: Options of `NmODE2Activation` (`t_end`, `solver`, `steps`, ...).

    Raises:
        ValueError: If `channels` < 1 or an option is out of its range.

    Examples:
        >>> import torch
        >>> x = torch.randn(1, 16, 4, 4)
        >>> torch.equal(NmODE2Gate(16)(x), x)
        True
    """

    def __init__(self, channels: int, norm: Any = nn.BatchNorm2d, *, standardise: bool = True, **ode: Any) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}.")
        width = min(channels, max(8, channels // 4))
        self.conv = nn.Conv2d(channels, width, 1, bias=False)
        self.bn: nn.Module = norm(width)
        self.act = NmODE2Activation(**ode)
        self.linear = nn.Conv2d(channels, width, 1, bias=False)
        self.out = nn.Conv2d(width, channels, 1, bias=False)
        nn.init.zeros_(self.out.weight)
        if standardise:
            start_on_flank(self.bn, self.act.t_end)

    def forward(self, x: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to one of the same shape."""
        result: Tensor = x + self.out(self.linear(x) * self.act(self.bn(self.conv(x))))
        return result

    @torch.no_grad()
    def fuse(self) -> NmODE2Gate:
        """Fold batch normalisation's running statistics into the convolution before it, in place; returns self."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = nn.utils.fuse_conv_bn_eval(self.conv.eval(), self.bn.eval())
            self.bn = nn.Identity()
        return self


torch.serialization.add_safe_globals([NmODE2Beside, NmODE2Gate])  # for loading with weights_only=True
