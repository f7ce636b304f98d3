"""What a runner needs of a network, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["Session", "check_shape", "input_limits"]

_LOWEST, _HIGHEST = (1, 1, 32, 32), (64, 64, 8192, 8192)  # of an input whose size a model leaves open


class Session(Protocol):
    """A network that runs: an engine, or a model in ONNX Runtime or OpenVINO.

    Attributes:
        metadata: What the exporter wrote: names, task, imgsz, stride, ...
        input_shape: (B, C, H, W), -1 where dynamic.
        limits: Smallest, optimal and largest input shape.
    """

    metadata: dict[str, Any]
    input_shape: tuple[int, ...]
    limits: tuple[tuple[int, ...], ...]

    def buffer(self, shape: Sequence[int]) -> NDArray[Any]:
        """Return the input of a shape to write a batch into."""

    def run(self, shape: Sequence[int]) -> list[NDArray[Any]]:
        """Run the batch in the buffer; the outputs stay valid until the next call."""

    def close(self) -> None:
        """Give everything back."""


def input_limits(shape: Sequence[int], metadata: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Return the smallest, the optimal and the largest input of a model that names no limits itself.

    Examples:
        >>> input_limits((-1, 3, 64, 64), {})
        ((1, 3, 64, 64), (1, 3, 64, 64), (64, 3, 64, 64))
    """
    size = metadata.get("imgsz") or (640, 640)
    best = (1, int(metadata.get("channels") or 3), *((size, size) if isinstance(size, int) else size))
    ranges = [
        (n, n, n) if n > 0 else (low, b, high) for n, b, low, high in zip(shape, best, _LOWEST, _HIGHEST, strict=True)
    ]
    return tuple(zip(*ranges, strict=True))


def check_shape(name: str, session: Session, shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape that a session takes.

    Raises:
        ValueError: If it takes none such.
    """
    shape, (low, _, high) = tuple(shape), session.limits
    if len(shape) != 4 or any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
        raise ValueError(f"{name} takes input shapes {session.input_shape}, got {shape}")
    return shape
