"""PyTorch behind the runner's interface, so that every back end is timed by the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["TorchSession"]


class TorchSession:
    """A fused PyTorch detector on a CPU or a GPU.

    Args:
        model: Detection model; it is fused in place.
        imgsz: (H, W) of the input.
        batch: Images a run.
        device: As in `torch.device`.
        half: Whether to run in half precision.
    """

    def __init__(
        self, model: nn.Module, imgsz: tuple[int, int], batch: int = 1, device: str = "cpu", half: bool = False
    ) -> None:
        channels = int(getattr(model, "yaml", {}).get("channels", 3))
        self.input_shape: tuple[int, ...] = (batch, channels, *imgsz)
        self.limits: tuple[tuple[int, ...], ...] = (self.input_shape,) * 3
        self.device = torch.device(device)
        fused: Any = model.eval().to(self.device)
        fused = fused.fuse(verbose=False) if hasattr(fused, "fuse") else fused
        self._model: Any = fused.half() if half else fused.float()
        names = getattr(model, "names", {})
        self.metadata = {"task": "detect", "names": names, "imgsz": list(imgsz)}
        cuda = self.device.type == "cuda"
        self._input = torch.zeros(self.input_shape, dtype=torch.half if half else torch.float, pin_memory=cuda)
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(4)] if cuda else []

    def buffer(self, shape: Sequence[int]) -> NDArray[Any]:
        """Return the input to write a batch into."""
        self._check(shape)
        array: NDArray[Any] = self._input.numpy()
        return array

    def run(self, shape: Sequence[int]) -> list[NDArray[Any]]:
        """Run the batch in the buffer."""
        self._check(shape)
        with torch.inference_mode():
            self._record(0)
            images = self._input.to(self.device, non_blocking=True)
            self._record(1)
            output = self._model(images)
            output = output[0] if isinstance(output, (tuple, list)) else output
            self._record(2)
            result = output.cpu()
            self._record(3)
            if self._events:
                torch.cuda.synchronize(self.device)
        return [result.numpy()]

    def close(self) -> None:
        """Nothing to give back beyond the object itself."""

    def _check(self, shape: Sequence[int]) -> None:
        if tuple(shape) != self.input_shape:
            raise ValueError(f"this session takes {self.input_shape}, got {tuple(shape)}")

    def _record(self, number: int) -> None:
        if self._events:
            self._events[number].record()

    def times(self) -> dict[str, float]:
        """Return what the last run spent on the GPU, in milliseconds; empty on a CPU."""
        names = ("to_device", "compute", "to_host")
        pairs = zip(names, self._events, self._events[1:], strict=False)
        return {name: start.elapsed_time(end) for name, start, end in pairs}
