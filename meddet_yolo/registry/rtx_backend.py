"""TensorRT-RTX engines inside Ultralytics: `MedDet("student.engine")` and `YOLO("student.engine")` run them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.utils import LOGGER

from meddet_yolo.trt.backends import BuildLog, load_backend, make_logger
from meddet_yolo.trt.engine_file import read_engine

__all__ = ["RTXBackend", "runtime_cache_path"]


def runtime_cache_path(engine: str | Path) -> Path:
    """Return where the kernels that TensorRT-RTX compiled for this GPU are kept.

    Examples:
        >>> runtime_cache_path("student.engine").name
        'student.engine.rtxcache'
    """
    path = Path(engine)
    return path.with_name(f"{path.name}.rtxcache")


class RTXBackend(BaseBackend):
    """Runs an engine of TensorRT-RTX on PyTorch's tensors.

    TensorRT-RTX compiles an engine for the GPU at hand when it first runs. What it compiled is kept beside the engine
    in `<engine>.rtxcache`, so that later starts are quick; the file is written anew on another GPU or version.

    Raises:
        EngineFileError: If the file is damaged or not the one that its sidecar describes.
        ImportError: If tensorrt-rtx is not installed.
        RuntimeError: If there is no GPU, or this one cannot run the engine.
    """

    device: Any

    def load_model(self, weight: str | Path) -> None:
        """Load an engine.

        Args:
            weight: The engine file.
        """
        self.path = Path(weight)
        file = read_engine(self.path)
        self.apply_metadata(file.metadata)
        self.device = _gpu_of(self.device, self.path)
        self.runtime = load_backend("rtx")
        self._check(file.metadata)
        LOGGER.info(f"Loading {self.path} for {self.runtime.title} inference...")
        self._log = BuildLog()
        self._logger = make_logger(self.runtime, self._log)
        trt = self.runtime.module
        with _on(self.device):
            torch.zeros(1, device=self.device)  # TensorRT uses the context that PyTorch has made
            self._trt_runtime = trt.Runtime(self._logger)
            engine = self._trt_runtime.deserialize_cuda_engine(file.plan)
            if engine is None:
                raise RuntimeError(
                    f"{self.runtime.title} cannot load {self.path} on this GPU: {self._log.why()}; export it again, "
                    "for another GPU generation with compute_capability="
                )
            self.model = engine
            self._make_context(engine)
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        self.input_name = next(n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self.output_names = [n for n in names if n != self.input_name]
        self.dynamic = -1 in tuple(engine.get_tensor_shape(self.input_name))
        self._types = {name: _torch_type(trt, engine.get_tensor_dtype(name)) for name in names}
        self.fp16 = self._types[self.input_name] == torch.float16

    def forward(self, im: torch.Tensor) -> list[torch.Tensor]:
        """Run the engine on a batch.

        Args:
            im: Images of shape (B, C, H, W) on the GPU.

        Returns:
            The outputs, on the GPU.

        Raises:
            ValueError: If the engine was not built for this shape.
            RuntimeError: If the engine fails.
        """
        im = im.to(self.device, self._types[self.input_name]).contiguous()
        wanted = tuple(self.model.get_tensor_shape(self.input_name))
        fits = len(wanted) == im.ndim and all(w in (-1, s) for w, s in zip(wanted, im.shape, strict=True))
        if not fits or not self._context.set_input_shape(self.input_name, tuple(im.shape)):
            low, _, high = self.model.get_tensor_profile_shape(self.input_name, 0)
            raise ValueError(
                f"{self.path.name} takes inputs from {tuple(low)} to {tuple(high)}, got {tuple(im.shape)}: predict "
                "with its imgsz and batch, or export it with dynamic=True"
            )
        outputs = {
            name: torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=self._types[name], device=self.device)
            for name in self.output_names
        }
        for name, tensor in {self.input_name: im, **outputs}.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        with _side_stream(self) as stream:
            if not self._context.execute_async_v3(stream):
                raise RuntimeError(f"{self.runtime.title} failed to run {self.path}: {self._log.why()}")
        if tuple(im.shape) not in self._seen:
            self._seen.add(tuple(im.shape))
            self._save_cache()
        return [outputs[name] for name in sorted(outputs)]

    def _check(self, metadata: dict[str, Any]) -> None:
        """Refuse what cannot run here before TensorRT says it in its own way."""
        built = str(metadata.get("meddet_runtime_version", self.runtime.version))
        if built != self.runtime.version:
            raise RuntimeError(
                f"{self.path} was built by TensorRT-RTX {built} and loads in that version only; installed is "
                f"{self.runtime.version}: export it again, or pip install tensorrt-rtx=={built}"
            )
        if metadata.get("meddet_strip"):
            raise RuntimeError(
                f"{self.path} was built without weights (strip=True): refit it with "
                "meddet_yolo.trt.refit.refit_engine, or export it without strip"
            )

    def _make_context(self, engine: Any) -> None:
        """Create the execution context, with what was compiled in earlier runs."""
        config = engine.create_runtime_config()
        trt = self.runtime.module
        if hasattr(config, "cuda_graph_strategy") and hasattr(trt, "CudaGraphStrategy"):
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = config.create_runtime_cache()
        self._saved = b""
        self._seen: set[tuple[int, ...]] = set()
        place = runtime_cache_path(self.path)
        if place.is_file():
            blob = place.read_bytes()
            if self._cache.deserialize(blob):
                self._saved = blob
            else:
                LOGGER.warning(f"{place} is of another GPU, driver or version: it is written anew")
        config.set_runtime_cache(self._cache)
        self._context = engine.create_execution_context(config)
        if self._context is None:
            raise RuntimeError(f"{self.runtime.title} has no room to run {self.path}: {self._log.why()}")

    def _save_cache(self) -> None:
        """Keep what has been compiled; a folder that cannot be written costs time only."""
        blob = bytes(self._cache.serialize())
        if not blob or blob == self._saved:
            return
        place = runtime_cache_path(self.path)
        try:
            descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
            with os.fdopen(descriptor, "wb") as file:
                file.write(blob)
            os.replace(temporary, place)
            self._saved = blob
        except OSError as error:
            LOGGER.warning(f"{place} cannot be written ({error}): the engine is compiled again at the next start")


def _gpu_of(device: Any, path: Path) -> torch.device:
    """Return the GPU to run on; Ultralytics passes "cpu" where none was chosen."""
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"{path} is an engine of TensorRT-RTX and needs an NVIDIA GPU; PyTorch sees none here. Without one use the "
            "checkpoint, or export it with format=onnx or format=openvino"
        )
    device = torch.device(device)
    return device if device.type == "cuda" else torch.device("cuda:0")


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one."""
    with torch.cuda.device(device):
        yield


@contextmanager
def _side_stream(backend: RTXBackend) -> Iterator[int]:
    """Give the handle of a stream that waits for PyTorch's and that PyTorch's waits for: the default stream is slow."""
    current = torch.cuda.current_stream(backend.device)
    stream = backend.__dict__.setdefault("_stream", None) or torch.cuda.Stream(backend.device)
    backend._stream = stream
    stream.wait_stream(current)
    with torch.cuda.device(backend.device):
        yield int(stream.cuda_stream)
    current.wait_stream(stream)


def _torch_type(trt: Any, dtype: Any) -> torch.dtype:
    """PyTorch's name of a TensorRT type."""
    types = {
        trt.float32: torch.float32,
        trt.float16: torch.float16,
        trt.int32: torch.int32,
        trt.int8: torch.int8,
        trt.bool: torch.bool,
    }
    if dtype not in types:
        raise RuntimeError(f"the engine has a tensor of type {dtype}, which has no counterpart here")
    return types[dtype]
