"""PyTorch and OpenVINO behind the runner's interface, so that every back end is timed by the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["OpenVinoSession", "TorchSession"]


class _StaticSession:
    """What sessions of one input shape share."""

    metadata: dict[str, Any]

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.input_shape: tuple[int, ...] = shape
        self.limits: tuple[tuple[int, ...], ...] = (shape, shape, shape)

    def _check(self, shape: Sequence[int]) -> None:
        if tuple(shape) != self.input_shape:
            raise ValueError(f"this session takes {self.input_shape}, got {tuple(shape)}")

    def close(self) -> None:
        """Nothing to give back beyond the object itself."""


class TorchSession(_StaticSession):
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
        super().__init__((batch, channels, *imgsz))
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

    def _record(self, number: int) -> None:
        if self._events:
            self._events[number].record()

    def times(self) -> dict[str, float]:
        """Return what the last run spent on the GPU, in milliseconds; empty on a CPU."""
        names = ("to_device", "compute", "to_host")
        pairs = zip(names, self._events, self._events[1:], strict=False)
        return {name: start.elapsed_time(end) for name, start, end in pairs}


class OpenVinoSession(_StaticSession):
    """An OpenVINO folder or an ONNX file of static shape in OpenVINO on a CPU, with float32 arithmetic.

    Args:
        path: An `*_openvino_model` folder, an `.xml` or an `.onnx` file.
        metadata: Names, task and head of the model.
        threads: CPU threads; 0 lets OpenVINO choose.

    Raises:
        ImportError: If openvino is missing.
        ValueError: If the model has no static shape.
    """

    def __init__(self, path: str | Path, metadata: dict[str, Any], threads: int = 0) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise ImportError("OpenVINO models need openvino: pip install openvino") from error
        file = next(Path(path).glob("*.xml")) if Path(path).is_dir() else Path(path)
        model = openvino.Core().read_model(str(file))
        if model.input(0).partial_shape.is_dynamic:
            raise ValueError(f"{path} has a dynamic shape: export it with dynamic=False to time it")
        super().__init__(tuple(model.input(0).shape))
        self.metadata = metadata
        # One stream and single precision: the latency of a call, by the arithmetic of the other CPU back ends.
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        self._input = np.zeros(self.input_shape, np.float32)
        self._request.set_input_tensor(openvino.Tensor(self._input, shared_memory=True))

    def buffer(self, shape: Sequence[int]) -> NDArray[Any]:
        """Return the input to write a batch into."""
        self._check(shape)
        return self._input

    def run(self, shape: Sequence[int]) -> list[NDArray[Any]]:
        """Run the batch in the buffer."""
        self._check(shape)
        self._request.infer()
        return [np.asarray(self._request.get_output_tensor(0).data)]
