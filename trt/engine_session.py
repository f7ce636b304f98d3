"""A TensorRT or TensorRT-RTX engine on a GPU: load it safely, keep its buffers, run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.trt.backends import Backend, BuildLog, load_backend, make_logger
from meddet_yolo.trt.cuda_api import Cuda, CudaError
from meddet_yolo.trt.cuda_backends import open_cuda
from meddet_yolo.trt.engine_file import read_engine

__all__ = ["EngineSession", "IncompatibleEngineError"]


class IncompatibleEngineError(RuntimeError):
    """An intact engine that this machine cannot run: another TensorRT, another GPU, an unknown kind of tensor."""


@dataclass
class _Output:
    """An output tensor with its buffers, as large as the largest input makes it."""

    name: str
    dtype: np.dtype[Any]
    host: NDArray[Any]
    device: Any


class EngineSession:
    """An engine with page-locked buffers, a stream and a CUDA graph of its own.

    Write a batch into `buffer(shape)`, then `run(shape)`. Not thread-safe by itself: one call at a time; which thread
    makes it does not matter. Use it as a context manager or call `close`.

    The graph is captured when a shape comes the second time in a row, so that changing shapes cost no captures.

    Args:
        path: An engine file with a metadata header, as `meddet export` and `yolo export` write it.
        device: Number of the GPU.
        cuda: "auto", "pycuda" or "cuda-python"; or an open `Cuda`, which is closed with the session.
        cuda_graph: Whether to replay the engine from a CUDA graph.
        trust: Load an engine that has no sidecar with its hash. An engine is code: only for files you made yourself.
        expected_sha256: Hash that you know from a safe place; compared instead of the sidecar's.
        backend: The TensorRT that runs it; found from the metadata where None.

    Attributes:
        metadata: The file's header.
        input_shape: (B, C, H, W), -1 where dynamic.
        limits: Smallest, optimal and largest input shape.
        dtype: Of the input.

    Raises:
        FileNotFoundError: If there is no such file.
        EngineFileError: If it is damaged, foreign, or not the file that its sidecar describes.
        IncompatibleEngineError: If this machine cannot run it.
        CudaError: If there is no GPU.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: int = 0,
        cuda: str | Cuda = "auto",
        cuda_graph: bool = True,
        trust: bool = False,
        expected_sha256: str | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.path = Path(path)
        file = read_engine(self.path, expected_sha256=expected_sha256, vouched=not trust)
        self.metadata = file.metadata
        backend = backend or load_backend(str(self.metadata.get("meddet_runtime") or "tensorrt"))
        _check_version(self.path, self.metadata, backend)
        if self.metadata.get("meddet_strip"):
            raise IncompatibleEngineError(f"{self.path} was exported without its weights (strip=True): refit it first")
        self._closed = False
        self._cuda = open_cuda(device, cuda) if isinstance(cuda, str) else cuda
        self.gpu = self._cuda.gpu
        self.runtime = backend.title
        try:
            _check_gpu(self.path, self.metadata, self._cuda)
            with self._cuda.current():
                self._load(backend, file.plan)
                self._allocate(backend.module)
        except BaseException:
            self.close()
            raise
        self._use_graph = cuda_graph
        self._graph: Any = None
        self._shape: tuple[int, ...] | None = None
        self._same_shape_runs = 0

    def _load(self, backend: Backend, plan: bytes) -> None:
        """Deserialize the plan and make a context."""
        self._log = BuildLog()
        self._logger = make_logger(backend, self._log)
        self._runtime = backend.module.Runtime(self._logger)
        if self.metadata.get("meddet_version_compatible"):
            self._runtime.engine_host_code_allowed = True  # such an engine brings a runtime of its own along
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise IncompatibleEngineError(
                f"{self.runtime} cannot load {self.path} on {self.gpu}: {self._log.why()}; export it again on this "
                "machine, or with the TensorRT that is installed here"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise CudaError(f"no execution context for {self.path}: {self._log.why()} (GPU memory may be full)")

    def _allocate(self, trt: Any) -> None:
        """Find the tensors and give each a buffer for the largest input, so that no later shape needs another."""
        engine, context = self._engine, self._context
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1:
            raise IncompatibleEngineError(
                f"{self.path} has the inputs {', '.join(inputs) or 'none'}; expected one, a batch of images"
            )
        self._input = inputs[0]
        self.input_shape = tuple(engine.get_tensor_shape(self._input))
        if len(self.input_shape) != 4:
            raise IncompatibleEngineError(f"{self.path} takes {self.input_shape}; expected images (B, C, H, W)")
        self.dtype = _numpy_type(trt, engine, self._input)
        dynamic = -1 in self.input_shape
        shapes = engine.get_tensor_profile_shape(self._input, 0) if dynamic else [self.input_shape] * 3
        low, best, high = (tuple(shape) for shape in shapes)
        self.limits: tuple[tuple[int, ...], ...] = (low, best, high)
        self._set_shape(high)
        self._host_input = self._cuda.pinned(high, self.dtype)
        self._host_input[:] = 0  # what a half-filled batch of a static engine still holds must be finite
        self._device_input = self._cuda.allocate(self._host_input.nbytes)
        context.set_tensor_address(self._input, self._cuda.address(self._device_input))
        self._outputs: list[_Output] = []
        for name in names:
            if name == self._input:
                continue
            shape = tuple(context.get_tensor_shape(name))
            if -1 in shape:
                raise IncompatibleEngineError(
                    f"output {name} of {self.path} has the shape {shape}, which depends on the data; export the model "
                    "without NMS inside (nms=False), or end-to-end"
                )
            dtype = _numpy_type(trt, engine, name)
            host = self._cuda.pinned((prod(shape),), dtype)
            output = _Output(name, dtype, host, self._cuda.allocate(host.nbytes))
            context.set_tensor_address(name, self._cuda.address(output.device))
            self._outputs.append(output)
        self._events = [self._cuda.event() for _ in range(4)]

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        if -1 in self.input_shape and not self._context.set_input_shape(self._input, shape):
            raise ValueError(f"{self.path} refused the input shape {shape}: {self._log.why()}")

    def buffer(self, shape: Sequence[int]) -> NDArray[Any]:
        """Return the page-locked input of a shape (B, C, H, W) to write a batch into.

        Raises:
            ValueError: If the engine takes no such shape.
        """
        shape = tuple(shape)
        low, _, high = self.limits
        if len(shape) != 4 or any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            takes = f"{low}" if low == high else f"{low} to {high}"
            raise ValueError(f"{self.path.name} takes input shapes {takes}, got {shape}")
        return self._host_input.reshape(-1)[: prod(shape)].reshape(shape)

    def run(self, shape: Sequence[int]) -> list[NDArray[Any]]:
        """Run the batch that lies in `buffer(shape)`.

        Returns:
            The outputs: views of page-locked memory that the next call overwrites.

        Raises:
            CudaError: If the GPU fails.
            RuntimeError: If the session is closed.
        """
        if self._closed:
            raise RuntimeError(f"{self.path.name} is closed")
        host = self.buffer(shape)
        cuda, events = self._cuda, self._events
        with cuda.current():
            self._bind(host.shape)
            cuda.record(events[0])
            cuda.to_device(self._device_input, host)
            cuda.record(events[1])
            if self._graph is not None:
                cuda.launch(self._graph)
            else:
                self._enqueue()
            cuda.record(events[2])
            results = []
            for output in self._outputs:
                shape = tuple(self._context.get_tensor_shape(output.name))
                results.append(output.host[: prod(shape)].reshape(shape))
                cuda.to_host(results[-1], output.device)
            cuda.record(events[3])
            cuda.synchronize()
        return results

    def times(self) -> dict[str, float]:
        """Return what the last run spent on the GPU, in milliseconds: copying in, computing, copying out."""
        with self._cuda.current():
            a, b, c, d = self._events
            return {
                "to_device": self._cuda.elapsed(a, b),
                "compute": self._cuda.elapsed(b, c),
                "to_host": self._cuda.elapsed(c, d),
            }

    @property
    def uses_graph(self) -> bool:
        """Whether the last shape runs from a CUDA graph."""
        return self._graph is not None

    def memory(self) -> int:
        """Return the bytes that are in use on the GPU, by every process."""
        with self._cuda.current():
            free, total = self._cuda.memory()
        return total - free

    def _bind(self, shape: tuple[int, ...]) -> None:
        """Make the context ready for a shape; capture the graph once the shape repeats."""
        if shape != self._shape:
            self._drop_graph()  # it holds the old shape's work
            self._shape = None  # until the new one is accepted
            self._set_shape(shape)
            self._shape, self._same_shape_runs = shape, 0
        self._same_shape_runs += 1
        # The first run of a shape goes without: TensorRT sets itself up in it, which a graph could not hold.
        if self._use_graph and self._graph is None and self._same_shape_runs == 2:
            self._capture()

    def _capture(self) -> None:
        """Capture the graph; an engine that cannot be captured goes on without."""
        capturable = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX knows beforehand
        if capturable is not None and not capturable(self._cuda.stream_handle()):
            return
        try:
            self._graph = self._cuda.capture(self._enqueue)
        except CudaError:
            self._graph = None

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream_handle()):
            raise CudaError(f"{self.path.name} failed to run: {self._log.why()}")

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.free_graph(self._graph)
            self._graph = None

    def close(self) -> None:
        """Give the GPU's memory back; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        with self._cuda.current():
            if getattr(self, "_graph", None) is not None:
                self._drop_graph()
            for name in ("_context", "_engine", "_runtime"):  # in this order: each needs the next
                setattr(self, name, None)
        self._cuda.close()


def _check_version(path: Path, metadata: dict[str, Any], backend: Backend) -> None:
    """Refuse an engine of another TensorRT, unless it was built to run in later ones."""
    built, here = metadata.get("meddet_runtime_version"), backend.version
    if not built or str(built) == here:
        return
    if metadata.get("meddet_version_compatible") and _numbers(str(built)) <= _numbers(here):
        return
    if _numbers(str(built))[:3] == _numbers(here)[:3]:  # builds of one release load each other's engines
        return
    raise IncompatibleEngineError(
        f"{path} was built with version {built}, here is {backend.title}: install that version, or export the engine "
        "again"
    )


def _numbers(version: str) -> list[int]:
    """Return the numbers of a version.

    Examples:
        >>> _numbers("10.13.0.35.post1")
        [10, 13, 0, 35]
    """
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return numbers


def _check_gpu(path: Path, metadata: dict[str, Any], cuda: Cuda) -> None:
    """Refuse an engine of another GPU generation, which would be an obscure error otherwise."""
    built = [str(c) for c in metadata.get("meddet_compute_capability") or []]
    gpu = metadata.get("meddet_gpu")
    if not built and isinstance(gpu, dict) and metadata.get("meddet_runtime") != "rtx":  # RTX builds for all by default
        built = [str(gpu.get("compute_capability"))]
    here = cuda.gpu.capability
    if not built or "{}.{}".format(*here) in built:
        return
    if metadata.get("meddet_hardware_compatible") in (True, "ampere") and here >= (8, 0):
        return
    raise IncompatibleEngineError(
        f"{path} was built for GPUs of compute capability {', '.join(built)}, this one is {cuda.gpu}: export it for "
        "this GPU"
    )


def _numpy_type(trt: Any, engine: Any, name: str) -> np.dtype[Any]:
    """Return a tensor's type in numpy."""
    kind = engine.get_tensor_dtype(name)
    try:
        return np.dtype(trt.nptype(kind))
    except TypeError as error:
        raise IncompatibleEngineError(
            f"tensor {name} has the type {kind}, which numpy lacks; export with float32 or float16 inputs and outputs"
        ) from error
