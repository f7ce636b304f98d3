"""The few CUDA calls that an engine needs: the only way to the device, whatever library makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from numpy.typing import DTypeLike, NDArray

__all__ = ["Cuda", "CudaError", "Gpu", "check_number", "no_gpu"]


class CudaError(RuntimeError):
    """The GPU, its driver or a CUDA library is missing, or a CUDA call failed."""


@dataclass(frozen=True)
class Gpu:
    """What an engine must fit.

    Attributes:
        name: As NVIDIA calls it.
        capability: Compute capability (major, minor).
        driver: Newest CUDA version that the driver supports (major, minor).
    """

    name: str
    capability: tuple[int, int]
    driver: tuple[int, int]

    def __str__(self) -> str:
        """Return name and compute capability."""
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


class Cuda(ABC):
    """One GPU: page-locked and device memory, one stream, events and graphs.

    Every method but `current` and `close` is to be called inside `with cuda.current():`, which makes the device's
    primary context, the one that PyTorch uses too, the thread's own meanwhile. Handles are opaque.
    """

    gpu: Gpu

    @abstractmethod
    def current(self) -> Any:
        """Return a context manager that makes this GPU the calling thread's."""

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a page-locked host array, valid until `close`."""

    @abstractmethod
    def allocate(self, size: int) -> Any:
        """Return a device buffer of that many bytes, valid until `close`."""

    @abstractmethod
    def address(self, buffer: Any) -> int:
        """Return a device buffer's address."""

    @abstractmethod
    def stream_handle(self) -> int:
        """Return the stream's handle."""

    @abstractmethod
    def to_device(self, buffer: Any, array: NDArray[Any]) -> None:
        """Copy a page-locked, contiguous array to the device, in the stream's order."""

    @abstractmethod
    def to_host(self, array: NDArray[Any], buffer: Any) -> None:
        """Copy from the device into a page-locked, contiguous array, in the stream's order."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the stream has done everything."""

    @abstractmethod
    def event(self) -> Any:
        """Return a new event for `record`."""

    @abstractmethod
    def record(self, event: Any) -> None:
        """Let the stream note the time when it comes here."""

    @abstractmethod
    def elapsed(self, start: Any, end: Any) -> float:
        """Return the milliseconds between two events that have passed."""

    @abstractmethod
    def begin_capture(self) -> None:
        """Begin to collect the stream's work in a graph instead of doing it."""

    @abstractmethod
    def end_capture(self) -> Any:
        """End the collection; return the graph, ready to be launched. The stream is usable again even on an error."""

    @abstractmethod
    def launch(self, graph: Any) -> None:
        """Run a graph in the stream."""

    @abstractmethod
    def free_graph(self, graph: Any) -> None:
        """Give a graph back."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Return the bytes of device memory that are free and that there are."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; further calls do nothing."""

    def capture(self, work: Callable[[], None]) -> Any:
        """Return a graph of what `work` puts into the stream."""
        self.begin_capture()
        try:
            work()
        except BaseException:
            with suppress(CudaError):
                self.free_graph(self.end_capture())  # a stream left in capture mode could not be used again
            raise
        return self.end_capture()


def no_gpu(reason: object) -> CudaError:
    """Return the error that says why there is no GPU to use."""
    text = " ".join(str(reason).split())
    return CudaError(f"no CUDA GPU can be used: {text}; an engine needs an NVIDIA GPU and its driver")


def check_number(device: int, count: int) -> None:
    """Refuse the number of a GPU that is not there."""
    if not 0 <= device < count:
        raise no_gpu(f"device={device} was asked for, {count} found")
