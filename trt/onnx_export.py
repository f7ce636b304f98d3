"""ONNX and OpenVINO files of a student, each behind the parity gate.

The conversion is Ultralytics' own `Exporter`. What is added: the result is compared with the PyTorch model on images
before it appears in its place, and half-precision and quantized graphs are made from it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from meddet_yolo.trt.engine_file import sha256, write_sidecar
from meddet_yolo.trt.graph import input_shape, load_onnx, require
from meddet_yolo.trt.half import to_half
from meddet_yolo.trt.parity import TOLERANCES, Parity, ParityError, Tolerance, batched, check_parity, compare
from meddet_yolo.trt.preprocess import preprocess
from meddet_yolo.trt.quantize import quantize_onnx

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = ["ONNX_PRECISIONS", "as_pair", "export_onnx", "export_openvino", "name_of", "onnx_predictor", "sample_images"]

ONNX_PRECISIONS = ("fp32", "fp16", "int8", "fp8")
OPSET = 19  # the oldest in which Q/DQ nodes may stand beside half precision; TensorRT 10 reads it
GATE_IMAGES = 4
_ROUNDINGS = 4  # how many times a model's own rounding another runtime may differ
_LARGEST_ROUNDING = 2e-3

Array = npt.NDArray[np.float32]
LOGGER = logging.getLogger("meddet_yolo.trt")


@dataclass(frozen=True)
class _Exported:
    """What Ultralytics' exporter made: a file or folder, the model as it was traced, and the arguments."""

    path: Path
    model: Any
    args: Any


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
    options: dict[str, Any] | None = None,
) -> Path:
    """Export a student to ONNX and prove that it says what the PyTorch model says.

    Args:
        model: Checkpoint, or a loaded Ultralytics (or `MedDet`) model.
        out: Where to write; by default beside the checkpoint.
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
        options: Further arguments of Ultralytics' exporter (`conf`, `iou`, `max_det`, `simplify`, ...).

    Returns:
        The path of the ONNX file. Its metadata has the parity that was found under `meddet_parity`, its sidecar
        `<file>.json` too.

    Raises:
        ParityError: If the ONNX model differs from the original by more than float32's rounding; nothing is written.
        ValueError: If the arguments exclude one another, or quantization has no images.
        ImportError: If onnx or onnxruntime is missing.

    Examples:
        >>> export_onnx("best.pt", imgsz=512, precision="fp16")  # doctest: +SKIP
        PosixPath('best.onnx')
    """
    precision = _chosen_precision(precision, half)
    _check_heads(end2end, nms)
    onnx = require("onnx")
    require("onnxruntime")
    network = _load(model)
    target = Path(out) if out is not None else Path(name_of(network)).with_suffix(".onnx")
    size = _input_size(network, imgsz)
    pictures = _pictures(images, size, _channels(network), precision)
    arguments = {**(options or {}), "nms": _nms_argument(end2end, nms), "imgsz": list(size), "batch": batch}
    with tempfile.TemporaryDirectory(prefix="meddet-onnx-") as folder:
        exported = _ultralytics_export(network, Path(folder), "onnx", {**arguments, "dynamic": dynamic, "opset": opset})
        reference = _reference(network, exported, end2end)
        most = int(exported.args.max_det) if end2end else 0
        checked = partial(_gate, reference, exported.path, pictures, batch, dynamic, network, most)
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
            converted = (
                to_half(graph)
                if precision == "fp16"
                else quantize_onnx(graph, pictures, precision=precision, method=calibration)
            )
            exported.path.with_suffix(f".{precision}.onnx").write_bytes(converted.SerializeToString())
            path = exported.path.with_suffix(f".{precision}.onnx")
            facts[precision] = check_converted(whole, path, pictures, precision).as_dict()
            graph = converted
        facts = {"precision": precision, "parity": facts, "source_sha256": _source_hash(network)}
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


def export_openvino(
    model: str | Path | Model,
    out: str | Path | None = None,
    *,
    imgsz: int | Sequence[int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    half: bool = False,
    end2end: bool = False,
    nms: bool = False,
    images: Iterable[Array] | None = None,
    options: dict[str, Any] | None = None,
) -> Path:
    """Export a student to OpenVINO and prove that it says what the PyTorch model says.

    Args:
        model: Checkpoint, or a loaded Ultralytics (or `MedDet`) model.
        out: Folder to write; by default `<name>_openvino_model` beside the checkpoint; `YOLO` wants such a name.
        imgsz: Input size in pixels, one number or (height, width); by default that of the training, else 640.
        batch: Batch size.
        dynamic: Whether batch and size may change.
        half: Whether to store the weights in half precision.
        end2end: Whether to export the head that needs no NMS.
        nms: Whether to put NMS into the graph.
        images: Images to compare with, as in `export_onnx`.
        options: Further arguments of Ultralytics' exporter.

    Returns:
        The path of the folder.

    Raises:
        ParityError: If the exported model differs from the original; nothing is written.
        ImportError: If openvino is missing.
    """
    _check_heads(end2end, nms)
    openvino = require("openvino")
    network = _load(model)
    size = _input_size(network, imgsz)
    precision = "fp16" if half else "fp32"
    pictures = _pictures(images, size, _channels(network), precision)
    arguments = {**(options or {}), "nms": _nms_argument(end2end, nms), "imgsz": list(size), "batch": batch}
    arguments |= {"dynamic": dynamic, "quantize": 16 if half else None}
    name = Path(name_of(network))
    target = Path(out) if out is not None else name.with_name(f"{name.stem}_openvino_model")
    with tempfile.TemporaryDirectory(prefix="meddet-openvino-") as folder:
        exported = _ultralytics_export(network, Path(folder), "openvino", arguments)
        xml = next(exported.path.glob("*.xml"))
        compiled = openvino.Core().compile_model(str(xml), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def predict(x: Array) -> Array:
            return np.asarray(compiled(x)[0])

        found = batched(predict, None if dynamic else batch)
        reference = batched(_reference(network, exported, end2end), batch if nms else None)
        parity = check_parity(reference, found, np.stack(pictures[:GATE_IMAGES]), TOLERANCES[precision], _PAIR)
        facts = {"precision": precision, "parity": {precision: parity.as_dict()}, "openvino": openvino.__version__}
        part = target.with_name(f".{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(exported.path, part)
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    write_sidecar(next(target.glob("*.bin")), {f"meddet_{k}": v for k, v in facts.items()})
    LOGGER.info("%s: boxes within %.1e of the image's side, scores within %.1e", target, parity.boxes, parity.scores)
    return target


_PAIR = "PyTorch and the exported model"


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


def sample_images(size: tuple[int, int], channels: int = 3) -> list[Array]:
    """Two photographs that Ultralytics ships, letterboxed to (height, width): float32 (C, H, W) in [0, 1]."""
    import cv2
    from ultralytics.utils import ASSETS

    images = [cv2.imread(str(path)) for path in sorted(ASSETS.glob("*.jpg"))]
    found = [image for image in images if image is not None]
    if channels not in {1, 3}:
        return [np.resize(image, (channels, *size)) for image in sample_images(size)]
    return list(preprocess(found, size, channels=channels)[0].astype(np.float32))


def annotate(model: Any, facts: dict[str, Any]) -> None:
    """Write facts into an ONNX model's metadata under `meddet_...`, replacing older ones."""
    kept = [(p.key, p.value) for p in model.metadata_props if not p.key.startswith("meddet_")]
    del model.metadata_props[:]
    for key, value in [*kept, *((f"meddet_{k}", str(v)) for k, v in facts.items())]:
        model.metadata_props.add(key=key, value=value)


def as_pair(imgsz: int | Sequence[int]) -> tuple[int, int]:
    """Return an input size as (height, width).

    Raises:
        ValueError: If it is no positive size.

    Examples:
        >>> as_pair(512), as_pair([384, 640])
        ((512, 512), (384, 640))
    """
    sizes = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sizes) not in {1, 2} or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
        raise ValueError(f"imgsz={imgsz} must be a number of pixels or (height, width)")
    return (sizes[0], sizes[-1])


# what is checked -----------------------------------------------------------------------------------------------------


def _chosen_precision(precision: str | None, half: bool) -> str:
    if half and precision not in {None, "fp16"}:
        raise ValueError(f"half=True and precision={precision!r} exclude each other")
    chosen = precision or ("fp16" if half else "fp32")
    if chosen not in ONNX_PRECISIONS:
        raise ValueError(f"precision={chosen!r} is unknown: use one of {', '.join(ONNX_PRECISIONS)}")
    return chosen


def _check_heads(end2end: bool, nms: bool) -> None:
    if end2end and nms:
        raise ValueError("end2end=True and nms=True exclude each other: an end-to-end head needs no NMS")


def _nms_argument(end2end: bool, nms: bool) -> bool | None:
    """Ultralytics' `nms`: True puts NMS into the graph, False takes the head without, None leaves it outside."""
    return True if nms else False if end2end else None


def _load(model: str | Path | Model) -> Model:
    """Return a loaded detector; a path is loaded as `YOLO` does."""
    from ultralytics import YOLO

    if isinstance(model, (str, Path)):
        if not Path(model).is_file() and not str(model).endswith((".yaml", ".yml")):
            raise FileNotFoundError(f"model={model}: no such file")
        model = YOLO(str(model))
    if not hasattr(model.model, "model"):
        raise ValueError(f"{name_of(model)} is no PyTorch checkpoint, so it cannot be exported: give the .pt file")
    return model


def name_of(model: Model) -> str:
    """Return the checkpoint's path; a model built from a YAML gets that file's name in the working directory."""
    path = getattr(model.model, "pt_path", None) or getattr(model, "ckpt_path", None)
    return str(path) if path else Path(str(getattr(model, "model_name", None) or "model")).name


def _input_size(model: Model, imgsz: int | Sequence[int] | None) -> tuple[int, int]:
    """Input (height, width), rounded up to the stride as Ultralytics does."""
    if imgsz is None:
        trained = getattr(model.model, "args", None) or {}
        imgsz = (trained.get("imgsz") if isinstance(trained, dict) else None) or 640
    given, stride = as_pair(imgsz), int(max(model.model.stride))
    size = (-(-given[0] // stride) * stride, -(-given[1] // stride) * stride)
    if size != given:
        LOGGER.warning("imgsz=%s is no multiple of the stride %d: %s is used", list(given), stride, list(size))
    return size


def _channels(model: Model) -> int:
    return int(model.model.yaml.get("channels", 3))


def _source_hash(model: Model) -> str | None:
    path = Path(name_of(model))
    return sha256(path) if path.is_file() and path.suffix == ".pt" else None


def _pictures(images: Iterable[Array] | None, size: tuple[int, int], channels: int, precision: str) -> list[Array]:
    """Images to compare with; where the graph is quantized, all of the user's, to calibrate with."""
    given = [] if images is None else [np.asarray(image, np.float32) for image in images]
    if precision in {"int8", "fp8"} and not given:
        raise ValueError(
            f"precision={precision} needs images of your application to calibrate with: give data=<data.yaml>"
        )
    for image in given:
        if image.shape != (channels, *size):
            raise ValueError(f"image of shape {image.shape}: expected (C, H, W) = {(channels, *size)}")
    return given or sample_images(size, channels)


# what is run ---------------------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ultralytics from announcing files that are about to be moved."""
    from ultralytics.utils import LOGGER as THEIRS

    level = THEIRS.level
    THEIRS.setLevel(logging.ERROR)
    try:
        yield
    finally:
        THEIRS.setLevel(level)


def _ultralytics_export(model: Model, folder: Path, form: str, arguments: dict[str, Any]) -> _Exported:
    """Run Ultralytics' exporter into a folder of its own."""
    from ultralytics.engine.exporter import Exporter

    network = copy(model.model)  # the exporter copies the weights itself; only the path is ours
    network.pt_path = str(folder / Path(name_of(model)).name)
    if arguments["nms"] is False and getattr(network.model[-1], "one2one_cv2", None) is None:
        raise ValueError(
            f"end2end=True: {type(network.model[-1]).__name__} of {name_of(model)} has no end-to-end head "
            "(YOLO26 and YOLOv10 have one); leave end2end out, NMS then runs after the network"
        )
    options = {k: v for k, v in arguments.items() if v is not None}
    exporter = Exporter(overrides={"mode": "export", "format": form, "device": "cpu", "verbose": False, **options})
    with _quiet():
        path = Path(exporter(model=network))
    return _Exported(path, exporter.model, exporter.args)


def _reference(model: Model, exported: _Exported, end2end: bool, double: bool = False) -> Any:
    """Return the original as a function of images: neither fused nor in export mode, so that both are tested too."""
    import torch

    if exported.args.nms:  # NMS exists only in the exporter's wrapper
        from ultralytics.engine.exporter import NMSModel

        network: Any = NMSModel(exported.model, exported.args).eval()  # tracing leaves it in training mode
    else:
        network = deepcopy(model.model).cpu().float().eval()
        if hasattr(network, "end2end"):
            network.end2end = end2end
        network.model[-1].max_det = exported.model.model[-1].max_det
    network = network.to(torch.float64 if double else torch.float32)

    def predict(images: Array) -> Array:
        with torch.no_grad():
            result = network(torch.from_numpy(np.ascontiguousarray(images)).to(next(network.parameters()).dtype))
        return np.asarray((result[0] if isinstance(result, (tuple, list)) else result).float().numpy())

    return predict


def _tolerance(model: Model, exported: _Exported, end2end: bool, images: Array) -> Tolerance | None:
    """Return a wider tolerance for a model that amplifies float32's rounding beyond the usual one; None for others.

    Some do, mostly untrained ones; nobody can reproduce them more closely. A model's own rounding is its difference
    to itself in float64.
    """
    if exported.args.nms:
        return None
    single, double = (_reference(model, exported, end2end, double=wide)(images) for wide in (False, True))
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
