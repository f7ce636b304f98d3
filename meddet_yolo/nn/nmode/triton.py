"""Fused CUDA kernels of the closed form of nmODE²: one read, one table lookup and one write an element.

Imported only where a CUDA tensor meets an installed Triton. Checked with Triton's interpreter; speed on a GPU is not
measured yet.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

from meddet_yolo.nn.nmode.graph import PI_PARTS, ROUNDING_SHIFT
from meddet_yolo.nn.nmode.tables import packed_constants, packed_words, sixteen_bit_table

_BLOCK = 1024
_PI_HIGH, _PI_LOW = (tl.constexpr(part) for part in PI_PARTS)
_PER_PI = tl.constexpr(1 / math.pi)
_SHIFT = tl.constexpr(ROUNDING_SHIFT)


@triton.jit
def _round(x):  # type: ignore[no-untyped-def]
    """Nearest integer of a moderate float32; huge values are integers already."""
    return tl.where(tl.abs(x) < 4194304.0, (x + _SHIFT) - _SHIFT, x)


@triton.jit
def _packed_kernel(  # type: ignore[no-untyped-def]
    g_ptr,
    words_ptr,
    scale_ptr,
    out_ptr,
    length,
    value_unit,
    value_origin,
    slope_unit,
    per_radian,
    SIZE: tl.constexpr,
    SLOPE_SHIFT: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < length
    g = tl.load(g_ptr + offset, mask=inside, other=0.0)
    turns = _round(g * _PER_PI)
    x = ((g - turns * _PI_HIGH) - turns * _PI_LOW) * per_radian
    k = _round(x)
    # NaN and what range reduction cannot bring home: any index in range will do, x - k carries the NaN.
    index = tl.where(tl.abs(k) <= SIZE, k, 0.0).to(tl.int32) & (SIZE - 1)
    word = tl.load(words_ptr + index)
    value = word.to(tl.float32) * value_unit + value_origin
    slope = (word << SLOPE_SHIFT).to(tl.float32) * slope_unit
    result = value + (x - k) * slope
    if SCALED:
        result = result * tl.load(scale_ptr + offset, mask=inside, other=0.0)
    tl.store(out_ptr + offset, result, mask=inside)


@triton.jit
def _sixteen_bit_kernel(  # type: ignore[no-untyped-def]
    bits_ptr, table_ptr, scale_ptr, out_ptr, length, SCALED: tl.constexpr, BLOCK: tl.constexpr
):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < length
    index = tl.load(bits_ptr + offset, mask=inside, other=0).to(tl.int32) + 32768
    result = tl.load(table_ptr + index)
    if SCALED:
        scale = tl.load(scale_ptr + offset, mask=inside, other=0.0)
        result = (result.to(tl.float32) * scale.to(tl.float32)).to(result.dtype)
    tl.store(out_ptr + offset, result, mask=inside)


def launch(g: Tensor, t_end: float, order: int, scale: Tensor | None) -> Tensor:
    """Evaluate f (order 0) or f' (order 1) at a float32, float16 or bfloat16 tensor, times ``scale`` if given.

    Args:
        g: Tensor of any shape on a device that Triton drives.
        t_end: End of the integration interval.
        order: 0 or 1.
        scale: Factor of the shape and dtype of ``g``, or None.

    Returns:
        Tensor of the shape, dtype and memory format of ``g``.
    """
    out = torch.empty_like(g)
    if out.stride() != g.stride():
        g = torch.empty_like(out).copy_(g)
    if scale is not None and scale.stride() != out.stride():
        scale = torch.empty_like(out).copy_(scale)
    length = g.numel()
    if length == 0:
        return out
    grid = (triton.cdiv(length, _BLOCK),)
    factor = g if scale is None else scale
    with torch.cuda.device_of(g):
        if g.dtype == torch.float32:
            size, slope_shift, *units = packed_constants(t_end, order)
            words = packed_words(t_end, order, g.device)
            arguments = (g, words, factor, out, length, *units, size / math.pi)
            _packed_kernel[grid](*arguments, SIZE=size, SLOPE_SHIFT=slope_shift, SCALED=scale is not None, BLOCK=_BLOCK)
        else:
            table = sixteen_bit_table(t_end, order, g.dtype, g.device)
            arguments = (g.view(torch.int16), table, factor, out, length)
            _sixteen_bit_kernel[grid](*arguments, SCALED=scale is not None, BLOCK=_BLOCK)
    return out
