"""TensorRT and TensorRT-RTX behind one description: which module, what it can do, and a logger that remembers.

The two modules share nearly the whole Python API, so the builder is written once; what differs is asked of the module
itself (`hasattr`), not of its version number.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from meddet_yolo.console import how_to_install

__all__ = ["RUNTIMES", "Backend", "BuildLog", "current_gpu", "gpu_info", "load_backend", "make_logger"]

LOGGER = logging.getLogger("meddet_yolo.trt")


@dataclass(frozen=True)
class Runtime:
    """How a runtime is called, imported and installed."""

    title: str
    module: str
    extra: str


RUNTIMES = {
    "tensorrt": Runtime("TensorRT", "tensorrt", "trt"),
    "rtx": Runtime("TensorRT-RTX", "tensorrt_rtx", "rtx"),
}


@dataclass(frozen=True)
class Backend:
    """An imported runtime and what it can do.

    Attributes:
        name: "tensorrt" or "rtx".
        module: The imported Python module.
    """

    name: str
    module: Any

    @property
    def title(self) -> str:
        """The product's name with its version."""
        return f"{RUNTIMES[self.name].title} {self.version}"

    @property
    def version(self) -> str:
        """Version of the runtime."""
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.name == "rtx"

    @property
    def always_strongly_typed(self) -> bool:
        """Whether types come from the ONNX graph alone: TensorRT 11 and RTX have no precision flags any more."""
        return not hasattr(self.module.BuilderFlag, "FP16")

    @property
    def targets(self) -> dict[str, Any]:
        """GPU generations it can build for on any machine, such as {"8.6": ComputeCapability.SM86}; empty if none."""
        members = getattr(getattr(self.module, "ComputeCapability", None), "__members__", {})
        found = {}
        for name, value in members.items():
            digits = name.removeprefix("SM")
            if name.startswith("SM") and digits.isdigit():
                found[f"{digits[:-1]}.{digits[-1]}"] = value
        return found

    @property
    def network_flags(self) -> dict[str, int]:
        """Bits for `create_network`, by name; what a version has dropped is not there."""
        members = self.module.NetworkDefinitionCreationFlag.__members__
        return {name: 1 << int(value) for name, value in members.items()}


def load_backend(runtime: str) -> Backend:
    """Import a runtime.

    Args:
        runtime: "tensorrt" or "rtx".

    Returns:
        The imported runtime.

    Raises:
        ValueError: If there is no runtime of that name.
        ImportError: If it is not installed; the message names the pip command.
        RuntimeError: If its version is not supported.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r} is unknown: use one of {', '.join(RUNTIMES)}")
    wanted = RUNTIMES[runtime]
    try:
        module: ModuleType = import_module(wanted.module)
    except (ImportError, OSError, RuntimeError) as error:  # its libraries may be missing or the wrong ones
        other = ", or build for RTX GPUs with runtime=rtx" if runtime == "tensorrt" else ""
        raise ImportError(
            f"{wanted.title} is not usable here ({error}): {how_to_install(wanted.extra)}{other}"
        ) from error
    backend = Backend(runtime, module)
    if runtime == "tensorrt" and int(backend.version.split(".", 1)[0]) < 10:
        raise RuntimeError(f"TensorRT {backend.version} is too old: 10.0 or newer is needed (pip install -U tensorrt)")
    return backend


@dataclass
class BuildLog:
    """What the runtime said during a build.

    Attributes:
        errors: Its error messages.
        warnings: Its warnings.
        layers: The description of the finished engine's layers that the builder prints at detailed verbosity: the
            engine inspector's one-line format, which needs no GPU.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    layers: str = ""

    def add(self, severity: str, message: str) -> None:
        """Take one message of the given severity ("ERROR", "WARNING", ...)."""
        if severity in {"ERROR", "INTERNAL_ERROR"}:
            self.errors.append(message.strip())
        elif severity == "WARNING":
            self.warnings.append(message.strip())
            LOGGER.debug(message)
        elif message.lstrip().startswith(("Layers:", "Engine Layer Information:")):
            self.layers = message

    def why(self) -> str:
        """The errors in one line."""
        return "; ".join(dict.fromkeys(" ".join(error.split()) for error in self.errors)) or "it gave no reason"


def make_logger(backend: Backend, log: BuildLog) -> Any:
    """Return a logger of the runtime's own type that writes into a `BuildLog`."""

    class Logger(backend.module.ILogger):  # type: ignore[name-defined]
        """Hands every message on; the builder prints an engine's layers only at the verbose level."""

        def __init__(self) -> None:
            backend.module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(str(severity).rsplit(".", 1)[-1], message)

    return Logger()


def current_gpu() -> str | None:
    """PCI bus id of the GPU that CUDA calls of this thread go to, on which TensorRT builds; None without a driver.

    The bus id is what CUDA, `nvidia-smi` and NVML have in common: CUDA counts by speed and by CUDA_VISIBLE_DEVICES, the
    others by bus.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    device, text = ctypes.c_int(), ctypes.create_string_buffer(32)
    if driver.cuInit(0) != 0:
        return None
    # A thread without a context yet gets one on the first GPU.
    if driver.cuCtxGetDevice(ctypes.byref(device)) != 0 and driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    return text.value.decode() if driver.cuDeviceGetPCIBusId(text, len(text), device) == 0 else None


def gpu_info() -> dict[str, Any] | None:
    """Name, compute capability and driver of the current GPU as `nvidia-smi` gives them; None where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = "--query-gpu=name,compute_cap,driver_version"
    try:
        found = subprocess.run(
            [command, query, "--format=csv,noheader", f"--id={current_gpu() or 0}"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    fields = [part.strip() for part in found.stdout.strip().split(",")]
    if len(fields) != 3:
        return None
    return {"name": fields[0], "compute_capability": fields[1], "driver": fields[2]}
