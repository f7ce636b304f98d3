"""The precision that an engine really has, read back and held against what was asked for.

A builder can fall back to another precision and say nothing: `fp16=True` on TensorRT 11 is known to have ended in an
FP32 engine with exit code 0. So every engine is audited. The engine inspector tells the data type of every tensor of
every layer when the engine was built with detailed profiling verbosity. Where the engine cannot be loaded (no GPU, or
another one than it was built for) the builder's own log of the finished engine says the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PRECISIONS", "Layer", "PrecisionAudit", "PrecisionError", "parse_layers"]

PRECISIONS = ("fp32", "tf32", "fp16", "int8", "fp8")
_MATRIX = re.compile(r"conv|corr|gemm|matmul|matrixmultiply|mha|attention", re.IGNORECASE)
# Layers that move or transform data; the names of convolutions they were fused with appear in their names.
_NO_MATRIX = re.compile(
    r"^(kgen|reformat|noop|constant|shuffle|signal|wait|pointwise\w*|move|shape_call|slice|concat\w*|cast|quantize|"
    r"dequantize|runtime_function)$",
    re.IGNORECASE,
)
_TYPES = (  # the words of TensorRT 8 to 11 and RTX, the more specific first
    ("fp8", re.compile(r"\b(fp8|float8\w*|e4m3\w*)\b", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(bf16|bfloat16|bfloat)\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(fp16|half|float16)\b", re.IGNORECASE)),
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("int32", re.compile(r"\bint32\b", re.IGNORECASE)),
    ("int64", re.compile(r"\bint64\b", re.IGNORECASE)),
    ("bool", re.compile(r"\bbool\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(fp32|float32|float)\b", re.IGNORECASE)),
)
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: \[(?P<inputs>.*?)\](?:, Constants|, Out)"
)
_OLD_LINE = re.compile(r"^Layer\((?P<kind>[^)]*)\): (?P<name>.*?), Tactic: [^,]*, (?P<inputs>.*?) -> (?P<outputs>.*)$")
_OLD_TYPE = re.compile(r"\[(\w+)\(")
_OUTPUTS = re.compile(r"Outputs: \[(?P<outputs>.*?)\], TacticName")
_DATATYPE = re.compile(r"(?:Datatype|DataType|Format/Datatype): ([^,}\]]+)")
_STRONGLY_TYPED_SHARE = 0.95  # of the layers that the graph wants in a precision
_FLAGGED_SHARE = 0.5  # with flags TensorRT 10 may keep a layer in FP32 where that is faster


class PrecisionError(RuntimeError):
    """An engine that has not the precision that was asked for."""


@dataclass(frozen=True)
class Layer:
    """One layer of a finished engine.

    Attributes:
        name: Its name.
        kind: Its kind in the engine ("CaskConvolution", "correlation", "kgen", ...).
        inputs: Precisions of its input tensors, the data first.
        outputs: Precisions of its output tensors.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The precision that it computes in: that of the data it reads."""
        return (*self.inputs, *self.outputs, "unknown")[0]

    @property
    def is_matrix(self) -> bool:
        """Whether it is a convolution or matrix product, alone or with what was fused to it."""
        if _NO_MATRIX.match(self.kind):
            return False
        fused = self.kind in {"runtime_fusion", "fusion"} or self.kind.startswith("Myelin")
        return bool(_MATRIX.search(self.name if fused else f"{self.kind} {self.name.partition(' [ONNX')[0]}"))


@dataclass(frozen=True)
class PrecisionAudit:
    """What an engine computes in which precision.

    Attributes:
        requested: The precision that was asked for.
        source: "inspector" or "build log".
        kinds: Layers of each kind by precision, such as {"CaskConvolution": {"fp16": 87, "fp32": 1}}.
        matrix: Convolutions and matrix products by precision: what decides speed and accuracy.
    """

    requested: str
    source: str
    kinds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    matrix: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: Iterable[Layer], requested: str, source: str) -> PrecisionAudit:
        """Count layers.

        Examples:
            >>> layers = [Layer("a", "CaskConvolution", ("fp16",), ("fp16",)), Layer("b", "Reformat", ("fp32",), ())]
            >>> PrecisionAudit.of(layers, "fp16", "inspector").matrix
            {'fp16': 1}
        """
        kinds: dict[str, Counter[str]] = {}
        matrix: Counter[str] = Counter()
        for layer in layers:
            if not layer.inputs and not layer.outputs:
                continue  # synchronisation
            kinds.setdefault(layer.kind, Counter())[layer.precision] += 1
            if layer.is_matrix:
                matrix[layer.precision] += 1
        return cls(requested, source, {k: dict(v) for k, v in sorted(kinds.items())}, dict(matrix))

    def check(self, expected: Mapping[str, int] | None = None, *, flagged: bool = False) -> PrecisionAudit:
        """Hold the engine against the request.

        Args:
            expected: Convolutions by precision in the graph that it was built from; in a quantized graph some are
                meant to stay in floating point. Without it all are expected in the precision asked for.
            flagged: Whether precision was only allowed by a flag (TensorRT 10), not demanded by the graph.

        Returns:
            Itself.

        Raises:
            PrecisionError: If fewer convolutions and matrix products than expected have the precision asked for, or
                none can be found.
        """
        wanted = "fp32" if self.requested == "tf32" else self.requested
        total = sum(self.matrix.values())
        if total == 0:
            raise PrecisionError(
                f"the engine's precision cannot be read back: the {self.source} names no convolution or matrix "
                f"product among its layers ({', '.join(self.kinds) or 'none'})"
            )
        found = self.matrix.get(wanted, 0)
        share, count = 1.0, 0
        if expected:
            count = expected.get(wanted, 0)
            share = count / max(1, sum(expected.values()))
        factor = _FLAGGED_SHARE if flagged else _STRONGLY_TYPED_SHARE
        # Fusion changes the number of layers, and attention adds products that are never quantized: either will do.
        honoured = found >= factor * share * total or found >= factor * count > 0
        if share == 0 or not honoured:
            raise PrecisionError(
                f"precision={self.requested} was not honoured: the engine's {total} convolutions and matrix products "
                f"are {_listed(self.matrix)}; expected at least {factor * share:.0%} in {wanted}. It was not written"
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """The audit as plain values for header and sidecar."""
        return {
            "requested": self.requested,
            "source": self.source,
            "matrix": dict(self.matrix),
            "kinds": {kind: dict(counts) for kind, counts in self.kinds.items()},
        }

    def __str__(self) -> str:
        """The audit as a table for people."""
        lines = [f"precision {self.requested}: convolutions and matrix products {_listed(self.matrix)} ({self.source})"]
        lines += [f"  {kind:<24} {_listed(counts)}" for kind, counts in self.kinds.items()]
        return "\n".join(lines)


def parse_layers(text: str) -> list[Layer]:
    """Read the layers of an engine out of the inspector's JSON or the builder's log.

    Args:
        text: `EngineInspector.get_engine_information(JSON)`, or the message that begins with "Layers:".

    Returns:
        The layers in the engine's order.

    Raises:
        PrecisionError: If it holds names only: the engine was not built with detailed profiling verbosity.
    """
    if not text.lstrip().startswith("{"):
        return [layer for line in text.splitlines() if (layer := _from_line(line)) is not None]
    layers = json.loads(text).get("Layers", [])
    if any(isinstance(layer, str) for layer in layers):
        raise PrecisionError(
            "the engine inspector gives layer names only: the engine was built without detailed profiling verbosity"
        )
    return [
        Layer(
            str(layer.get("Name", "")),
            str(layer.get("LayerType", "unknown")),
            _types(layer.get("Inputs", ())),
            _types(layer.get("Outputs", ())),
        )
        for layer in layers
    ]


def precision_of(text: str) -> str:
    """Name the precision in a description such as "Channel major FP16 format where channel % 8 == 0".

    Examples:
        >>> precision_of("Thirty-two wide channel vectorized row major Int8 format"), precision_of("Half")
        ('int8', 'fp16')
    """
    return next((name for name, pattern in _TYPES if pattern.search(text)), "unknown")


def _types(tensors: Any) -> tuple[str, ...]:
    """Precisions of tensors as the inspector's JSON describes them."""
    found = []
    for tensor in tensors:
        if isinstance(tensor, Mapping):
            keys = ("Datatype", "DataType", "Format/Datatype", "Format")
            found.append(precision_of(str(next((tensor[k] for k in keys if k in tensor), ""))))
    return tuple(found)


def _from_line(line: str) -> Layer | None:
    """Read one line of the inspector's one-line format."""
    match = _LINE.match(line.strip())
    if match is None:
        return _from_old_line(line.strip())
    outputs = _OUTPUTS.search(line)
    inputs = tuple(precision_of(t) for t in _DATATYPE.findall(match["inputs"] + "}"))
    results = tuple(precision_of(t) for t in _DATATYPE.findall((outputs["outputs"] if outputs else "") + "}"))
    return Layer(match["name"], match["kind"], inputs, results)


def _from_old_line(line: str) -> Layer | None:
    """Read one line in the words of older builders: ``Layer(Kind): name, Tactic: 0x1, x[Half(1,8)] -> y[Half(8)]``."""
    match = _OLD_LINE.match(line)
    if match is None:
        return None
    types = (tuple(precision_of(t) for t in _OLD_TYPE.findall(match[part])) for part in ("inputs", "outputs"))
    return Layer(match["name"], match["kind"], *types)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda c: -c[1])) or "none"
