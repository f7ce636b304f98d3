"""Evaluation of the closed form of nmODE² in PyTorch: which form runs where.

- float32, float16 and bfloat16 in eager mode: on a CPU `meddet_yolo.nn.nmode.cpu`; on CUDA a fused Triton kernel where
  Triton is installed, `meddet_yolo.nn.nmode.triton`.
- torch.compile and other devices, TorchScript and ONNX, float64 and higher derivatives: `meddet_yolo.nn.nmode.graph`.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch
from torch import Tensor

from meddet_yolo.nn.nmode.cpu import evaluate_on_cpu
from meddet_yolo.nn.nmode.graph import exportable, pointwise, series


def evaluate(g: Tensor, t_end: float, order: int) -> Tensor:
    """The derivative of f of the given order at g, in the shape, dtype and memory format of g.

    Args:
        g: Floating-point tensor of any shape.
        t_end: End of the integration interval.
        order: 0 for f, 1 for f', and so on.
    """
    if torch.jit.is_tracing():
        return series(g, t_end, order) if order > 1 else exportable(g, t_end, order)
    if g.dtype == torch.float64 or order > 1:
        return series(g, t_end, order)
    if not torch.compiler.is_compiling() and type(g) in (Tensor, torch.nn.Parameter):
        if g.device.type == "cpu":
            return evaluate_on_cpu(g, t_end, order, None)
        if g.device.type == "cuda" and _has_triton():
            from meddet_yolo.nn.nmode.triton import launch

            return launch(g, t_end, order, None)
    return pointwise(g, t_end, order)


def evaluate_scaled(g: Tensor, t_end: float, order: int, scale: Tensor) -> Tensor:
    """``scale * evaluate(g, t_end, order)`` without autograd and without the intermediate where the path allows it."""
    same = scale.dtype == g.dtype and scale.device == g.device and type(scale) is Tensor
    if same and order <= 1 and g.dtype != torch.float64 and not torch.compiler.is_compiling():
        if g.device.type == "cpu":
            return evaluate_on_cpu(g, t_end, order, scale)
        if g.device.type == "cuda" and _has_triton():
            from meddet_yolo.nn.nmode.triton import launch

            return launch(g, t_end, order, scale)
    return scale * evaluate(g, t_end, order)


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
