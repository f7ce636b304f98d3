"""ONNX files of a student, each behind the parity gate.

The conversion is Ultralytics' own `Exporter`. What is added: the result is compared with the PyTorch model on images
before it appears in its place, and half-precision and quantized graphs are made from it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from meddet_yolo.trt.cpu_graph import split_convolutions
from meddet_yolo.trt.engine_file import write_sidecar
from meddet_yolo.trt.graph import input_shape, load_onnx, require
from meddet_yolo.trt.half import to_half
from meddet_yolo.trt.original import (
    GATE_IMAGES,
    STAGES,
    Exported,
    channels_of,
    check_heads,
    check_target,
    comparison_images,
    default_target,
    input_size,
    load_model,
    name_of,
    nms_argument,
    reference_predictor,
    source_hash,
    ultralytics_export,
)
from meddet_yolo.trt.parity import TOLERANCES, Parity, ParityError, Tolerance, batched, check_parity, compare
from meddet_yolo.trt.quantize import quantize_onnx

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = ["ONNX_PRECISIONS", "annotate", "check_converted", "export_onnx", "onnx_predictor"]

ONNX_PRECISIONS = ("fp32", "fp16", "int8", "fp8")
OPSET = 19  # the oldest in which Q/DQ nodes may stand beside half precision; TensorRT 10 reads it
_ROUNDINGS = 4  # how many times a model's own rounding another runtime may differ
_LARGEST_ROUNDING = 2e-3

Array = npt.NDArray[np.float32]
LOGGER = logging.getLogger("meddet_yolo.trt")


def export_onnx(
    model: str | Path | Model,
    out: str | Path | None = None,
    *,
    imgsz: int | Sequence[int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    half: bool = False,
    precision: str | None = None,
    end2end: bool = False,
    nms: bool = False,
    opset: int = OPSET,
    images: Iterable[Array] | None = None,
    calibration: str = "minmax",
    for_cpu: bool = True,
    options: dict[str, Any] | None = None,
) -> Path:
    """Export a student to ONNX and prove that it says what the PyTorch model says.

    Args:
        model: Checkpoint, or a loaded Ultralytics (or `MedDet`) model.
        out: Where to write; by default beside the checkpoint, with the precision in the name unless it is fp32.
        imgsz: Input size in pixels, one number or (height, width); by default that of the training, else 640.
        batch: Batch size; the largest one where `dynamic`.
        dynamic: Whether batch and size may change.
        half: Short for ``precision="fp16"``.
        precision: "fp32", "fp16", or quantized: "int8" or "fp8". In a quantized graph the rest is FP32.
        end2end: Whether to export the head that needs no NMS (YOLO26 and v10 have one): rows (B, N, 6).
        nms: Whether to put NMS into the graph: rows (B, N, 6).
        opset: ONNX opset.
        images: Images to compare and calibrate with, each of shape (C, H, W), float32 in [0, 1]; the first few are
            compared. Quantization needs them. By default two photographs that come with Ultralytics are compared.
        calibration: How activation ranges are found: "minmax", "entropy" or "percentile".
        for_cpu: Whether to bring a graph in single precision into the shape that ONNX Runtime runs faster on a CPU; its
            numbers stay the same (`meddet_yolo.trt.cpu_graph`). Engines are built from graphs as they come.
        options: Further arguments of Ultralytics' exporter (`conf`, `iou`, `max_det`, `simplify`, ...).

    Returns:
        The path of the ONNX file. Its metadata has the parity that was found under `meddet_parity`, its sidecar
        `<file>.json` too.

    Raises:
        ParityError: If the ONNX model differs from the original by more than float32's rounding; nothing is written.
        ValueError: If the arguments exclude one another, quantization has no images, or `out` is a folder.
        ImportError: If onnx or onnxruntime is missing.

    Examples:
        >>> export_onnx("best.pt", imgsz=512, precision="fp16")  # doctest: +SKIP
        PosixPath('best-fp16.onnx')
    """
    precision = _chosen_precision(precision, half)
    check_heads(end2end, nms)
    onnx = require("onnx")
    require("onnxruntime")
    network = load_model(model)
    target = check_target(
        Path(out) if out is not None else default_target(name_of(network), ".onnx", precision, "fp32")
    )
    size = input_size(network, imgsz)
    pictures = comparison_images(images, size, channels_of(network), precision)
    arguments = {**(options or {}), "nms": nms_argument(end2end, nms), "imgsz": list(size), "batch": batch}
    with tempfile.TemporaryDirectory(prefix="meddet-onnx-") as folder:
        STAGES.info("writing the graph of %s at %d x %d", name_of(network), *size)
        exported = ultralytics_export(network, Path(folder), "onnx", {**arguments, "dynamic": dynamic, "opset": opset})
        if for_cpu and precision == "fp32":
            graph = load_onnx(exported.path)
            split_convolutions(graph)
            onnx.save(graph, str(exported.path))
        reference = reference_predictor(network, exported, end2end)
        most = int(exported.args.max_det) if end2end else 0
        checked = partial(_gate, reference, exported.path, pictures, batch, dynamic, network, most)
        STAGES.info("comparing it with PyTorch")
        try:
            parity = checked(TOLERANCES["fp32"])
        except ParityError:
            allowed = _tolerance(network, exported, end2end, np.stack(pictures[:GATE_IMAGES]))
            if allowed is None:
                raise
            parity = checked(allowed)
        graph = load_onnx(exported.path)
        facts: dict[str, Any] = {"fp32": parity.as_dict()}
        if precision != "fp32":
            whole = exported.path
            STAGES.info("bringing it to %s, then comparing again", precision)
            converted = (
                to_half(graph)
                if precision == "fp16"
                else quantize_onnx(graph, pictures, precision=precision, method=calibration)
            )
            exported.path.with_suffix(f".{precision}.onnx").write_bytes(converted.SerializeToString())
            path = exported.path.with_suffix(f".{precision}.onnx")
            facts[precision] = check_converted(whole, path, pictures, precision).as_dict()
            graph = converted
        facts = {"precision": precision, "parity": facts, "source_sha256": source_hash(network)}
        annotate(graph, facts)
        final = Path(folder) / "final.onnx"
        onnx.save(graph, str(final))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(final, part)
        part.replace(target)
    write_sidecar(target, {f"meddet_{k}": v for k, v in facts.items()} | {"onnx": onnx.__version__, "opset": opset})
    LOGGER.info("%s: boxes within %.1e of the image's side, scores within %.1e", target, parity.boxes, parity.scores)
    return target


def check_converted(whole: Path, converted: Path, pictures: Sequence[Array], precision: str) -> Parity:
    """Compare a half-precision or quantized ONNX model with the single-precision one it was made from."""
    size = input_shape(load_onnx(whole))[0]
    images = np.stack(pictures[:GATE_IMAGES])
    reference, found = (batched(onnx_predictor(path), size) for path in (whole, converted))
    return check_parity(reference, found, images, TOLERANCES[precision], f"the FP32 and the {precision.upper()} graph")


def onnx_predictor(path: str | Path) -> Any:
    """Return a function from images (B, C, H, W) to the first output of an ONNX model, run by ONNX Runtime's CPU."""
    ort = require("onnxruntime")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def annotate(model: Any, facts: dict[str, Any]) -> None:
    """Write facts into an ONNX model's metadata under `meddet_...`, replacing older ones."""
    kept = [(p.key, p.value) for p in model.metadata_props if not p.key.startswith("meddet_")]
    del model.metadata_props[:]
    for key, value in [*kept, *((f"meddet_{k}", str(v)) for k, v in facts.items())]:
        model.metadata_props.add(key=key, value=value)


def _chosen_precision(precision: str | None, half: bool) -> str:
    if half and precision not in {None, "fp16"}:
        raise ValueError(f"half=True and precision={precision!r} exclude each other")
    chosen = precision or ("fp16" if half else "fp32")
    if chosen not in ONNX_PRECISIONS:
        raise ValueError(f"precision={chosen!r} is unknown: use one of {', '.join(ONNX_PRECISIONS)}")
    return chosen


def _tolerance(model: Model, exported: Exported, end2end: bool, images: Array) -> Tolerance | None:
    """Return a wider tolerance for a model that amplifies float32's rounding beyond the usual one; None for others.

    Some do, mostly untrained ones; nobody can reproduce them more closely. A model's own rounding is its difference
    to itself in float64.
    """
    if exported.args.nms:
        return None
    single, double = (reference_predictor(model, exported, end2end, double=wide)(images) for wide in (False, True))
    boxes, scores = compare(double, single, max(images.shape[2:]))
    usual = TOLERANCES["fp32"]
    own = Tolerance(max(usual.boxes, _ROUNDINGS * boxes), max(usual.scores, _ROUNDINGS * scores))
    if own == usual or not max(boxes, scores) < _LARGEST_ROUNDING:
        return None
    LOGGER.warning("the model's own rounding in float32 is large: boxes %.1e, scores %.1e", boxes, scores)
    return own


def _gate(
    reference: Any,
    path: Path,
    pictures: Sequence[Array],
    batch: int,
    dynamic: bool,
    model: Model,
    most: int,
    tolerance: Tolerance,
) -> Parity:
    """Compare an ONNX file with the original; a dynamic one also at another size and batch.

    An end-to-end head selects `most` boxes, so a smaller image must have as many anchors.
    """
    predict = onnx_predictor(path)
    images = np.stack(pictures[:GATE_IMAGES])
    size = None if dynamic else batch
    parity = check_parity(
        batched(reference, size), batched(predict, size), images, tolerance, "PyTorch and ONNX Runtime"
    )
    stride = int(max(model.model.stride))
    height, width = images.shape[2:]
    anchors = sum((height - stride) // s * ((width - stride) // s) for s in model.model.stride.int().tolist())
    if dynamic and anchors >= max(1, most):
        smaller = np.ascontiguousarray(images[:1, :, : height - stride, : width - stride])
        other = check_parity(reference, predict, smaller, tolerance, "PyTorch and ONNX Runtime (smaller)")
        parity = max(parity, other, key=lambda p: (p.boxes, p.scores))
    return parity
