"""The tables of nmODE² as tensors on any device, made on demand and shared in the process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from meddet_yolo.nn.nmode.closed import FloatArray, closed_form, packed_table, plain_table, sixteen_bit_values

SIXTEEN_BIT = (torch.float16, torch.bfloat16)


@contextmanager
def untraced() -> Iterator[None]:
    """Keep the making of a table out of a TorchScript trace, in which the finished table is a constant."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]  # not in the stubs
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]  # as above


class _TensorCache:
    """Tables per (t_end, order, kind, device), filled on demand; never with a tracer's stand-in for a tensor."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[object, ...], Tensor] = {}

    def get(self, key: tuple[object, ...], device: torch.device, build: Callable[[], Tensor]) -> Tensor:
        tensor = self._tensors.get((*key, device))
        if tensor is None:
            with torch.inference_mode(False), torch.no_grad(), untraced():
                tensor = build().to(device)
            if type(tensor) is Tensor:
                self._tensors[(*key, device)] = tensor
        return tensor


_CACHE = _TensorCache()


class _Shelf:
    """Tables as attributes, each under a name of its own: what a compiled function reads."""


_SHELF = _Shelf()


def packed_words(t_end: float, order: int, device: torch.device) -> Tensor:
    """Words of the packed table as an int32 tensor of shape (size,)."""
    if torch.compiler.is_dynamo_compiling():
        words: Tensor = getattr(_SHELF, _shelve(t_end, order, torch.float32, device))
        return words
    return _packed_words(t_end, order, device)


@torch.compiler.assume_constant_result
def packed_constants(t_end: float, order: int) -> tuple[int, int, float, float, float]:
    """Size, slope shift, value unit, value origin and slope unit of the packed table."""
    table = packed_table(t_end, order)
    return table.size, table.slope_shift, table.value_unit, table.value_origin, table.slope_unit


def sixteen_bit_table(t_end: float, order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Results for the bit patterns -32768 ... 32767 of a 16-bit float, shape (65536,)."""
    if torch.compiler.is_dynamo_compiling():
        results: Tensor = getattr(_SHELF, _shelve(t_end, order, dtype, device))
        return results
    return _sixteen_bit_table(t_end, order, dtype, device)


def _packed_words(t_end: float, order: int, device: torch.device) -> Tensor:
    return _CACHE.get(("packed", t_end, order), device, lambda: torch.from_numpy(packed_table(t_end, order).words))


def _sixteen_bit_table(t_end: float, order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    def build() -> Tensor:
        bits = torch.from_numpy(np.arange(-32768, 32768).astype(np.int16))
        inputs = bits.view(dtype).double().numpy()
        return torch.from_numpy(sixteen_bit_values(inputs, t_end, order)).to(dtype)

    return _CACHE.get(("sixteen", t_end, order, dtype), device, build)


@torch.compiler.assume_constant_result
def _shelve(t_end: float, order: int, dtype: torch.dtype, device: torch.device) -> str:
    """Put the table for g of this dtype on the shelf while a function is compiled, and return its name there.

    Were the table itself the constant result, Dynamo would call it by the name of the function that makes it; two of
    one name in a graph, as those of a value and of its gradient, are an error in torch 2.14. The functions called here
    must not ask whether Dynamo compiles: where it has compiled them too, their answer is yes for good.
    """
    name = re.sub(r"\W", "_", f"{dtype}_{t_end!r}_{order}_{device}")
    if not hasattr(_SHELF, name):
        sixteen = dtype in SIXTEEN_BIT
        table = _sixteen_bit_table(t_end, order, dtype, device) if sixteen else _packed_words(t_end, order, device)
        setattr(_SHELF, name, table)
    return name


def plain_tensors(t_end: float, order: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Intercepts and slopes of the plain table, each of shape (rows, size + 1) with equal rows."""
    table = plain_table(t_end, order)

    def tensor(name: str, values: FloatArray) -> Tensor:
        return _CACHE.get((name, t_end, order, rows), device, lambda: torch.from_numpy(np.tile(values, (rows, 1))))

    return tensor("intercepts", table.intercepts), tensor("slopes", table.slopes)


@torch.compiler.assume_constant_result
def series_constants(t_end: float, order: int) -> list[tuple[float, float]]:
    """Cosine and sine coefficients of the series, lowest harmonic first."""
    return [(float(c.real), float(-c.imag)) for c in closed_form(t_end).series(order)]
