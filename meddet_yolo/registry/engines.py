"""Which back end runs an export inside Ultralytics, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["engine_backend", "openvino_backend"]


def engine_backend(stock: Any) -> type:
    """Return a class that stands for Ultralytics' back end of engines and chooses by a file's header.

    Ultralytics knows a back end by the file's suffix, and TensorRT only. Engines that TensorRT-RTX has built go to
    `RTXBackend`, all others to the stock one.

    Args:
        stock: The class that Ultralytics has for engines.
    """

    class EngineBackend:
        """Chooses the back end of an engine by its header."""

        _meddet = True

        def __new__(cls, weight: Any, *args: Any, **kwargs: Any) -> Any:
            from ultralytics.nn.backends.base import BaseBackend

            from meddet_yolo.registry.rtx_backend import RTXBackend
            from meddet_yolo.trt.engine_file import read_engine

            if Path(weight).is_file() and not Path(weight).stat().st_size:
                read_engine(weight)  # says what is wrong
            header = BaseBackend.read_metadata(weight)
            return (RTXBackend if header.get("meddet_runtime") == "rtx" else stock)(weight, *args, **kwargs)

    return EngineBackend


def openvino_backend(stock: Any) -> type:
    """Return Ultralytics' OpenVINO back end that compiles models of ours in the precision their parity was checked in.

    Left to itself OpenVINO computes in bfloat16 on CPUs that have it; so it goes on with models that others exported.

    Args:
        stock: The class that Ultralytics has for OpenVINO.
    """

    class OpenVINOBackend(stock):
        """The stock back end, with the precision of the export's sidecar."""

        _meddet = True
        _hint: str | None = None

        def load_model(self, weight: str | Path) -> None:
            """Load a model as the stock back end does."""
            from meddet_yolo.trt.openvino_session import inference_precision

            self._hint = inference_precision(weight) if Path(weight).exists() else None
            super().load_model(weight)

        @property
        def compile_model(self) -> Any:
            """The stock back end's function that compiles a model, with the precision among its settings."""
            return self._compile

        @compile_model.setter
        def compile_model(self, function: Any) -> None:
            # An NPU has no single precision: what it computes in is its own choice.
            if self._hint is not None and not function.keywords["device_name"].startswith("NPU"):
                function.keywords["config"]["INFERENCE_PRECISION_HINT"] = self._hint
            self._compile = function

    return OpenVINOBackend
