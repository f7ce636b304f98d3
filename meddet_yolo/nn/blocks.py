"""nmODE² as a layer of its own, for the backbone or the neck of a model YAML."""

from __future__ import annotations

from typing import Any

import torch
from ultralytics.nn.modules import Conv

from meddet_yolo.nn.nmode.layers import NmODE2Activation
from meddet_yolo.nn.nmode.start import start_on_flank


class NmODE2Block(Conv):
    """Convolution, batch normalisation and nmODE², with the width scaled by the YAML like that of any `Conv`.

    The convolution and the normalisation are the `W x + b` of the ODE. MedDet's ablation (arXiv 2409.00204) tries
    nmODE² in the backbone and in the pyramid; where exactly is not known, so the place is left to the YAML:
    `[-1, 1, NmODE2Block, [256]]` (1x1) or `[-1, 1, NmODE2Block, [256, 3, 1, {t_end: 2.0}]]`.

    Args:
        c1: Input channels.
        c2: Output channels.
        k: Kernel size.
        s: Stride.
        **ode: Options of `NmODE2Activation` (`t_end`, `solver`, `steps`, ...).

    Example:
        >>> NmODE2Block(8, 16)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, **ode: Any) -> None:
        """Build the block; see the class for the arguments."""
        super().__init__(c1, c2, k, s)
        self._equip(ode)

    @classmethod
    def from_conv(cls, stock: Conv, **ode: Any) -> NmODE2Block:
        """Turn a stock `Conv` into a block. Its layers are taken over, not copied: do not use `stock` afterwards.

        Example:
            >>> NmODE2Block.from_conv(Conv(8, 16), t_end=2.0).act
            NmODE2Activation(t_end=2, solver=closed, shift=0.3518, scale=3.6912)
        """
        block = cls.__new__(cls)
        block.__dict__ = stock.__dict__
        block._equip(ode)
        return block

    def _equip(self, ode: dict[str, Any]) -> None:
        self.act = NmODE2Activation(**{"standardise": True, **ode})
        if self.act.scale != 1.0:
            start_on_flank(self.bn, self.act.t_end)


torch.serialization.add_safe_globals([NmODE2Block, NmODE2Activation])  # for loading with weights_only=True
