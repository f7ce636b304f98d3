"""An OpenVINO model behind the runner's interface, computed as its export was checked. No torch, no ultralytics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.trt.engine_file import read_sidecar
from meddet_yolo.trt.session import check_shape, input_limits

__all__ = ["OpenVinoSession", "default_precision", "inference_precision", "model_file"]


class OpenVinoSession:
    """An OpenVINO folder or an ONNX file in OpenVINO on a CPU; the interface of `EngineSession`.

    Args:
        path: An `*_openvino_model` folder, an `.xml` or an `.onnx` file.
        threads: CPU threads; 0 lets OpenVINO choose.
        precision: What to compute in: "f32" or "bf16"; by default what the sidecar says, else OpenVINO's choice.
        metadata: Names, task and head of the model; by default what stands beside it.

    Attributes:
        precision: What it computes in, as OpenVINO calls it.

    Raises:
        FileNotFoundError: If there is no such model.
        ImportError: If openvino is missing.
        ValueError: If it is no model that takes images.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 0,
        precision: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise ImportError("OpenVINO models need openvino: pip install openvino") from error
        self.path = Path(path)
        file = model_file(self.path)
        core = openvino.Core()
        try:
            model = core.read_model(str(file))
        except RuntimeError as error:
            raise ValueError(f"{path} is no model that OpenVINO can load: {error}") from error
        shape = model.input(0).partial_shape
        if len(model.inputs) != 1 or shape.rank.is_dynamic or len(shape) != 4:
            raise ValueError(f"{path} must have one input of images (B, C, H, W), got {[str(i) for i in model.inputs]}")
        self.input_shape = tuple(-1 if side.is_dynamic else int(side.get_length()) for side in shape)
        self.metadata = _metadata(file) if metadata is None else metadata
        self.limits = input_limits(self.input_shape, self.metadata)
        # One stream: the latency of a call is what counts.
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        wanted = precision or inference_precision(self.path)
        settings |= {"INFERENCE_PRECISION_HINT": wanted} if wanted else {}
        compiled = core.compile_model(model, "CPU", settings)
        self.precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        self._request: Any = compiled.create_infer_request()
        self._tensor = openvino.Tensor
        self._input = np.zeros((0,), np.float32)

    def buffer(self, shape: Sequence[int]) -> NDArray[Any]:
        """Return the input of a shape (B, C, H, W) to write a batch into.

        Raises:
            ValueError: If the model takes no such shape.
            RuntimeError: If the session is closed.
        """
        if self._request is None:
            raise RuntimeError(f"{self.path.name} is closed")
        shape = check_shape(self.path.name, self, shape)
        if self._input.shape != shape:
            self._input = np.zeros(shape, np.float32)
            self._request.set_input_tensor(self._tensor(self._input, shared_memory=True))
        return self._input

    def run(self, shape: Sequence[int]) -> list[NDArray[Any]]:
        """Run the batch that lies in `buffer(shape)`; the outputs stay valid until the next call."""
        self.buffer(shape)
        self._request.infer()
        return [np.asarray(self._request.get_output_tensor(k).data) for k in range(len(self._request.output_tensors))]

    def close(self) -> None:
        """Give the memory back."""
        self._request = None


def model_file(path: str | Path) -> Path:
    """Return the file of an OpenVINO model's folder, or the file itself.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = Path(path)
    found = sorted(path.glob("*.xml")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise FileNotFoundError(f"model {path}: {'no .xml file in this folder' if path.is_dir() else 'no such file'}")
    return found[0]


def inference_precision(path: str | Path) -> str | None:
    """Return what a model is to be computed in, as OpenVINO calls it; None leaves it to OpenVINO.

    An export of this package says what its parity gate has seen; one that is silent is from a time when that was always
    single precision, in which ONNX files are checked too. Whoever made another OpenVINO model has not said.
    """
    file = model_file(path)
    if file.suffix.lower() == ".onnx":
        return "f32"
    facts = read_sidecar(file.with_suffix(".bin"))
    if "meddet_precision" not in facts:
        return None
    return str(facts.get("meddet_inference_precision", "f32"))


def default_precision() -> str:
    """Return the precision in which OpenVINO computes on this CPU what it is told nothing of: "fp32" or "bf16"."""
    import openvino

    found = str(openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string())
    return {"f32": "fp32", "f16": "fp16"}.get(found, found)


def _metadata(file: Path) -> dict[str, Any]:
    """Return what Ultralytics' exporter wrote beside a model."""
    place = file.with_name("metadata.yaml")
    if file.suffix.lower() != ".xml" or not place.is_file():
        return {}
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ImportError(f"{place} is read with PyYAML: pip install pyyaml") from error
    content = yaml.safe_load(place.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
