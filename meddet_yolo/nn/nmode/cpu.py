"""nmODE² in eager mode on a CPU: plain PyTorch, piece by piece in work buffers that stay in the cache."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from meddet_yolo.nn.nmode.graph import ROUNDING_SHIFT
from meddet_yolo.nn.nmode.tables import SIXTEEN_BIT, packed_constants, packed_words, sixteen_bit_table

# Elements of the largest piece per thread: small enough for the cache, large enough to hide the cost of a call.
_PIECE = 200 * 1024
# Up to so many threads a look-up on one of them is no slower than one shared by all.
_THREADS_FOR_SELECT = 2


@lru_cache(maxsize=1)
def _alpha_is_fused() -> bool:
    """Whether ``torch.add(a, b, alpha=c)`` rounds once on this CPU, as a fused multiply-add does."""
    b = torch.full((67,), 1 + 2.0**-12)
    product = torch.add(torch.full((67,), -(1 + 2.0**-11)), b, alpha=1 + 2.0**-12)
    return bool((product == 2.0**-24).all())


def evaluate_on_cpu(g: Tensor, t_end: float, order: int, scale: Tensor | None) -> Tensor:
    """Lookup piece by piece in work buffers that are kept: the only tensor made is the result."""
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return evaluate_on_cpu(g, t_end, order, scale)
    g, dims = _dense(g.detach())  # what follows has no part in autograd, since none of its tensors requires a gradient
    out = torch.empty_like(g)
    if scale is not None:
        scale = scale.detach()
        if scale.stride() != g.stride():
            scale = torch.empty_like(g).copy_(scale)
    piece = _PIECE * torch.get_num_threads()
    walk = _SixteenBitWalk if g.dtype in SIXTEEN_BIT else _PackedWalk
    step: _SixteenBitWalk | _PackedWalk = walk(t_end, order, piece, g.dtype)
    source, target = _flat(g, dims), _flat(out, dims)
    factor = None if scale is None else _flat(scale, dims)
    even = math.ceil(g.numel() / max(1, math.ceil(g.numel() / piece)))
    for start in range(0, g.numel(), max(1, even)):
        part = slice(start, start + even)
        step(source[part], target[part])
        if factor is not None:
            target[part].mul_(factor[part])
    return out


def _dense(g: Tensor) -> tuple[Tensor, list[int] | None]:
    """``g`` without gaps, and the order of dimensions in which it is contiguous (None for the usual one)."""
    if g.is_contiguous():
        return g, None
    dims = sorted(range(g.dim()), key=lambda d: (-g.stride()[d], d))
    return (g, dims) if g.permute(dims).is_contiguous() else (g.contiguous(), None)


def _flat(tensor: Tensor, dims: list[int] | None) -> Tensor:
    return tensor.view(-1) if dims is None else tensor.permute(dims).view(-1)


def _look_up(table: Tensor, index: Tensor, out: Tensor) -> None:
    """``out = table[index]`` for one-dimensional tensors; ``index`` is int32 and as long as ``out``.

    `torch.index_select` is the fastest look-up but runs on one thread. `torch.gather` gives each thread a row; it wants
    64-bit indices.
    """
    rows = torch.get_num_threads()
    shared = len(index) // rows * rows if rows > _THREADS_FOR_SELECT else 0
    if shared:
        (long_index,) = _WORK.get(1, _PIECE * rows, torch.int64)
        first = long_index[:shared].copy_(index[:shared]).view(rows, -1)
        torch.gather(table.expand(rows, -1), 1, first, out=out[:shared].view(rows, -1))
    if shared < len(index):
        torch.index_select(table, 0, index[shared:], out=out[shared:])


class _WorkBuffers(threading.local):
    """Buffers of a thread, kept between calls: fresh memory would cost time, and space at its peak."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, torch.dtype], Tensor] = {}

    def get(self, rows: int, length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return ``rows`` uninitialised tensors of shape (length,)."""
        buffers = self._buffers.get((rows, dtype))
        if buffers is None or buffers.shape[1] != length:
            with torch.inference_mode(False):
                buffers = self._buffers[(rows, dtype)] = torch.empty(rows, length, dtype=dtype)
        return buffers.unbind()


_WORK = _WorkBuffers()


class _SixteenBitWalk:
    """Lookup by bit pattern."""

    def __init__(self, t_end: float, order: int, length: int, dtype: torch.dtype) -> None:
        self.table = sixteen_bit_table(t_end, order, dtype, torch.device("cpu"))
        (self.index,) = _WORK.get(1, length, torch.int32)

    def __call__(self, g: Tensor, out: Tensor) -> None:
        index = self.index[: len(g)].copy_(g.view(torch.int16)).add_(32768)
        _look_up(self.table, index, out)


@dataclass(frozen=True, eq=False)
class _PackedConstants:
    """What the walk over a packed table needs; tensors of one element, which cost less per call than numbers."""

    words: Tensor
    shift: Tensor
    period: Tensor
    slope_shift: Tensor
    value_origin: Tensor
    value_unit: float
    slope_unit: float
    scale: float
    scale_rest: float
    radius: float


@lru_cache(maxsize=64)
def _walk_constants(t_end: float, order: int) -> _PackedConstants:
    size, slope_shift, value_unit, value_origin, slope_unit = packed_constants(t_end, order)
    per_radian = size / math.pi
    scale = float(np.float32(per_radian))
    with torch.inference_mode(False):
        return _PackedConstants(
            words=packed_words(t_end, order, torch.device("cpu")),
            shift=torch.tensor(ROUNDING_SHIFT, dtype=torch.float32),
            period=torch.tensor(size - 1, dtype=torch.int32),
            slope_shift=torch.tensor(slope_shift, dtype=torch.int32),
            value_origin=torch.tensor(value_origin, dtype=torch.float32),
            value_unit=value_unit,
            slope_unit=slope_unit,
            scale=scale,
            scale_rest=per_radian - scale,
            # Within this radius one multiplication finds the grid point; outside, the argument is reduced first.
            radius=2.0**21 / per_radian if _alpha_is_fused() else 4.0,
        )


class _PackedWalk:
    """Range reduction, one lookup and a linear interpolation, as in `PackedTable`."""

    def __init__(self, t_end: float, order: int, length: int, dtype: torch.dtype) -> None:
        self.constants = _walk_constants(t_end, order)
        self.buffers = _WORK.get(2, length, torch.float32)

    def __call__(self, g: Tensor, out: Tensor) -> None:
        c = self.constants
        x, slope = (buffer[: len(g)] for buffer in self.buffers)
        index, word = slope.view(torch.int32), out.view(torch.int32)  # integers turn into floats where they lie
        if not _is_within(g, c.radius):
            g = torch.atan2(torch.sin(g.double()), torch.cos(g.double())).float()
        torch.add(c.shift, g, alpha=c.scale, out=x)
        torch.bitwise_and(x.view(torch.int32), c.period, out=index)
        torch.sub(c.shift, x, out=x)
        x.add_(g, alpha=c.scale).add_(g, alpha=c.scale_rest)
        _look_up(c.words, index, word)
        slope.copy_(torch.bitwise_left_shift(word, c.slope_shift, out=index))
        torch.add(c.value_origin, out.copy_(word), alpha=c.value_unit, out=out)
        out.addcmul_(x, slope, value=c.slope_unit)


def _is_within(g: Tensor, radius: float) -> bool:
    """Whether every |g| is within the radius; the sum of squares decides most cases in one cheap pass."""
    if float(torch.dot(g, g)) <= radius**2:
        return True
    low, high = torch.aminmax(g)
    return bool(low >= -radius) and bool(high <= radius)
