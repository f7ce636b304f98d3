"""Half precision in the ONNX graph itself, as strongly typed builders need it.

TensorRT 11 and TensorRT-RTX take every type from the graph, and TensorRT 10 does so on request: an FP16 engine is one
that was built from an FP16 graph.
"""

from __future__ import annotations

from typing import Any

from meddet_yolo.trt.graph import float32_nodes, is_quantized, require, sort_nodes

__all__ = ["to_half"]

_HALF_QDQ_OPSET = 19  # the first in which the scales of Q/DQ nodes may be halves


def to_half(model: Any) -> Any:
    """Convert a single-precision graph to half precision.

    Inputs and outputs stay in single precision. So do nmODE² activations, whose argument is reduced modulo pi, and the
    decoding of boxes and scores (our decision: both are wrong or coarse in halves, and a small share of the work).

    Args:
        model: An `onnx.ModelProto` in single precision, with or without Q/DQ nodes. It is not changed.

    Returns:
        The converted `onnx.ModelProto`.

    Raises:
        ValueError: If the model has Q/DQ nodes and an opset below 19.
        ImportError: If `onnx` or `onnxruntime` is not installed.
    """
    onnx = require("onnx")
    float16 = require("onnxruntime.transformers.float16")
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    if is_quantized(model) and opset < _HALF_QDQ_OPSET:
        raise ValueError(
            f"the ONNX model has opset {opset}: Q/DQ nodes beside half precision need opset {_HALF_QDQ_OPSET} or "
            f"newer; export it again with opset={_HALF_QDQ_OPSET}"
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    keep = sorted(float32_nodes(copy))
    half = float16.convert_float_to_float16(copy, keep_io_types=True, node_block_list=keep)
    sort_nodes(half)  # the converter appends the casts of inputs behind their users
    onnx.checker.check_model(half)
    return half
