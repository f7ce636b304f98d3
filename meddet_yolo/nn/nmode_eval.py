"""Evaluation of the closed form of nmODE² in PyTorch: one function, a path for each situation.

- float32 on the CPU, eager: one packed table (`PackedTable`), walked in pieces that stay in the cache.
- float16 and bfloat16: an input has 65,536 possible values, so the correctly rounded result is a table of that length.
- torch.compile and other devices: the same tables as one pointwise expression; on CUDA a fused Triton kernel.
- TorchScript tracing and ONNX export: ordinary Mul, Round and Gather nodes, no custom operator.
- float64 and higher derivatives: the Fourier series itself.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meddet_yolo.nn.nmode_closed import FloatArray, closed_form, packed_table, plain_table, sixteen_bit_values

SIXTEEN_BIT = (torch.float16, torch.bfloat16)

# Pi in two parts (Cody and Waite): multiples of the first are exact in float32 far beyond |g| of 1e4.
PI_PARTS = (3.140625, math.pi - 3.140625)
# Adding this to a float32 below 2**22 in magnitude rounds it to an integer, which then sits in the low mantissa bits.
ROUNDING_SHIFT = 1.5 * 2.0**23
# Elements of one piece per thread: small enough for the cache, large enough to hide the cost of a call.
_PIECE = 65536
# torch.index_select is the faster lookup but runs on one thread; torch.take runs on all of them.
_THREADS_FOR_TAKE = 4


def evaluate(g: Tensor, t_end: float, order: int) -> Tensor:
    """The derivative of f of the given order at g, in the shape, dtype and memory format of g.

    Args:
        g: Floating-point tensor of any shape.
        t_end: End of the integration interval.
        order: 0 for f, 1 for f', and so on.
    """
    if torch.jit.is_tracing():
        return _series(g, t_end, order) if order > 1 else _exportable(g, t_end, order)
    if g.dtype == torch.float64 or order > 1:
        return _series(g, t_end, order)
    if not torch.compiler.is_compiling() and type(g) in (Tensor, torch.nn.Parameter):
        if g.device.type == "cpu":
            return _eager(g, t_end, order, None)
        if g.device.type == "cuda" and _has_triton():
            from meddet_yolo.nn.nmode_triton import launch

            return launch(g, t_end, order, None)
    return _pointwise(g, t_end, order)


def evaluate_scaled(g: Tensor, t_end: float, order: int, scale: Tensor) -> Tensor:
    """``scale * evaluate(g, t_end, order)`` without autograd and without the intermediate where the path allows it."""
    same = scale.dtype == g.dtype and scale.device == g.device and type(scale) is Tensor
    if same and order <= 1 and g.dtype != torch.float64 and not torch.compiler.is_compiling():
        if g.device.type == "cpu":
            return _eager(g, t_end, order, scale)
        if g.device.type == "cuda" and _has_triton():
            from meddet_yolo.nn.nmode_triton import launch

            return launch(g, t_end, order, scale)
    return scale * evaluate(g, t_end, order)


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


# ---------------------------------------------------------------------------------------------------------------------
# Tables as tensors


@contextmanager
def _untraced() -> Iterator[None]:
    """Keep the making of a table out of a TorchScript trace, in which the finished table is a constant."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


class _TensorCache:
    """Tables per (t_end, order, kind, device), filled on demand; never with a tracer's stand-in for a tensor."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[object, ...], Tensor] = {}

    def get(self, key: tuple[object, ...], device: torch.device, build: Callable[[], Tensor]) -> Tensor:
        tensor = self._tensors.get((*key, device))
        if tensor is None:
            with torch.inference_mode(False), torch.no_grad(), _untraced():
                tensor = build().to(device)
            if type(tensor) is Tensor:
                self._tensors[(*key, device)] = tensor
        return tensor


_CACHE = _TensorCache()


@torch.compiler.assume_constant_result
def packed_words(t_end: float, order: int, device: torch.device) -> Tensor:
    """Words of the packed table as an int32 tensor of shape (size,)."""
    return _CACHE.get(("packed", t_end, order), device, lambda: torch.from_numpy(packed_table(t_end, order).words))


@torch.compiler.assume_constant_result
def packed_constants(t_end: float, order: int) -> tuple[int, int, float, float, float, float]:
    """Size, slope mask, value unit, value origin, slope unit and slope origin of the packed table."""
    table = packed_table(t_end, order)
    mask = 2**table.slope_bits - 1
    return table.size, mask, table.value_unit, table.value_origin, table.slope_unit, table.slope_origin


@torch.compiler.assume_constant_result
def sixteen_bit_table(t_end: float, order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Results for the bit patterns -32768 ... 32767 of a 16-bit float, shape (65536,)."""

    def build() -> Tensor:
        bits = torch.from_numpy(np.arange(-32768, 32768).astype(np.int16))
        inputs = bits.view(dtype).double().numpy()
        return torch.from_numpy(sixteen_bit_values(inputs, t_end, order)).to(dtype)

    return _CACHE.get(("sixteen", t_end, order, dtype), device, build)


def _plain_tensors(t_end: float, order: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Intercepts and slopes of the plain table, each of shape (rows, size + 1) with equal rows."""
    table = plain_table(t_end, order)

    def tensor(name: str, values: FloatArray) -> Tensor:
        return _CACHE.get((name, t_end, order, rows), device, lambda: torch.from_numpy(np.tile(values, (rows, 1))))

    return tensor("intercepts", table.intercepts), tensor("slopes", table.slopes)


@torch.compiler.assume_constant_result
def _series_constants(t_end: float, order: int) -> list[tuple[float, float]]:
    """Cosine and sine coefficients of the series, lowest harmonic first."""
    return [(float(c.real), float(-c.imag)) for c in closed_form(t_end).series(order)]


# ---------------------------------------------------------------------------------------------------------------------
# Forms for graphs


def _reduced(g: Tensor) -> Tensor:
    """Subtract the nearest multiple of pi."""
    turns = torch.round(g * (1 / math.pi))
    for part in PI_PARTS:
        g = g - turns * part
    return g


def _pointwise(g: Tensor, t_end: float, order: int) -> Tensor:
    """Table lookup as one chain of pointwise operations and a single gather, to be fused by a compiler."""
    if g.dtype in SIXTEEN_BIT:
        index = g.view(torch.int16).to(torch.int64) + 32768
        return _lookup(sixteen_bit_table(t_end, order, g.dtype, g.device), index)
    size, mask, value_unit, value_origin, slope_unit, slope_origin = packed_constants(t_end, order)
    x = _reduced(g) * (size / math.pi)
    k = torch.round(x)
    word = _lookup(packed_words(t_end, order, g.device), k.to(torch.int64) & (size - 1))
    value = word.to(g.dtype) * value_unit + value_origin
    slope = (word & mask).to(g.dtype) * slope_unit + slope_origin
    return value + (x - k) * slope


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` in index's memory format, without the range checks that a compiled ``table[index]`` carries."""
    if index.dim() == 4 and index.is_contiguous(memory_format=torch.channels_last):
        return _take(table, index.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if index.dim() == 0:
        return _take(table, index.reshape(1)).reshape(())
    return _take(table, index)


def _take(table: Tensor, index: Tensor) -> Tensor:
    return torch.gather(table.expand(*index.shape[:-1], -1), -1, index)


def _exportable(g: Tensor, t_end: float, order: int) -> Tensor:
    """The lines of `PlainTable`, in operations that every runtime has; float32 inside.

    The argument is reduced in one multiplication, which a runtime folds into the convolution before it. The error of
    the table is so joined by that of rounding g twice, 1.5 * 2**-24 * |g| * max|f'|: less than what the convolution is
    uncertain by.
    """
    turns = g.float() * (1 / math.pi)
    if torch.onnx.is_in_onnx_export():
        result = _lines(turns.reshape(_rows(g), -1), t_end, order, _gather_elements).reshape(g.shape)
    elif g.dim() == 4:  # OpenVINO computes convolutions with the channels last and so need not reorder its tensors
        turns = turns.permute(0, 2, 3, 1)
        result = _lines(turns.reshape(1, -1), t_end, order, _gather).reshape(turns.shape).permute(0, 3, 1, 2)
    else:
        result = _lines(turns.reshape(1, -1), t_end, order, _gather).reshape(g.shape)
    return result.to(g.dtype)


def _rows(g: Tensor) -> int:
    """Rows in which ONNX Runtime's threads share the work of GatherElements, a divisor of the number of channels."""
    with _untraced():
        return math.gcd(g.shape[1], 4) if g.dim() > 1 else 1


def _lines(turns: Tensor, t_end: float, order: int, look_up: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Value at ``turns``: g in units of pi, of shape (rows, N). ``look_up`` takes a table and cell numbers, row by row.

    NaN has no cell. Each look-up takes another one in its place, and u carries the NaN into the result.
    """
    size = plain_table(t_end, order).size
    u = turns - torch.round(turns)
    cell = u * size + size / 2  # in [0, size]
    with _untraced():
        intercepts, slopes = _plain_tensors(t_end, order, turns.shape[0], turns.device)
    return look_up(intercepts, cell) + u * look_up(slopes, cell)


class _WithoutNaN(torch.autograd.Function):
    """Numbers >= 0 as they are, NaN as 0; ONNX Runtime has no cheaper way than ThresholdedRelu."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.nan_to_num(x)

    @staticmethod
    def symbolic(graph: Any, x: Any) -> Any:
        return graph.op("ThresholdedRelu", x, alpha_f=-1.0)


def _gather_elements(table: Tensor, cell: Tensor) -> Tensor:
    """ONNX GatherElements: in ONNX Runtime several times faster than Gather."""
    without_nan: Tensor = _WithoutNaN.apply(cell)
    return torch.gather(table, 1, without_nan.to(torch.int64))


def _gather(table: Tensor, cell: Tensor) -> Tensor:
    """Gather from the only row: in OpenVINO several times faster than GatherElements."""
    index = cell.to(torch.int32).clamp(0, table.shape[1] - 1)
    return torch.index_select(table[0], 0, index[0])[None]


def _series(g: Tensor, t_end: float, order: int) -> Tensor:
    """The Fourier series by Clenshaw's recurrence."""
    work = g.float() if g.dtype in SIXTEEN_BIT else g
    constants = _series_constants(t_end, order)
    sin_g, cos_g = torch.sin(work), torch.cos(work)
    cos, sin = 1 - 2 * sin_g.square(), 2 * sin_g * cos_g  # of 2g, which itself could overflow
    twice = 2 * cos
    even, even_next = torch.zeros_like(cos), torch.zeros_like(cos)
    odd, odd_next = even, even_next
    for a, b in reversed(constants[1:]):
        even, even_next = a + twice * even - even_next, even
        odd, odd_next = b + twice * odd - odd_next, odd
    return (constants[0][0] + cos * even - even_next + sin * odd).to(g.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Eager CPU path


@lru_cache(maxsize=1)
def _alpha_is_fused() -> bool:
    """Whether ``torch.add(a, b, alpha=c)`` rounds once on this CPU, as a fused multiply-add does."""
    b = torch.full((67,), 1 + 2.0**-12)
    product = torch.add(torch.full((67,), -(1 + 2.0**-11)), b, alpha=1 + 2.0**-12)
    return bool((product == 2.0**-24).all())


def _eager(g: Tensor, t_end: float, order: int, scale: Tensor | None) -> Tensor:
    """Lookup piece by piece in work buffers that are kept: the only tensor made is the result."""
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return _eager(g, t_end, order, scale)
    with torch.no_grad():
        g, dims = _dense(g.detach())
        out = torch.empty_like(g)
        if scale is not None and scale.stride() != g.stride():
            scale = torch.empty_like(g).copy_(scale)
        piece = _PIECE * torch.get_num_threads()
        walk = _SixteenBitWalk if g.dtype in SIXTEEN_BIT else _PackedWalk
        step: _SixteenBitWalk | _PackedWalk = walk(t_end, order, piece, g.dtype)
        source, target = _flat(g, dims), _flat(out, dims)
        factor = None if scale is None else _flat(scale.detach(), dims)
        for start in range(0, g.numel(), piece):
            part = slice(start, start + piece)
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


def _index_dtype() -> torch.dtype:
    return torch.int64 if torch.get_num_threads() > _THREADS_FOR_TAKE else torch.int32


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
        (self.index,) = _WORK.get(1, length, _index_dtype())

    def __call__(self, g: Tensor, out: Tensor) -> None:
        index = self.index[: len(g)].copy_(g.view(torch.int16)).add_(32768)
        if index.dtype == torch.int64:
            torch.take(self.table, index, out=out)
        else:
            torch.index_select(self.table, 0, index, out=out)


@dataclass(frozen=True, eq=False)
class _PackedConstants:
    """What the walk over a packed table needs; tensors of one element, which cost less per call than numbers."""

    words: Tensor
    shift: Tensor
    period: Tensor
    low_bits: Tensor
    value_origin: Tensor
    slope_origin: Tensor
    value_unit: float
    slope_unit: float
    scale: float
    scale_rest: float
    radius: float


@lru_cache(maxsize=64)
def _walk_constants(t_end: float, order: int) -> _PackedConstants:
    size, mask, value_unit, value_origin, slope_unit, slope_origin = packed_constants(t_end, order)
    per_radian = size / math.pi
    scale = float(np.float32(per_radian))
    with torch.inference_mode(False):
        return _PackedConstants(
            words=packed_words(t_end, order, torch.device("cpu")),
            shift=torch.tensor(ROUNDING_SHIFT, dtype=torch.float32),
            period=torch.tensor(size - 1, dtype=torch.int32),
            low_bits=torch.tensor(mask, dtype=torch.int32),
            value_origin=torch.tensor(value_origin, dtype=torch.float32),
            slope_origin=torch.tensor(slope_origin, dtype=torch.float32),
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
        self.buffers = _WORK.get(3, length, torch.float32)
        self.long_index = _WORK.get(1, length, torch.int64)[0] if _index_dtype() == torch.int64 else None

    def __call__(self, g: Tensor, out: Tensor) -> None:
        c = self.constants
        x, slope, spare = (buffer[: len(g)] for buffer in self.buffers)
        index, word = spare.view(torch.int32), out.view(torch.int32)
        if not _is_within(g, c.radius):
            g = torch.atan2(torch.sin(g.double()), torch.cos(g.double())).float()
        torch.add(c.shift, g, alpha=c.scale, out=x)
        torch.bitwise_and(x.view(torch.int32), c.period, out=index)
        torch.sub(c.shift, x, out=x)
        x.add_(g, alpha=c.scale).add_(g, alpha=c.scale_rest)
        if self.long_index is None:
            torch.index_select(c.words, 0, index, out=word)
        else:
            torch.take(c.words, self.long_index[: len(g)].copy_(index), out=word)
        slope.copy_(torch.bitwise_and(word, c.low_bits, out=index))
        torch.add(c.slope_origin, slope, alpha=c.slope_unit, out=slope)
        torch.add(c.value_origin, spare.copy_(word), alpha=c.value_unit, out=out)
        out.addcmul_(x, slope)


def _is_within(g: Tensor, radius: float) -> bool:
    """Whether every |g| is within the radius; the sum of squares decides most cases in one cheap pass."""
    if float(torch.dot(g, g)) <= radius**2:
        return True
    low, high = torch.aminmax(g)
    return bool(low >= -radius) and bool(high <= radius)
