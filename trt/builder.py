"""`build_engine`: from a checkpoint or an ONNX file to an engine that is what was asked for."""

from __future__ import annotations

import ast
import logging
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from meddet_yolo.trt.backends import Backend, load_backend
from meddet_yolo.trt.compile import BuildOptions, Compiled, Profile, as_capabilities, compile_plan
from meddet_yolo.trt.engine_file import sha256, write_engine
from meddet_yolo.trt.graph import conv_precisions, input_shape, is_quantized, load_onnx, metadata_of, require
from meddet_yolo.trt.half import to_half
from meddet_yolo.trt.onnx_export import OPSET, check_converted, export_onnx
from meddet_yolo.trt.original import STAGES, as_pair, check_target, default_target, name_of, sample_images
from meddet_yolo.trt.quantize import quantize_onnx

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = ["build_engine"]

LOGGER = logging.getLogger("meddet_yolo.trt")
Array = npt.NDArray[np.float32]
PREPROCESSING = {"resize": "letterbox", "padding": 114, "channels": "RGB", "scale": 1 / 255, "layout": "NCHW"}
_TEXT_KEYS = ("description", "author", "date", "version", "license", "docs", "task", "head")
_LITERAL_KEYS = ("stride", "batch", "imgsz", "names", "args", "channels", "end2end")


def build_engine(
    source: str | Path | Model,
    out: str | Path | None = None,
    *,
    precision: str = "fp16",
    runtime: str = "tensorrt",
    imgsz: int | Sequence[int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    end2end: bool = False,
    nms: bool = False,
    min_batch: int = 1,
    min_imgsz: int | Sequence[int] | None = None,
    max_imgsz: int | Sequence[int] | None = None,
    images: Iterable[Array] | None = None,
    calibration: str = "minmax",
    compute_capability: Any = None,
    workspace: float | None = None,
    timing_cache: str | Path | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool | str = False,
    refit: bool = False,
    strip: bool = False,
    strongly_typed: bool = True,
    optimization_level: int | None = None,
    keep_onnx: bool = False,
    options: dict[str, Any] | None = None,
) -> Path:
    """Build a TensorRT or TensorRT-RTX engine.

    The student is exported to ONNX and compared with the PyTorch model; the graph is brought to the precision and
    compared again; the engine is built and its real precision read back. Where one of these fails there is no engine.

    Args:
        source: Checkpoint, loaded Ultralytics (or `MedDet`) model, or ONNX file (in FP32, or with Q/DQ nodes).
        out: The engine file; by default beside the source, with the precision in the name unless it is fp16.
        precision: "fp32", "tf32", "fp16", "int8" or "fp8". In the last two convolutions are quantized and the rest is
            FP16.
        runtime: "tensorrt", which builds for the GPU of this machine, or "rtx", which builds on any machine.
        imgsz: Input size in pixels, one number or (height, width); by default that of the training, else 640. For an
            ONNX file of static shape the file decides.
        batch: Batch size; the largest where `dynamic`.
        dynamic: Whether batch and size may change when the engine runs.
        end2end: Whether to build the head that needs no NMS.
        nms: Whether to put NMS into the engine (not on TensorRT-RTX).
        min_batch: Smallest batch of a dynamic engine.
        min_imgsz: Smallest size of a dynamic engine; by default the model's stride.
        max_imgsz: Largest size of a dynamic engine; by default `imgsz`.
        images: Calibration images as the network sees them: (C, H, W), float32 in [0, 1]. Needed by int8 and fp8.
        calibration: How activation ranges are found: "minmax", "entropy" or "percentile".
        compute_capability: GPU generations to build for: 8.6, "8.6,8.9", ... (runtime "rtx" only; by default Ampere
            and later).
        workspace: Limit of scratch memory in GiB.
        timing_cache: File or folder for measured kernel times.
        version_compatible: Whether later versions of TensorRT shall load the engine.
        hardware_compatible: True, "ampere" or "same": which other GPUs shall load the engine.
        refit: Whether weights can be replaced later.
        strip: Whether to leave the weights out.
        strongly_typed: False lets TensorRT 10 choose types by precision flags.
        optimization_level: 0 (fast build) to 5.
        keep_onnx: Whether to keep the ONNX file it was built from, beside the engine. A stripped engine always does:
            it holds the weights.
        options: Further arguments of Ultralytics' exporter (`conf`, `iou`, `max_det`, `simplify`, ...).

    Returns:
        The path of the engine. Beside it stands `<engine>.json` with versions, GPU, audit, hashes and preprocessing.

    Raises:
        ValueError: If arguments are wrong, exclude one another, or are not possible with this runtime.
        ImportError: If something is not installed; the message names the pip command.
        ParityError: If a model along the way differs from the one before it.
        BuildError: If TensorRT does not accept the graph or cannot build it.
        PrecisionError: If the engine has not the precision that was asked for.

    Examples:
        >>> build_engine("best.pt", imgsz=512, precision="int8", images=images)  # doctest: +SKIP
        PosixPath('best-int8.engine')
        >>> build_engine("best.pt", imgsz=512, runtime="rtx", compute_capability="8.6,8.9")  # doctest: +SKIP
        PosixPath('best.engine')
    """
    backend = load_backend(runtime)
    wanted = BuildOptions(
        precision=precision,
        workspace=workspace,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        refit=refit,
        strip=strip,
        compute_capability=as_capabilities(compute_capability),
        strongly_typed=strongly_typed,
        optimization_level=optimization_level,
    )
    wanted.check(backend)
    if nms and backend.is_rtx:
        raise ValueError(
            "nms=True: TensorRT-RTX has no NMS; leave nms out (it then runs after the network), or use end2end=True "
            "with a model that has an end-to-end head"
        )
    if batch < 1 or min_batch < 1 or min_batch > batch:
        raise ValueError(f"batch={batch}, min_batch={min_batch}: expected 1 <= min_batch <= batch")
    given = None if images is None else list(images)
    from_onnx = isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".onnx"
    if precision in {"int8", "fp8"} and not given and not from_onnx:
        raise ValueError(f"precision={precision} needs images to calibrate with: give data=<data.yaml>, or images=")
    named = source if isinstance(source, (str, Path)) else name_of(source)  # a model from a YAML has a bare name
    target = check_target(Path(out) if out is not None else default_target(named, ".engine", precision, "fp16"))
    with tempfile.TemporaryDirectory(prefix="meddet-engine-") as folder:
        whole = Path(folder) / "whole.onnx"
        if from_onnx:
            whole = Path(str(source))
        else:
            export_onnx(
                source,
                whole,
                imgsz=imgsz,
                batch=batch,
                dynamic=dynamic,
                end2end=end2end,
                nms=nms,
                opset=int((options or {}).get("opset") or OPSET),
                images=given,
                for_cpu=False,
                options={k: v for k, v in (options or {}).items() if k != "opset"},
            )
        graph = load_onnx(whole)
        size = _size(graph, imgsz if from_onnx else None)
        profile = _profile(graph, size, batch, min_batch, min_imgsz, max_imgsz)
        typed, parity = _typed(graph, whole, wanted, given, calibration, size, Path(folder))
        STAGES.info("building the engine with %s, which can take minutes", backend.title)
        compiled = compile_plan(typed, backend, wanted, profile=profile, expected=_expected(typed, wanted))
        metadata = _metadata(graph, backend, wanted, compiled, profile, parity, whole, typed, batch)
        if keep_onnx or strip:
            kept = target.with_name(f"{target.name}.onnx")  # not `best.onnx`: that is an export of its own
            if not (from_onnx and kept.resolve() == whole.resolve()):
                target.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(typed.read_bytes())
            metadata["meddet_onnx"] = kept.name
        write_engine(target, compiled.plan, metadata)
    LOGGER.info("%s, %s\n%s", target, backend.title, compiled.audit)
    return target


def _size(graph: Any, imgsz: int | Sequence[int] | None) -> tuple[int, int]:
    """Input (height, width): the graph's own where it is fixed, else what is asked for or what it was exported with."""
    height, width = input_shape(graph)[2:]
    if height is not None and width is not None:
        if imgsz is not None and as_pair(imgsz) != (height, width):
            raise ValueError(f"imgsz={imgsz}: the ONNX model has the fixed size {height} x {width}; leave imgsz out")
        return height, width
    exported = _literal(metadata_of(graph).get("imgsz", "640"))
    return as_pair(exported if imgsz is None else imgsz)


def _typed(
    graph: Any,
    whole: Path,
    options: BuildOptions,
    images: list[Array] | None,
    calibration: str,
    size: tuple[int, int],
    folder: Path,
) -> tuple[Path, dict[str, Any]]:
    """Bring a graph to the precision that the runtime shall find in it, and compare it with the graph before.

    Returns:
        Its file and the parity found, by precision.
    """
    precision = options.precision
    quantized = is_quantized(graph)
    if quantized and precision not in {"int8", "fp8"}:
        raise ValueError(f"precision={precision}: the ONNX model has Q/DQ nodes, so its engine is quantized: use int8")
    pictures = images or sample_images(size, input_shape(graph)[1] or 3)
    converted = graph
    if precision in {"int8", "fp8"} and not quantized:
        if not images:
            raise ValueError(f"precision={precision} needs images to calibrate with: give data=<data.yaml>, or images=")
        converted = quantize_onnx(graph, images, precision=precision, method=calibration)
    if options.strongly_typed and precision in {"fp16", "int8", "fp8"}:
        converted = to_half(converted)
    if converted is graph:
        return whole, {}
    path = folder / f"{precision}.onnx"
    require("onnx").save(converted, str(path))
    return path, {precision: check_converted(whole, path, pictures, precision).as_dict()}


def _expected(typed: Path, options: BuildOptions) -> dict[str, int]:
    """How many convolutions the engine should have in which precision."""
    counts = dict(conv_precisions(load_onnx(typed)))
    if options.strongly_typed:
        return counts
    return {"fp16": sum(counts.values())} if options.precision == "fp16" else counts


def _profile(
    graph: Any,
    size: tuple[int, int],
    batch: int,
    min_batch: int,
    min_imgsz: int | Sequence[int] | None,
    max_imgsz: int | Sequence[int] | None,
) -> Profile | None:
    """Shapes of a dynamic engine; None for a static one."""
    shape = input_shape(graph)
    if None not in shape:
        if min_imgsz is not None or max_imgsz is not None or min_batch != 1:
            raise ValueError("min_imgsz=, max_imgsz= and min_batch= are for dynamic=True: this model has a fixed shape")
        return None
    facts = metadata_of(graph)
    stride = int(facts.get("stride", 32))
    channels = shape[1] or 3
    largest = as_pair(max_imgsz) if max_imgsz is not None else size
    smallest = as_pair(min_imgsz) if min_imgsz is not None else _smallest(graph, facts, stride, size)
    for low, best, high in zip(smallest, size, largest, strict=True):
        if not low <= best <= high or any(side % stride for side in (low, best, high)):
            raise ValueError(
                f"min_imgsz={min_imgsz}, imgsz={list(size)}, max_imgsz={max_imgsz}: expected multiples of {stride} "
                "with min_imgsz <= imgsz <= max_imgsz"
            )
    fixed = shape[0] is not None
    low, high = (shape[0] or min_batch, shape[0] or batch) if fixed else (min_batch, batch)
    return Profile((low, channels, *smallest), (high, channels, *size), (high, channels, *largest))


def _smallest(graph: Any, facts: dict[str, str], stride: int, size: tuple[int, int]) -> tuple[int, int]:
    """Smallest input of a dynamic engine: one with as many anchors as an end-to-end head selects."""
    wanted = 1
    if facts.get("end2end") == "True":
        wanted = int(graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value)
    side = stride
    while sum((side // s) ** 2 for s in (stride // 4, stride // 2, stride)) < wanted and side < min(size):
        side += stride
    return side, side


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _metadata(
    graph: Any,
    backend: Backend,
    options: BuildOptions,
    compiled: Compiled,
    profile: Profile | None,
    parity: dict[str, Any],
    whole: Path,
    typed: Path,
    batch: int,
) -> dict[str, Any]:
    """Ultralytics' header from what its exporter left in the ONNX file, and ours with the prefix `meddet_`."""
    left = metadata_of(graph)
    shape = input_shape(graph)
    header: dict[str, Any] = {key: left[key] for key in _TEXT_KEYS if key in left}
    header |= {key: _literal(left[key]) for key in _LITERAL_KEYS if key in left}
    header.setdefault("stride", 32)
    header.setdefault("task", "detect")
    header["batch"] = profile.maximum[0] if profile else shape[0] or batch
    header["imgsz"] = list(profile.optimum[2:] if profile else shape[2:])
    header["channels"] = shape[1] or header.get("channels", 3)
    arguments = header.get("args") if isinstance(header.get("args"), dict) else {}
    header["args"] = {**(arguments or {}), "dynamic": profile is not None, "batch": header["batch"]}
    ours: dict[str, Any] = {
        "runtime": backend.name,
        "runtime_version": backend.version,
        "precision": options.precision,
        "audit": compiled.audit.as_dict(),
        "parity": {**(_literal(left.get("meddet_parity", "{}")) or {}), **parity},
        "tensors": compiled.tensors,
        "profile": {"min": profile.minimum, "opt": profile.optimum, "max": profile.maximum} if profile else None,
        "gpu": compiled.gpu,
        "compute_capability": list(options.compute_capability) or None,
        "strongly_typed": options.strongly_typed,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "refit": options.refit,
        "strip": options.strip,
        "preprocessing": PREPROCESSING,
        "source_sha256": left.get("meddet_source_sha256"),
        "onnx_sha256": {"exported": sha256(whole), "built": sha256(typed)},
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions(),
        "warnings": compiled.warnings[:20],
    }
    return {**header, **{f"meddet_{key}": value for key, value in ours.items()}}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("meddet-yolo", "ultralytics", "torch", "onnx", "onnxruntime", "onnxslim"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
