"""What `MedDet.export` and `meddet export` do for engines, ONNX and OpenVINO: keys and data for the builder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meddet_yolo.data.shipped import find_data
from meddet_yolo.trt.engine_file import read_engine, read_sidecar
from meddet_yolo.trt.onnx_export import OPSET, export_onnx
from meddet_yolo.trt.openvino_export import export_openvino
from meddet_yolo.trt.original import as_pair, channels_of
from meddet_yolo.trt.preprocess import preprocess

if TYPE_CHECKING:
    from meddet_yolo.model import MedDet

__all__ = ["CALIBRATION_IMAGES", "EXPORT_KEYS", "FORMATS", "calibration_images", "export", "gpu_number", "on_gpu"]

FORMATS = {"engine": "engine", "tensorrt": "engine", "trt": "engine", "onnx": "onnx", "openvino": "openvino"}
_BUILDER_KEYS = frozenset(
    {
        "runtime",
        "compute_capability",
        "timing_cache",
        "version_compatible",
        "hardware_compatible",
        "refit",
        "strip",
        "strongly_typed",
        "optimization_level",
        "min_batch",
        "min_imgsz",
        "max_imgsz",
        "keep_onnx",
    }
)
# The keys of `meddet export` besides Ultralytics' own.
EXPORT_KEYS = _BUILDER_KEYS | {"precision", "calibration", "calibration_images", "end2end", "out"}
_PASSED_ON = frozenset({"conf", "iou", "max_det", "agnostic_nms", "simplify", "opset"})
_QUANTIZE = {16: "fp16", 8: "int8", 32: "fp32", "16": "fp16", "8": "int8", "32": "fp32"}
_GATE_IMAGES = 4
CALIBRATION_IMAGES = 256


def export(model: MedDet, **options: Any) -> str:
    """Export a detector as an engine, ONNX or OpenVINO model behind the parity gate.

    Args:
        model: The loaded detector.
        **options: `format` and the keys of `build_engine`, `export_onnx` and `export_openvino` with those of
            Ultralytics' export (`imgsz`, `batch`, `dynamic`, `nms`, `data`, `split`, `workspace`, ...). `quantize`,
            `half` and `int8` are read as `precision`.

    Returns:
        The path of what was written.

    Raises:
        ValueError: If keys do not fit the format or one another.
    """
    options = {k: v for k, v in options.items() if v is not None}
    form = FORMATS[str(options.pop("format")).lower()]
    _check_form(form, options)
    precision = _precision(options, "fp16" if form == "engine" else "fp32")
    if form == "openvino" and precision not in {"fp32", "fp16"}:
        raise ValueError(
            f"precision={precision} is not for format=openvino: use fp32 or fp16, or format=onnx "
            f"precision={precision}, which OpenVINO runs too"
        )
    device = options.pop("device", None)
    common = _common(options)
    size = common["imgsz"] = _trained_size(model) if "imgsz" not in options else options.pop("imgsz")
    count = options.pop("calibration_images", CALIBRATION_IMAGES)
    data, split = options.pop("data", None), options.pop("split", None)
    quantized = precision in {"int8", "fp8"}
    if quantized and data is None:
        raise ValueError(f"data= is missing: precision={precision} is calibrated on images of your application")
    if data is not None:
        wanted = int(count) if quantized else _GATE_IMAGES
        common["images"] = calibration_images(
            data, _rounded(model, size), channels=channels_of(model), split=split, count=wanted
        )
    out = options.pop("out", None)
    method = options.pop("calibration", "minmax")
    with _loud():
        if form == "onnx":
            opset = int(common["options"].pop("opset", OPSET))
            path = export_onnx(model, out, precision=precision, calibration=method, opset=opset, **common)
        elif form == "openvino":
            path = export_openvino(model, out, half=precision == "fp16", **common)
        else:
            from meddet_yolo.trt.builder import build_engine

            builder = {k: options.pop(k) for k in (*_BUILDER_KEYS, "workspace") if k in options}
            with on_gpu(device):
                path = build_engine(model, out, precision=precision, calibration=method, **common, **builder)
    _report(path, form)
    return str(path)


def calibration_images(
    data: str | Path,
    imgsz: tuple[int, int],
    *,
    channels: int = 3,
    split: str | None = None,
    count: int = CALIBRATION_IMAGES,
) -> list[np.ndarray]:
    """Read images of a data set as a network sees them, DICOM and NIfTI included.

    Args:
        data: The data set's YAML, or the name of one that the package ships.
        imgsz: Input (height, width).
        channels: Channels of the detector's input.
        split: "train" by default, so that accuracy on "val" stays honest.
        count: How many, evenly spaced over the split.

    Returns:
        Images of shape (C, H, W), float32 in [0, 1].

    Raises:
        ValueError: If the split does not exist or the count is not positive.
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.data.utils import check_det_dataset

    from meddet_yolo.data.dataset import build_dataset

    if count < 1:
        raise ValueError(f"calibration_images={count} must be at least 1")
    data = find_data(data)
    found = check_det_dataset(str(data))
    chosen = split or "train"
    if not found.get(chosen):
        raise ValueError(f"split={chosen}: {data} has no such split")
    cfg = get_cfg(overrides={"task": "detect", "imgsz": max(imgsz), "data": str(data)})
    dataset = build_dataset(cfg, found[chosen], 1, found, mode="calibrate", fraction=1.0)
    picked = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    images = (dataset.read_image(int(k)) for k in picked)
    return [preprocess([image], imgsz, channels=channels)[0][0].astype(np.float32) for image in images]


def _check_form(form: str, options: dict[str, Any]) -> None:
    """Refuse our keys where they mean nothing."""
    if form != "engine":
        wrong = sorted(_BUILDER_KEYS & options.keys())
        if wrong:
            raise ValueError(f"{wrong[0]}= is for format=engine, not for format={form}")
        options.pop("workspace", None)
    if form == "openvino":
        for key in ("calibration", "opset"):
            if key in options:
                raise ValueError(f"{key}= is not for format=openvino")
    if "dla" in str(options.get("device", "")):
        raise ValueError("device=dla: export for DLA cores with `yolo export`, this builder has none of it")


def _precision(options: dict[str, Any], default: str) -> str:
    """Read the precision from our key or from Ultralytics'."""
    found = {"precision": options.pop("precision", None)}
    quantize = options.pop("quantize", None)
    if quantize is not None and quantize not in _QUANTIZE:
        raise ValueError(f"quantize={quantize} is not possible here: use precision=fp32, fp16, int8 or fp8")
    found["quantize"] = _QUANTIZE.get(quantize) if quantize is not None else None
    for key, value in (("half", "fp16"), ("int8", "int8")):
        found[key] = value if options.pop(key, False) else None
    given = {key: str(value) for key, value in found.items() if value is not None}
    if len(set(given.values())) > 1:
        raise ValueError(f"{', '.join(given)} ask for different precisions ({', '.join(given.values())}): give one")
    return next(iter(given.values()), default)


def _common(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments that every format takes; what stays behind in `options` belongs to one of them."""
    nms = options.pop("nms", None)
    common: dict[str, Any] = {
        "batch": int(options.pop("batch", 1)),
        "dynamic": bool(options.pop("dynamic", False)),
        "end2end": bool(options.pop("end2end", False)) or nms is False,
        "nms": bool(nms),
    }
    passed = {key: options.pop(key) for key in _PASSED_ON & options.keys()}
    for key in ("verbose", "mode", "task", "model", "fraction", "name", "project", "exist_ok"):
        options.pop(key, None)
    known = EXPORT_KEYS | {"imgsz", "device", "data", "split", "workspace"}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ValueError(f"{unknown[0]}= has no meaning for this export")
    return {**common, "options": passed}


def _trained_size(model: MedDet) -> Any:
    arguments = getattr(model.model, "args", None)
    return (arguments.get("imgsz") if isinstance(arguments, dict) else None) or 640


def _rounded(model: MedDet, imgsz: Any) -> tuple[int, int]:
    stride = int(max(model.model.stride))
    height, width = as_pair(imgsz)
    return -(-height // stride) * stride, -(-width // stride) * stride


def gpu_number(device: Any) -> int | None:
    """Return the number of the GPU that `device` names in one of Ultralytics' spellings; None where it names no GPU.

    Raises:
        ValueError: If it names several, or none that could be there.

    Examples:
        >>> gpu_number("cuda:1"), gpu_number([0]), gpu_number("cpu"), gpu_number(None)
        (1, 0, None, None)
    """
    text = str(device).lower()
    for part in ("cuda:", *"()[]' "):
        text = text.replace(part, "")
    if text in {"", "none", "cpu", "mps"}:
        return None
    number = "0" if text == "cuda" else text.rstrip(",")
    if not number.isdigit():
        raise ValueError(f"device={device}: expected the number of one GPU, such as device=0, or device=cpu")
    return int(number)


@contextmanager
def on_gpu(device: Any) -> Iterator[None]:
    """Make the chosen GPU the current one, on which TensorRT builds; nothing where none is chosen or there is none.

    Raises:
        ValueError: If there is no GPU of that number.
    """
    import torch

    number = gpu_number(device)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number is None or count == 0:
        yield
        return
    if number >= count:
        raise ValueError(f"device={device}: no such GPU; this machine has {count}, numbered from 0")
    with torch.cuda.device(number):
        torch.zeros(1, device="cuda")  # TensorRT uses the context that PyTorch makes
        yield


@contextmanager
def _loud() -> Iterator[None]:
    """Show the builder's messages as Ultralytics shows its own."""
    from ultralytics.utils import LOGGER

    ours = logging.getLogger("meddet_yolo.trt")
    handlers, level, propagate = ours.handlers[:], ours.level, ours.propagate
    ours.handlers, ours.propagate = LOGGER.handlers[:], False
    ours.setLevel(logging.WARNING)
    try:
        yield
    finally:
        ours.handlers, ours.propagate = handlers, propagate
        ours.setLevel(level)


def _report(path: Path, form: str) -> None:
    """Say what was written and how far it is from the original."""
    from ultralytics.utils import LOGGER

    if form == "engine":
        facts = read_engine(path, verify=False).metadata
        runtime = {"rtx": "TensorRT-RTX"}.get(str(facts["meddet_runtime"]), "TensorRT")
        LOGGER.info(f"{runtime} {facts['meddet_runtime_version']}, precision {facts['meddet_precision']} (read back)")
        for kind, counts in {"convolutions": facts["meddet_audit"]["matrix"], **facts["meddet_audit"]["kinds"]}.items():
            LOGGER.info(f"  {kind:<18} {', '.join(f'{name} {count}' for name, count in counts.items())}")
    else:
        facts = read_sidecar(path if form == "onnx" else next(path.glob("*.bin")))
    for name, parity in facts["meddet_parity"].items():
        LOGGER.info(f"parity {name}: boxes {parity['boxes']:.1e} of the image's side, scores {parity['scores']:.1e}")
    LOGGER.info(f"Results saved to {path.resolve()}")
