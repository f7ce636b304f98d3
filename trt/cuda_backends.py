"""The CUDA calls of `cuda_api` by pycuda and by NVIDIA's own cuda-python.

pycuda has no CUDA graphs, so those calls go to the driver's library by ctypes; cuda-python has all of them and needs no
compiler to be installed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from meddet_yolo.trt.cuda_api import Cuda, CudaError, Gpu, check_number, no_gpu

__all__ = ["CudaPython", "PyCuda", "open_cuda"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the legacy default stream
_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def open_cuda(device: int = 0, api: str = "auto") -> Cuda:
    """Open a GPU.

    Args:
        device: Number of the GPU.
        api: "pycuda", "cuda-python", or "auto" for the first of them that is installed.

    Raises:
        CudaError: If no library, driver or such GPU is there.
        ValueError: If there is no such library.

    Examples:
        >>> open_cuda(api="cupy")
        Traceback (most recent call last):
        ...
        ValueError: cuda must be 'auto', 'pycuda' or 'cuda-python', got 'cupy'
    """
    kinds: dict[str, tuple[str, Callable[[int], Cuda]]] = {
        "pycuda": ("pycuda", PyCuda),
        "cuda-python": ("cuda.bindings", CudaPython),
    }
    if api not in ("auto", *kinds):
        raise ValueError(f"cuda must be 'auto', 'pycuda' or 'cuda-python', got {api!r}")
    for name, (module, kind) in kinds.items():
        if api in ("auto", name) and _installed(module):
            return kind(device)
    missing = "neither pycuda nor cuda-python is" if api == "auto" else f"{api} is not"
    raise CudaError(
        f"{missing} installed: pip install cuda-python, or pycuda, which needs the CUDA toolkit and a compiler"
    )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


class CudaPython(Cuda):
    """CUDA by cuda-python's driver bindings."""

    def __init__(self, device: int = 0) -> None:
        from cuda.bindings import driver

        self._api = driver
        self._open: list[tuple[Callable[..., Any], Any]] = []
        try:
            self._call(driver.cuInit, 0)
            check_number(device, self._call(driver.cuDeviceGetCount))
        except CudaError:
            raise
        except Exception as error:  # the bindings raise several kinds where the driver's library is missing
            raise no_gpu(error) from error
        self._device = self._call(driver.cuDeviceGet, device)
        attribute = driver.CUdevice_attribute
        version = self._call(driver.cuDriverGetVersion)
        self.gpu = Gpu(
            self._call(driver.cuDeviceGetName, 256, self._device).split(b"\0")[0].decode(),
            (
                self._call(driver.cuDeviceGetAttribute, attribute(_MAJOR), self._device),
                self._call(driver.cuDeviceGetAttribute, attribute(_MINOR), self._device),
            ),
            (version // 1000, version % 1000 // 10),
        )
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, self._device)
        self._closed = False
        with self.current():
            self._stream = self._call(driver.cuStreamCreate, _NON_BLOCKING)
            self._open.append((driver.cuStreamDestroy, self._stream))

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the driver; return what it gives besides the status."""
        status, *values = function(*args)
        if int(status) != 0:
            name = getattr(function, "__name__", "CUDA call")
            if name in ("cuInit", "cuDeviceGetCount"):
                raise no_gpu(f"{name} answered {status.name}")
            raise CudaError(f"{name} failed: {status.name}")
        return values[0] if len(values) == 1 else tuple(values)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU the calling thread's meanwhile."""
        self._call(self._api.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._call(self._api.cuCtxPopCurrent)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a page-locked host array."""
        count = prod(shape)
        size = max(count * np.dtype(dtype).itemsize, 1)
        pointer = self._call(self._api.cuMemHostAlloc, size, 0)
        self._open.append((self._api.cuMemFreeHost, pointer))
        memory: Any = (ctypes.c_char * size).from_address(int(pointer))
        return np.frombuffer(memory, np.dtype(dtype), count).reshape(shape)

    def allocate(self, size: int) -> Any:
        """Return a device buffer."""
        pointer = self._call(self._api.cuMemAlloc, max(size, 1))
        self._open.append((self._api.cuMemFree, pointer))
        return pointer

    def address(self, buffer: Any) -> int:
        """Return a device buffer's address."""
        return int(buffer)

    def stream_handle(self) -> int:
        """Return the stream's handle."""
        return int(self._stream)

    def to_device(self, buffer: Any, array: NDArray[Any]) -> None:
        """Copy to the device."""
        self._call(self._api.cuMemcpyHtoDAsync, buffer, array.ctypes.data, array.nbytes, self._stream)

    def to_host(self, array: NDArray[Any], buffer: Any) -> None:
        """Copy to the host."""
        self._call(self._api.cuMemcpyDtoHAsync, array.ctypes.data, buffer, array.nbytes, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call(self._api.cuStreamSynchronize, self._stream)

    def event(self) -> Any:
        """Return a new event."""
        event = self._call(self._api.cuEventCreate, 0)
        self._open.append((self._api.cuEventDestroy, event))
        return event

    def record(self, event: Any) -> None:
        """Record an event."""
        self._call(self._api.cuEventRecord, event, self._stream)

    def elapsed(self, start: Any, end: Any) -> float:
        """Return the milliseconds between two events."""
        return float(self._call(self._api.cuEventElapsedTime, start, end))

    def begin_capture(self) -> None:
        """Begin a capture."""
        mode = self._api.CUstreamCaptureMode(_CAPTURE_THREAD_LOCAL)
        self._call(self._api.cuStreamBeginCapture, self._stream, mode)

    def end_capture(self) -> Any:
        """End a capture."""
        graph = self._call(self._api.cuStreamEndCapture, self._stream)
        try:
            return self._call(self._api.cuGraphInstantiate, graph, 0)
        finally:
            self._call(self._api.cuGraphDestroy, graph)

    def launch(self, graph: Any) -> None:
        """Launch a graph."""
        self._call(self._api.cuGraphLaunch, graph, self._stream)

    def free_graph(self, graph: Any) -> None:
        """Free a graph."""
        self._call(self._api.cuGraphExecDestroy, graph)

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes."""
        free, total = self._call(self._api.cuMemGetInfo)
        return int(free), int(total)

    def close(self) -> None:
        """Give everything back."""
        if self._closed:
            return
        self._closed = True
        with self.current():
            while self._open:
                function, handle = self._open.pop()
                self._call(function, handle)
        self._call(self._api.cuDevicePrimaryCtxRelease, self._device)


class PyCuda(Cuda):
    """CUDA by pycuda; graphs by the driver's library itself."""

    def __init__(self, device: int = 0) -> None:
        try:
            import pycuda.driver as driver
        except (ImportError, OSError) as error:  # built for another driver, or the driver's library is missing
            raise no_gpu(f"pycuda cannot be loaded ({error})") from error
        self._api = driver
        try:
            driver.init()
            check_number(device, driver.Device.count())
        except driver.Error as error:
            raise no_gpu(error) from error
        chosen = driver.Device(device)
        version = driver.get_driver_version()
        major, minor = chosen.compute_capability()
        self.gpu = Gpu(chosen.name(), (major, minor), (version // 1000, version % 1000 // 10))
        self._context = chosen.retain_primary_context()
        self._closed = False
        self._buffers: list[Any] = []
        with self.current():
            self._stream = driver.Stream(_NON_BLOCKING)
        self._library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")

    def _driver_call(self, name: str, *args: Any) -> None:
        """Call a function of the driver's library that pycuda lacks."""
        status = getattr(self._library, name)(*args)
        if status != 0:
            raise CudaError(f"{name} failed: CUDA error {status}")

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call pycuda, its errors being ours."""
        try:
            return function(*args)
        except self._api.Error as error:
            raise CudaError(" ".join(str(error).split())) from error

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU the calling thread's meanwhile."""
        self._call(self._context.push)
        try:
            yield
        finally:
            self._api.Context.pop()

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a page-locked host array."""
        return self._call(self._api.pagelocked_empty, shape, np.dtype(dtype))

    def allocate(self, size: int) -> Any:
        """Return a device buffer."""
        self._buffers.append(self._call(self._api.mem_alloc, max(size, 1)))
        return self._buffers[-1]

    def address(self, buffer: Any) -> int:
        """Return a device buffer's address."""
        return int(buffer)

    def stream_handle(self) -> int:
        """Return the stream's handle."""
        return int(self._stream.handle)

    def to_device(self, buffer: Any, array: NDArray[Any]) -> None:
        """Copy to the device."""
        self._call(self._api.memcpy_htod_async, buffer, array, self._stream)

    def to_host(self, array: NDArray[Any], buffer: Any) -> None:
        """Copy to the host."""
        self._call(self._api.memcpy_dtoh_async, array, buffer, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call(self._stream.synchronize)

    def event(self) -> Any:
        """Return a new event."""
        return self._call(self._api.Event)

    def record(self, event: Any) -> None:
        """Record an event."""
        self._call(event.record, self._stream)

    def elapsed(self, start: Any, end: Any) -> float:
        """Return the milliseconds between two events."""
        return float(self._call(start.time_till, end))

    def begin_capture(self) -> None:
        """Begin a capture."""
        self._driver_call("cuStreamBeginCapture_v2", ctypes.c_void_p(self.stream_handle()), _CAPTURE_THREAD_LOCAL)

    def end_capture(self) -> Any:
        """End a capture."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._driver_call("cuStreamEndCapture", ctypes.c_void_p(self.stream_handle()), ctypes.byref(graph))
        try:
            self._driver_call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            self._driver_call("cuGraphDestroy", graph)
        return ready

    def launch(self, graph: Any) -> None:
        """Launch a graph."""
        self._driver_call("cuGraphLaunch", graph, ctypes.c_void_p(self.stream_handle()))

    def free_graph(self, graph: Any) -> None:
        """Free a graph."""
        self._driver_call("cuGraphExecDestroy", graph)

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes."""
        free, total = self._call(self._api.mem_get_info)
        return int(free), int(total)

    def close(self) -> None:
        """Give everything back; page-locked arrays go when nothing refers to them any more."""
        if self._closed:
            return
        self._closed = True
        with self.current():
            for buffer in self._buffers:
                self._call(buffer.free)
            self._buffers.clear()
            self._stream = None
        self._context.detach()
