"""nmODE² in ordinary operations: for compilers, for tracers and exporters, and in full precision.

- `pointwise`: one lookup an element in a chain that a compiler fuses.
- `exportable`: Mul, Round and Gather nodes in single precision, for ONNX, OpenVINO and TensorRT.
- `series`: the Fourier series, to all digits and of any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from meddet_yolo.nn.nmode.closed import plain_table
from meddet_yolo.nn.nmode.tables import (
    SIXTEEN_BIT,
    packed_constants,
    packed_words,
    plain_tensors,
    series_constants,
    sixteen_bit_table,
    untraced,
)

# Pi in two parts (Cody and Waite): the first has 12 bits, so that its multiples are exact in float32 up to 4,096 pi,
# beyond |g| of 1e4; the second is so small that those of its multiples hardly need be.
PI_PARTS = (3217 / 1024, math.pi - 3217 / 1024)
# Adding this to a float32 below 2**22 in magnitude rounds it to an integer, which then sits in the low mantissa bits.
ROUNDING_SHIFT = 1.5 * 2.0**23


def pointwise(g: Tensor, t_end: float, order: int) -> Tensor:
    """Table lookup as one chain of pointwise operations and a single gather, to be fused by a compiler."""
    if g.dtype in SIXTEEN_BIT:
        index = g.view(torch.int16).to(torch.int64) + 32768
        return _lookup(sixteen_bit_table(t_end, order, g.dtype, g.device), index)
    size, slope_shift, value_unit, value_origin, slope_unit = packed_constants(t_end, order)
    per_radian = size / math.pi
    turns = torch.round(g * (1 / math.pi))
    x = (g - turns * PI_PARTS[0]) * per_radian - turns * (PI_PARTS[1] * per_radian)
    # The index comes from the bits of the rounded number, which is cheaper than a conversion.
    index = ((x + ROUNDING_SHIFT).view(torch.int32) & (size - 1)).to(torch.int64)
    word = _lookup(packed_words(t_end, order, g.device), index)
    value = word.to(g.dtype) * value_unit + value_origin
    return value + (x - torch.round(x)) * slope_unit * (word << slope_shift).to(g.dtype)


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` in index's memory format, without the range checks that a compiled ``table[index]`` carries."""
    if index.dim() == 4 and index.is_contiguous(memory_format=torch.channels_last):
        return _take(table, index.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if index.dim() == 0:
        return _take(table, index.reshape(1)).reshape(())
    return _take(table, index)


def _take(table: Tensor, index: Tensor) -> Tensor:
    return torch.gather(table.expand(*index.shape[:-1], -1), -1, index)


def exportable(g: Tensor, t_end: float, order: int) -> Tensor:
    """The lines of `PlainTable`, in operations that every runtime has; float32 inside.

    The argument is reduced in one multiplication, which a runtime folds into the convolution before it. The error of
    the table is so joined by that of rounding g twice, 1.5 * 2**-24 * |g| * max|f'|: less than what the convolution is
    uncertain by.
    """
    turns = g.float() * (1 / math.pi)
    if torch.onnx.is_in_onnx_export():
        result = _lines(turns.reshape(_rows(g), -1), t_end, order, _gather_elements).reshape(g.shape)
    elif g.dim() == 4:
        # OpenVINO computes convolutions with the channels last, and so need not reorder its tensors; its threads share
        # the first of two dimensions.
        turns = turns.permute(0, 2, 3, 1)
        result = _lines(turns.flatten(2).flatten(0, 1), t_end, order, _gather)
        result = result.reshape(turns.shape).permute(0, 3, 1, 2)
    else:
        result = _lines(turns.reshape(1, -1), t_end, order, _gather).reshape(g.shape)
    return result.to(g.dtype)


def _rows(g: Tensor) -> int:
    """Rows in which ONNX Runtime's threads share the work of GatherElements, a divisor of the number of channels."""
    with untraced():
        return math.gcd(g.shape[1], 4) if g.dim() > 1 else 1


def _lines(turns: Tensor, t_end: float, order: int, look_up: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Value at ``turns``: g in units of pi, of shape (rows, N). ``look_up`` takes a table and cell numbers, row by row.

    NaN has no cell. Each look-up takes another one in its place, and u carries the NaN into the result.
    """
    size = plain_table(t_end, order).size
    u = turns - torch.round(turns)
    cell = u * size + size / 2  # in [0, size]
    with untraced():
        rows = turns.shape[0] if look_up is _gather_elements else 1
        intercepts, slopes = plain_tensors(t_end, order, rows, turns.device)
    return look_up(intercepts, cell) + u * look_up(slopes, cell)


class _GatherElements(torch.autograd.Function):
    """``table[row, cell]`` for cells >= 0 or NaN, which takes cell 0.

    In ONNX Runtime GatherElements is several times faster than Gather, a little more with 32-bit indices (a trace has
    64), and ThresholdedRelu is its cheapest way to replace NaN.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, cell: Tensor) -> Tensor:
        return torch.gather(table, 1, torch.nan_to_num(cell).long())

    @staticmethod
    def symbolic(graph: Any, table: Any, cell: Any) -> Any:
        int32 = 6  # onnx.TensorProto.INT32
        index = graph.op("Cast", graph.op("ThresholdedRelu", cell, alpha_f=-1.0), to_i=int32)
        return graph.op("GatherElements", table, index, axis_i=1)


def _gather_elements(table: Tensor, cell: Tensor) -> Tensor:
    result: Tensor = _GatherElements.apply(table, cell)
    return result


def _gather(table: Tensor, cell: Tensor) -> Tensor:
    """Gather from the only row: in OpenVINO several times faster than GatherElements."""
    index = torch.where(cell >= 0, cell, 0.0).to(torch.int32)  # false for NaN
    return torch.index_select(table[0], 0, index.reshape(-1)).reshape(cell.shape)


def series(g: Tensor, t_end: float, order: int) -> Tensor:
    """The Fourier series by Clenshaw's recurrence."""
    work = g.float() if g.dtype in SIXTEEN_BIT else g
    constants = series_constants(t_end, order)
    sin_g, cos_g = torch.sin(work), torch.cos(work)
    cos, sin = 1 - 2 * sin_g.square(), 2 * sin_g * cos_g  # of 2g, which itself could overflow
    twice = 2 * cos
    even, even_next = torch.zeros_like(cos), torch.zeros_like(cos)
    odd, odd_next = even, even_next
    for a, b in reversed(constants[1:]):
        even, even_next = a + twice * even - even_next, even
        odd, odd_next = b + twice * odd - odd_next, odd
    return (constants[0][0] + cos * even - even_next + sin * odd).to(g.dtype)
