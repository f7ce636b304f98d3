"""From an ONNX file to a plan: the part of a build in which TensorRT works. One path for TensorRT and TensorRT-RTX."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meddet_yolo.trt.backends import Backend, BuildLog, gpu_info, make_logger
from meddet_yolo.trt.graph import float32_nodes, load_onnx
from meddet_yolo.trt.precision import PRECISIONS, PrecisionAudit, PrecisionError, parse_layers

__all__ = ["BuildError", "BuildOptions", "Compiled", "Profile", "compile_plan"]

LOGGER = logging.getLogger("meddet_yolo.trt")
_GIB = 1 << 30
# Operators that TensorRT-RTX has not, and what needs them.
_NOT_IN_RTX = frozenset({"NonMaxSuppression", "NonZero", "RoiAlign"})


class BuildError(RuntimeError):
    """An engine that could not be built."""


@dataclass(frozen=True)
class Profile:
    """Shapes (B, C, H, W) that an engine of dynamic shape takes.

    Attributes:
        minimum: The smallest.
        optimum: The one it is made for.
        maximum: The largest.
    """

    minimum: tuple[int, int, int, int]
    optimum: tuple[int, int, int, int]
    maximum: tuple[int, int, int, int]


@dataclass(frozen=True)
class BuildOptions:
    """What an engine shall be.

    Attributes:
        precision: "fp32", "tf32" (FP32 whose products are rounded to TF32 on tensor cores), "fp16", "int8" or "fp8".
        workspace: Limit of scratch memory in GiB; None leaves it to TensorRT.
        timing_cache: File or folder in which measured kernel times are kept. In a folder every pair of GPU and
            TensorRT version has a file of its own.
        version_compatible: Whether later TensorRT versions of the same major version shall load the engine.
        hardware_compatible: True or "ampere" for all GPUs from Ampere on, "same" for all of the same compute
            capability; False for the very GPU it is built on.
        refit: Whether weights can be replaced later.
        strip: Whether to leave the weights out; the engine must be refitted before it runs.
        compute_capability: GPU generations to build for, such as ("8.6", "8.9"); TensorRT-RTX only.
        strongly_typed: Whether types come from the graph alone. False is for TensorRT 10 only: precision flags, which
            let TensorRT keep a layer in FP32 where that is faster.
        optimization_level: 0 (fast build) to 5; None is TensorRT's own default.
    """

    precision: str = "fp16"
    workspace: float | None = None
    timing_cache: str | Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool | str = False
    refit: bool = False
    strip: bool = False
    compute_capability: tuple[str, ...] = ()
    strongly_typed: bool = True
    optimization_level: int | None = None

    def check(self, backend: Backend) -> None:
        """Refuse what a runtime cannot do.

        Raises:
            ValueError: With what was asked for, why it does not work and what does.
        """
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown: use one of {', '.join(PRECISIONS)}")
        if self.workspace is not None and self.workspace <= 0:
            raise ValueError(f"workspace={self.workspace} must be a positive number of GiB")
        if self.optimization_level is not None and self.optimization_level not in range(6):
            raise ValueError(f"optimization_level={self.optimization_level} must be 0 to 5")
        if self.hardware_compatible not in {False, True, "ampere", "same"}:
            raise ValueError(f"hardware_compatible={self.hardware_compatible!r} must be true, false, ampere or same")
        if not self.strongly_typed and backend.always_strongly_typed:
            raise ValueError(
                f"strongly_typed=False is for TensorRT 10: {backend.title} takes all types from the graph; "
                "leave strongly_typed out"
            )
        (self._check_rtx if backend.is_rtx else self._check_tensorrt)(backend)

    def _check_rtx(self, backend: Backend) -> None:
        refused = {
            "timing_cache": (self.timing_cache, "it measures nothing during a build; leave it out"),
            "version_compatible": (self.version_compatible, "its engines load in the version that built them only"),
            "hardware_compatible": (
                self.hardware_compatible,
                "name GPU generations instead: compute_capability=8.6,8.9",
            ),
        }
        for key, (value, remedy) in refused.items():
            if value:
                raise ValueError(f"{key}= does not exist in {backend.title}: {remedy}")
        unknown = [c for c in self.compute_capability if c not in backend.targets]
        if unknown:
            note = " (Hopper is no target of TensorRT-RTX: use runtime=tensorrt there)" if "9.0" in unknown else ""
            raise ValueError(
                f"compute_capability={unknown[0]} is no target of {backend.title}{note}: "
                f"use one of {', '.join(backend.targets)}"
            )

    def _check_tensorrt(self, backend: Backend) -> None:
        if self.compute_capability:
            raise ValueError(
                f"compute_capability= is for runtime=rtx: {backend.title} builds for the GPU it runs on; "
                "hardware_compatible=True makes the engine run on every GPU from Ampere on"
            )


@dataclass(frozen=True)
class Compiled:
    """A built engine.

    Attributes:
        plan: TensorRT's serialized engine.
        audit: The precision it really has.
        warnings: What the builder warned of.
        tensors: Inputs and outputs of the network: name, shape and type.
        gpu: The GPU it was built on, None where there is none.
    """

    plan: bytes
    audit: PrecisionAudit
    warnings: list[str] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    gpu: dict[str, Any] | None = None


def compile_plan(
    onnx_path: str | Path,
    backend: Backend,
    options: BuildOptions,
    *,
    profile: Profile | None = None,
    expected: dict[str, int] | None = None,
) -> Compiled:
    """Build an engine from an ONNX file and read its precision back.

    Args:
        onnx_path: The graph, typed as `options.precision` wants it (in FP32 where precision is set by flags).
        backend: TensorRT or TensorRT-RTX.
        options: What the engine shall be.
        profile: Shapes, for a graph of dynamic shape.
        expected: Convolutions of the graph by precision.

    Returns:
        The plan and its audit.

    Raises:
        ValueError: If the runtime cannot do what the options ask for.
        BuildError: If the graph is not accepted or the build fails.
        PrecisionError: If the engine has not the precision that was asked for, or it cannot be read back.
    """
    options.check(backend)
    trt = backend.module
    log = BuildLog()
    logger = make_logger(backend, log)
    gpu = gpu_info()
    if not backend.is_rtx and gpu is None:
        raise BuildError(
            f"{backend.title} builds on the GPU that the engine is for, and this machine has none (nvidia-smi finds "
            "no GPU); build there, or for RTX GPUs here with runtime=rtx"
        )
    builder = trt.Builder(logger)
    network = _network(builder, backend, options, onnx_path, logger, log)
    config = builder.create_builder_config()
    _configure(config, backend, options, log)
    if profile is not None:
        shapes = builder.create_optimization_profile()
        shapes.set_shape(network.get_input(0).name, profile.minimum, profile.optimum, profile.maximum)
        config.add_optimization_profile(shapes)
    if not options.strongly_typed:
        _set_flags(config, network, backend, options, onnx_path)
    cache = _TimingCache(config, backend, options.timing_cache, gpu)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{backend.title} could not build the engine: {log.why()}{_hint(options, backend)}")
    cache.save()
    data = bytes(plan)
    audit = _audit(data, backend, options, logger, log).check(expected, flagged=not options.strongly_typed)
    return Compiled(data, audit, list(dict.fromkeys(log.warnings)), _tensors(network), gpu)


def _network(
    builder: Any, backend: Backend, options: BuildOptions, path: str | Path, logger: Any, log: BuildLog
) -> Any:
    """Parse an ONNX file."""
    trt = backend.module
    flags = backend.network_flags
    wanted = flags.get("STRONGLY_TYPED", 0) if options.strongly_typed else flags.get("EXPLICIT_BATCH", 0)
    network = builder.create_network(wanted)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        problems = [" ".join(str(parser.get_error(k)).split()) for k in range(parser.num_errors)]
        reason = problems[0] if problems else log.why()
        if backend.is_rtx and any(f"operator: {op} " in reason or f"operator: {op}(" in reason for op in _NOT_IN_RTX):
            reason = (
                f"TensorRT-RTX has no {reason.split('operator: ', 1)[1].split(' ', 1)[0]}, which NMS in the graph needs"
            )
            reason += "; export with nms left out (NMS then runs after the network) or with end2end=True"
        raise BuildError(f"{backend.title} does not accept {Path(path).name}: {reason}")
    return network


def _configure(config: Any, backend: Backend, options: BuildOptions, log: BuildLog) -> None:
    """Set what does not depend on the network."""
    trt = backend.module
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it nothing can be audited
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * _GIB))
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.precision == "tf32":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: FP32 would mean 10 bits of mantissa
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        same = options.hardware_compatible == "same"
        levels = trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY if same else levels.AMPERE_PLUS
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if not options.refit:  # the same weights come back, so everything may be optimised for them
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if options.compute_capability:
        config.num_compute_capabilities = len(options.compute_capability)
        for index, name in enumerate(options.compute_capability):
            if not config.set_compute_capability(backend.targets[name], index):
                raise BuildError(f"{backend.title} refuses compute_capability={name}: {log.why()}")


def _set_flags(config: Any, network: Any, backend: Backend, options: BuildOptions, path: str | Path) -> None:
    """Allow precisions by flags, as TensorRT 10 does for networks that are not strongly typed."""
    trt = backend.module
    if options.precision in {"fp32", "tf32"}:
        return
    config.set_flag(trt.BuilderFlag.FP16)
    if options.precision in {"int8", "fp8"}:
        config.set_flag(getattr(trt.BuilderFlag, options.precision.upper()))
    keep = float32_nodes(load_onnx(path))
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name not in keep or layer.type in {trt.LayerType.CONSTANT, trt.LayerType.SHAPE}:
            continue
        outputs = [k for k in range(layer.num_outputs) if layer.get_output_type(k) == trt.float32]
        if outputs:
            layer.precision = trt.float32
        for k in outputs:
            layer.set_output_type(k, trt.float32)


def _audit(plan: bytes, backend: Backend, options: BuildOptions, logger: Any, log: BuildLog) -> PrecisionAudit:
    """Read the precision of a finished engine: by the inspector where it can be loaded, else from the build log."""
    trt = backend.module
    recorded = log.layers
    engine = None
    if not options.strip and gpu_info() is not None:
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is not None:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        found = PrecisionAudit.of(parse_layers(text), options.precision, "inspector")
        if found.matrix or not recorded:
            return found
    if not recorded:
        raise PrecisionError(
            "the engine's precision cannot be read back: it does not load on this machine and the builder said nothing "
            "about its layers (another TensorRT object with a logger of its own may be alive in this process); "
            "build in a fresh process. The engine was not written"
        )
    return PrecisionAudit.of(parse_layers(recorded), options.precision, "build log")


def _tensors(network: Any) -> list[dict[str, Any]]:
    """Name, shape and type of a network's inputs and outputs."""
    inputs = [network.get_input(k) for k in range(network.num_inputs)]
    outputs = [network.get_output(k) for k in range(network.num_outputs)]
    return [
        {"name": t.name, "shape": [int(s) for s in t.shape], "dtype": str(t.dtype).rsplit(".", 1)[-1].lower(), "io": io}
        for io, tensors in (("input", inputs), ("output", outputs))
        for t in tensors
    ]


def _hint(options: BuildOptions, backend: Backend) -> str:
    """What may help after a failed build."""
    if backend.is_rtx and (options.refit or options.strip):
        return " (refit= and strip= of TensorRT-RTX need a GPU while they build; build there or leave them out)"
    if options.version_compatible:
        return " (version_compatible= needs TensorRT's lean runtime: pip install tensorrt-lean)"
    return ""


class _TimingCache:
    """Kernel times of earlier builds on this GPU with this version."""

    def __init__(self, config: Any, backend: Backend, place: str | Path | None, gpu: dict[str, Any] | None) -> None:
        self.config, self.path = config, None
        if place is None:
            return
        self.path = self.file(Path(place), backend.version, gpu)
        old = self.path.read_bytes() if self.path.is_file() else b""
        cache = config.create_timing_cache(old)
        if cache is None or not config.set_timing_cache(cache, False):  # of another GPU or version
            LOGGER.warning("timing cache %s is of another GPU or version, or damaged: it is written anew", self.path)
            config.set_timing_cache(config.create_timing_cache(b""), False)

    @staticmethod
    def file(place: Path, version: str, gpu: dict[str, Any] | None) -> Path:
        """Return the cache's file: itself, or in a folder one for every GPU and version."""
        if place.suffix and not place.is_dir():
            return place
        name = f"{(gpu or {}).get('name', 'gpu')}-sm{(gpu or {}).get('compute_capability', '')}-trt{version}"
        safe = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
        return place / f"{safe}.cache"

    def save(self) -> None:
        """Write what this build has measured, whole or not at all."""
        cache = self.config.get_timing_cache() if self.path is not None else None
        if cache is None or self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(cache.serialize()))
        os.replace(temporary, self.path)


def as_capabilities(value: Any) -> tuple[str, ...]:
    """Read GPU generations as they are given: 8.6, "8.6,8.9", "sm86", [8.6, 12.0].

    Examples:
        >>> as_capabilities(8.6), as_capabilities("8.6,sm120"), as_capabilities(None)
        (('8.6',), ('8.6', '12.0'), ())
    """
    if value is None or value == "":
        return ()
    items: Sequence[Any] = value if isinstance(value, (list, tuple)) else str(value).strip("[]").split(",")
    found = []
    for item in items:
        text = str(item).strip().lower().removeprefix("sm").removeprefix("_")
        if "." not in text:  # 86 and 120 are written without the point, 12 is 12.0
            text = f"{text[:-1]}.{text[-1]}" if text.isdigit() and int(text) >= 50 else f"{text}.0"
        found.append(text)
    return tuple(dict.fromkeys(found))
