"""An ONNX model in ONNX Runtime behind the runner's interface. No torch, no ultralytics."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.trt.session import check_shape, input_limits

__all__ = ["OnnxSession"]


class OnnxSession:
    """An ONNX model in ONNX Runtime; the interface of `EngineSession`."""

    def __init__(
        self, path: str | Path, *, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ImportError("ONNX models need onnxruntime: pip install onnxruntime") from error
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"model {path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # a dozen kinds of its own, without a common parent
            raise ValueError(f"{path} is no model that ONNX Runtime can load: {error}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise ValueError(f"{path} must have one input of images (B, C, H, W), got {[i.shape for i in inputs]}")
        self._input = inputs[0].name
        self.dtype = np.dtype(np.float16 if "float16" in inputs[0].type else np.float32)
        raw = self._session.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = {key: _literal(value) for key, value in raw.items()}
        self.input_shape = tuple(n if isinstance(n, int) else -1 for n in inputs[0].shape)
        self.limits = input_limits(self.input_shape, self.metadata)
        self._buffer = np.zeros((0,), self.dtype)
        self._closed = False

    def buffer(self, shape: Sequence[int]) -> NDArray[Any]:
        """Return the input of a shape (B, C, H, W) to write a batch into."""
        shape = check_shape(self.path.name, self, shape)
        if self._buffer.shape != shape:
            self._buffer = np.zeros(shape, self.dtype)
        return self._buffer

    def run(self, shape: Sequence[int]) -> list[NDArray[Any]]:
        """Run the batch that lies in `buffer(shape)`."""
        if self._closed:
            raise RuntimeError(f"{self.path.name} is closed")
        outputs: list[NDArray[Any]] = self._session.run(None, {self._input: self.buffer(shape)})
        return outputs

    def close(self) -> None:
        """Give the memory back."""
        self._closed = True
        self._session = None


def _literal(text: str) -> Any:
    """Return the value that a piece of ONNX metadata spells, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
