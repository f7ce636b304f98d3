"""An ONNX graph in the shape that ONNX Runtime's CPU kernels run best, with the same numbers.

Its convolutions keep channels in blocks, a layout that Split does not know: before every Split a tensor is reordered,
and again behind it. YOLO's C2f, C3k2 and C2PSA blocks begin with a convolution whose output is split in two. Two
convolutions of half the channels do the same and need no Split. Our own decision, by measurement: 5 to 7 % of yolo26n's
time on a CPU with AVX-512; OpenVINO is indifferent to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meddet_yolo.trt.graph import require

__all__ = ["split_convolutions"]

_BLOCK = 8  # channels in the smallest block of that layout


@dataclass(frozen=True)
class _Match:
    """A convolution, the nodes of its activation in order, and the Split that takes its output apart."""

    conv: Any
    activation: Sequence[Any]
    split: Any
    sizes: Sequence[int]


def split_convolutions(model: Any) -> int:
    """Replace each convolution whose output is only split by one convolution for each part, in place.

    Every output channel is computed from the same weights by the same operations as before. A pair is left alone where
    the output of the convolution or of its activation has another use, where its weights are not constants or are
    grouped, or where a part is no multiple of eight channels.

    Args:
        model: An `onnx.ModelProto` with sorted nodes.

    Returns:
        How many convolutions were replaced.

    Examples:
        >>> split_convolutions(onnx.load("best.onnx"))  # doctest: +SKIP
        9
    """
    numpy_helper = require("onnx").numpy_helper
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    constants |= {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    matches = _matches(graph, constants)
    replacements: dict[int, list[Any]] = {}  # by identity: `matches` keeps the nodes alive
    for match in matches:
        parts = [_slices(numpy_helper.to_array(constants[name]), match.sizes) for name in match.conv.input[1:]]
        for node in (match.conv, *match.activation):
            replacements[id(node)] = []
        replacements[id(match.split)] = [
            node for k in range(len(match.sizes)) for node in _part(graph, match, k, [p[k] for p in parts])
        ]
    nodes = [new for node in graph.node for new in replacements.get(id(node), [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return len(matches)


def _matches(graph: Any, constants: dict[str, Any]) -> list[_Match]:
    to_array = require("onnx").numpy_helper.to_array
    producers = {output: node for node in graph.node for output in node.output}
    uses = Counter(name for node in graph.node for name in node.input) + Counter(o.name for o in graph.output)
    found = []
    for split in graph.node:
        if split.op_type != "Split" or _attribute(split, "axis", 0) != 1:
            continue
        conv, activation = _activated_convolution(split.input[0], producers, uses)
        if conv is None or _attribute(conv, "group", 1) != 1 or len(split.input) < 2:
            continue
        if any(name not in constants for name in (*conv.input[1:], split.input[1])):
            continue
        sizes = [int(size) for size in to_array(constants[split.input[1]])]
        if all(size % _BLOCK == 0 for size in sizes):
            found.append(_Match(conv, activation, split, sizes))
    return found


def _activated_convolution(name: str, producers: dict[str, Any], uses: Counter[str]) -> tuple[Any, list[Any]]:
    """Return the convolution behind a tensor and the nodes of a SiLU between them; None where it is another thing."""
    node = producers.get(name)
    if node is None or uses[name] != 1:
        return None, []
    if node.op_type == "Conv":
        return node, []
    if node.op_type != "Mul":
        return None, []
    conv, sigmoid = sorted(
        (producers.get(i) for i in node.input), key=lambda n: n is not None and n.op_type == "Sigmoid"
    )
    if conv is None or sigmoid is None or (conv.op_type, sigmoid.op_type) != ("Conv", "Sigmoid"):
        return None, []
    alone = uses[conv.output[0]] == 2 and uses[sigmoid.output[0]] == 1 and sigmoid.input[0] == conv.output[0]
    return (conv, [sigmoid, node]) if alone else (None, [])


def _slices(weights: Any, sizes: Sequence[int]) -> list[Any]:
    return np.split(weights, np.cumsum(sizes)[:-1])


def _part(graph: Any, match: _Match, k: int, weights: Sequence[Any]) -> list[Any]:
    """Make part number k: its convolution and its activation; its weights go into the graph."""
    onnx = require("onnx")
    conv, activation, target = match.conv, match.activation, match.split.output[k]
    names = [f"{conv.name}.{k}.{kind}" for kind in ("weight", "bias")[: len(weights)]]  # others may share those of conv
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(w), n) for w, n in zip(weights, names, strict=True)
    )
    outputs = {conv.output[0]: f"{conv.output[0]}.{k}" if activation else target}
    made = []
    for node in (conv, *activation):
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.name = f"{node.name}.{k}"
        if node is not conv:
            outputs[node.output[0]] = target if node is activation[-1] else f"{node.output[0]}.{k}"
        new.input[:] = [conv.input[0], *names] if node is conv else [outputs[name] for name in node.input]
        new.output[:] = [outputs[node.output[0]]]
        made.append(new)
    return made


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _drop_unused(graph: Any) -> None:
    """Remove weights and constant nodes that nothing uses any more, and the shapes of tensors that are gone."""
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    nodes = [n for n in graph.node if n.op_type != "Constant" or n.output[0] in used]
    weights = [t for t in graph.initializer if t.name in used]
    made = {name for node in nodes for name in node.output}
    shapes = [v for v in graph.value_info if v.name in made]
    for field, kept in ((graph.node, nodes), (graph.initializer, weights), (graph.value_info, shapes)):
        del field[:]
        field.extend(kept)
