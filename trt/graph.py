"""Reading ONNX graphs: which parts are what, and how they are typed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from meddet_yolo.console import how_to_install

__all__ = [
    "OnnxError",
    "conv_precisions",
    "decoding_nodes",
    "float32_nodes",
    "input_shape",
    "is_quantized",
    "load_onnx",
    "metadata_of",
    "nmode_nodes",
    "sort_nodes",
]

_MATRIX_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class OnnxError(ValueError):
    """An ONNX file that cannot be used."""


def load_onnx(path: str | Path) -> Any:
    """Load and check an ONNX file.

    Returns:
        The `onnx.ModelProto`.

    Raises:
        FileNotFoundError: If there is no such file.
        OnnxError: If it is corrupt, or not one image in.
        ImportError: If `onnx` is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"ONNX model {path}: no such file")
    onnx = require("onnx")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, checker and external-data errors share no base class
        raise OnnxError(f"{path} is no valid ONNX model ({error}); export it again") from error
    inputs = [i for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise OnnxError(f"{path} must have one input of shape (B, C, H, W), it has {[i.name for i in inputs]}")
    return model


def require(module: str, extra: str = "export") -> Any:
    """Import an optional library; when it is missing, say how to install it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: {how_to_install(extra)}") from error


def input_shape(model: Any) -> tuple[int | None, ...]:
    """Shape (B, C, H, W) of the image input, None for a dynamic dimension."""
    names = {t.name for t in model.graph.initializer}
    tensor = next(i for i in model.graph.input if i.name not in names)
    return tuple(d.dim_value or None for d in tensor.type.tensor_type.shape.dim)


def metadata_of(model: Any) -> dict[str, str]:
    """The metadata that an exporter left in an ONNX model, as text."""
    return {p.key: p.value for p in model.metadata_props}


def is_quantized(model: Any) -> bool:
    """Whether a model carries quantize/dequantize (Q/DQ) nodes."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def nmode_nodes(model: Any) -> set[str]:
    """Names of the nodes that evaluate nmODE² activations.

    They are found by what they do, not by where they stand: reducing an argument by rounding or looking up a constant
    table, and what shares a scope with that; no other layer of a detector does either. Their argument is reduced
    modulo pi, for which half precision is far too coarse: at |g| = 100 a half has steps of 0.06.
    """
    tables = {t.name for t in model.graph.initializer if t.data_type == 1}
    scopes = {
        _scope(node)
        for node in model.graph.node
        if node.op_type == "Round" or (node.op_type in {"Gather", "GatherElements"} and node.input[0] in tables)
    }
    return {n.name for n in model.graph.node if _scope(n) in scopes and n.op_type not in _MATRIX_OPS}


def decoding_nodes(model: Any) -> set[str]:
    """Names of the nodes between the head's output convolutions and the graph's outputs.

    They turn logits into pixel coordinates and scores. Half precision would round coordinates above 512 pixels to
    half a pixel, for no gain: they are a thousandth of the work.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    pending, found = [output.name for output in model.graph.output], set()
    while pending:
        node = producers.get(pending.pop())
        if node is None or node.name in found or (node.op_type in _MATRIX_OPS and not _is_dfl(node, producers)):
            continue
        found.add(node.name)
        pending.extend(node.input)
    return found


def float32_nodes(model: Any) -> set[str]:
    """Names of the nodes that stay in single precision whatever the engine's precision."""
    return nmode_nodes(model) | decoding_nodes(model)


def conv_precisions(model: Any) -> Counter[str]:
    """How many convolutions a strongly typed graph computes in each precision ("fp32", "fp16", "int8", "fp8")."""
    producers = {output: node for node in model.graph.node for output in node.output}
    types = {t.name: t.data_type for t in model.graph.initializer}
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        feeders = [producers.get(name) for name in node.input[:2]]
        if all(f is not None and f.op_type == "DequantizeLinear" for f in feeders):
            zero = feeders[0].input[2] if len(feeders[0].input) > 2 else None  # type: ignore[union-attr]
            counts["fp8" if types.get(zero) == 17 else "int8"] += 1
        else:
            counts["fp16" if _weight_type(node.input[1], producers, types) == 10 else "fp32"] += 1
    return counts


def sort_nodes(model: Any) -> None:
    """Put a graph's nodes into an order in which every input is computed before it is used."""
    graph = model.graph
    known = {t.name for t in graph.initializer} | {i.name for i in graph.input} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = []
        for node in waiting:
            if all(name in known for name in node.input):
                known.update(node.output)
                ready.append(node)
        if not ready:
            raise OnnxError(f"the graph has a cycle or a missing input at node {waiting[0].name!r}")
        ordered += ready
        done = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in done]
    del graph.node[:]
    graph.node.extend(ordered)


def _scope(node: Any) -> str:
    return str(node.name).rsplit("/", 1)[0]


def _is_dfl(node: Any, producers: dict[str, Any]) -> bool:
    """Whether a convolution is the expectation over a softmax with which a head decodes its distances."""
    feeder = producers.get(node.input[0])
    while feeder is not None and feeder.op_type in {"Transpose", "Reshape", "Cast"}:
        feeder = producers.get(feeder.input[0])
    return feeder is not None and feeder.op_type == "Softmax"


def _weight_type(name: str, producers: dict[str, Any], types: dict[str, int]) -> int | None:
    """ONNX type of a convolution's weights, seen through a cast."""
    while name not in types:
        node = producers.get(name)
        if node is None:
            return None
        if node.op_type == "Cast":
            return int(next(a.i for a in node.attribute if a.name == "to"))
        if node.op_type == "Constant":
            return int(next(a.t.data_type for a in node.attribute if a.name == "value"))
        name = node.input[0]
    return types[name]
