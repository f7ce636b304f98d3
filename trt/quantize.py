"""Quantized ONNX models: Q/DQ nodes with scales from the user's own images.

TensorRT 11 and TensorRT-RTX have no calibrators any more; TensorRT 10's are deprecated. Q/DQ nodes in the graph are
understood by all of them, by ONNX Runtime and by OpenVINO, so what is measured on a CPU is what the engine computes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meddet_yolo.trt.graph import conv_precisions, decoding_nodes, input_shape, is_quantized, nmode_nodes, require

__all__ = ["CALIBRATION_METHODS", "quantize_onnx", "sensitive_convolutions"]

CALIBRATION_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
_MINIMUM_IMAGES = 8
_INT8_MAX = 127.0
_E4M3_MAX = 448.0
_E4M3 = 17  # onnx.TensorProto.FLOAT8E4M3FN


def sensitive_convolutions(model: Any) -> set[str]:
    """Names of the convolutions that stay in floating point when a model is quantized.

    - The head's output convolutions, whose results are logits and distances: eight bits there cost most of the
      accuracy and next to none of the time. With them goes the expectation that decodes distances (DFL).
    - Every convolution whose result nmODE² reads: f(g) has the period pi, so an error in g is never damped.

    They are found by their place in the graph. (Our decision; docs/tensorrt.md has the measurement.)
    """
    heads, nmode = decoding_nodes(model), nmode_nodes(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    sensitive = set()
    for node in model.graph.node:
        if node.name in heads and node.op_type == "Conv":
            sensitive.add(node.name)
        if node.name not in heads and node.name not in nmode:
            continue
        feeders = (producers.get(name) for name in node.input)
        sensitive |= {f.name for f in feeders if f is not None and f.op_type == "Conv"}
    return sensitive


def quantize_onnx(
    model: Any,
    images: Iterable[npt.NDArray[np.float32]],
    *,
    precision: str = "int8",
    method: str = "minmax",
    exclude: Iterable[str] = (),
) -> Any:
    """Quantize the convolutions of a model by ONNX Runtime's static quantizer.

    Weights get one symmetric scale per output channel, activations one symmetric scale per tensor, as TensorRT wants
    them; biases and all other operations stay in floating point.

    Args:
        model: An `onnx.ModelProto` in single precision. It is not changed.
        images: Calibration images as the network sees them, each of shape (C, H, W) or (1, C, H, W), float32 in
            [0, 1]. They should be images of the application, a few dozen to some hundred of them.
        precision: "int8" or "fp8" (E4M3; for GPUs of compute capability 8.9 and later).
        method: How the range of an activation is chosen: "minmax", "entropy" or "percentile".
        exclude: Names of further nodes to leave in floating point.

    Returns:
        The quantized `onnx.ModelProto`.

    Raises:
        ValueError: If precision or method is unknown, the model is quantized already, images are missing, too few or
            of another shape, or nothing was quantized.
        ImportError: If `onnx` or `onnxruntime` is not installed.
    """
    if precision not in {"int8", "fp8"}:
        raise ValueError(f"precision={precision!r} is no quantized precision: use int8 or fp8")
    if method not in CALIBRATION_METHODS:
        raise ValueError(f"calibration={method!r} is unknown: use one of {', '.join(CALIBRATION_METHODS)}")
    if is_quantized(model):
        raise ValueError("the ONNX model has Q/DQ nodes already: give the floating-point model")
    onnx, quantization = require("onnx"), require("onnxruntime.quantization")
    reader = _Reader(model, images, quantization)
    options: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": True,
        # The result of a convolution goes into its activation function: quantizing it would add a second rounding.
        "OpTypesToExcludeOutputQuantization": ["Conv"],
    }
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a pre-processing step that our exports have been through
    try:
        quiet = contextlib.redirect_stdout(io.StringIO())  # its histograms narrate themselves
        with tempfile.TemporaryDirectory(prefix="meddet-quantize-") as folder, quiet:
            source, target = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
            onnx.save(model, str(source))
            quantization.quantize_static(
                str(source),
                str(target),
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=sorted(sensitive_convolutions(model) | set(exclude)),
                calibrate_method=getattr(quantization.CalibrationMethod, CALIBRATION_METHODS[method]),
                extra_options=options,
            )
            result = onnx.load(str(target))
    finally:
        root.setLevel(level)
    if precision == "fp8":
        _to_float8(result)
    if not conv_precisions(result)[precision]:
        raise ValueError(f"no convolution was quantized to {precision}: the model has none outside its sensitive parts")
    for entry in model.metadata_props:
        if entry.key not in {p.key for p in result.metadata_props}:
            result.metadata_props.add(key=entry.key, value=entry.value)
    return result


def _to_float8(model: Any) -> None:
    """Turn symmetric INT8 Q/DQ nodes into E4M3 ones that cover the same range, in place.

    ONNX Runtime's own FP8 calibration fits one scale per tensor to the spread of the values; the largest magnitude,
    one scale per output channel of weights, is what TensorRT's documentation asks for and is far more accurate here.
    """
    onnx = require("onnx")
    tensors = {t.name: t for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    for name in {node.input[1] for node in pairs}:
        scale = onnx.numpy_helper.to_array(tensors[name])
        largest = np.float32(_INT8_MAX / _E4M3_MAX) * scale
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(largest.astype(scale.dtype), name))
    for name in {node.input[2] for node in pairs}:
        zero = tensors[name]
        zeros = bytes(int(np.prod(zero.dims)))
        zero.CopyFrom(onnx.TensorProto(name=name, dims=zero.dims, data_type=_E4M3, raw_data=zeros))
    values = {t.name: t for t in model.graph.value_info}
    for name in {output for node in pairs if node.op_type == "QuantizeLinear" for output in node.output}:
        if name in values:
            values[name].type.tensor_type.elem_type = _E4M3


class _Reader:
    """Feeds calibration images in the model's batch size; checks them as they come."""

    def __init__(self, model: Any, images: Iterable[npt.NDArray[np.float32]], quantization: Any) -> None:
        self.name = next(i.name for i in model.graph.input)
        self.shape = input_shape(model)
        self.images = [self._checked(image) for image in images]
        if not self.images:
            raise ValueError("no calibration images: give data=<data.yaml> with at least 8 images of your application")
        if len(self.images) < _MINIMUM_IMAGES:
            raise ValueError(
                f"{len(self.images)} calibration images are too few to know the range of any activation: give at "
                f"least {_MINIMUM_IMAGES}, better a hundred"
            )
        self.rewind()

    def rewind(self) -> None:
        """Start again from the first image."""
        self._batches = self._batched()

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """Return the next batch by input name, None at the end."""
        return next(self._batches, None)

    def _batched(self) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
        size = self.shape[0] or 1
        for start in range(0, len(self.images), size):
            part = self.images[start : start + size]
            part += self.images[: size - len(part)] if len(part) < size else []  # a static batch is always full
            while len(part) < size:
                part.append(part[-1])
            yield {self.name: np.stack(part)}

    def _checked(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        image = np.asarray(image, np.float32)
        image = image[0] if image.ndim == 4 and len(image) == 1 else image
        wanted = self.shape[1:]
        fits = image.ndim == 3 and all(w is None or w == s for w, s in zip(wanted, image.shape, strict=True))
        if not fits:
            raise ValueError(f"calibration image of shape {image.shape}: the model takes (C, H, W) = {wanted}")
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise ValueError(
                f"calibration image with values in [{image.min():.3g}, {image.max():.3g}]: they must be in [0, 1], "
                "as the network sees them"
            )
        return image
