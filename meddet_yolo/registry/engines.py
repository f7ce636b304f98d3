"""Which back end runs an `.engine` file inside Ultralytics."""

from __future__ import annotations

from typing import Any

__all__ = ["engine_backend"]


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

            header = BaseBackend.read_metadata(weight)
            return (RTXBackend if header.get("meddet_runtime") == "rtx" else stock)(weight, *args, **kwargs)

    return EngineBackend
