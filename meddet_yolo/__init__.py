"""MedDet: multi-teacher feature distillation of Ultralytics YOLO detectors with nmODE² heads.

Importing the package makes `YOLO("meddet-n.yaml")` work. The names below are imported when they are first used. Where
torch or ultralytics is missing, as in a container that only runs engines, `meddet_yolo.trt.runner` works alone.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from meddet_yolo import _moved

if TYPE_CHECKING:
    from meddet_yolo.model import MedDet
    from meddet_yolo.nn.blocks import NmODE2Block
    from meddet_yolo.nn.gfl import GFLDetect
    from meddet_yolo.nn.heads import NmODE2Detect
    from meddet_yolo.nn.nmode import NmODE2, NmODE2Activation, nmode2
    from meddet_yolo.registry import load_detector, register, resolve_model_yaml
    from meddet_yolo.train.trainer import DistillTrainer

__all__ = [
    "DistillTrainer",
    "GFLDetect",
    "MedDet",
    "NmODE2",
    "NmODE2Activation",
    "NmODE2Block",
    "NmODE2Detect",
    "__version__",
    "load_detector",
    "nmode2",
    "register",
    "resolve_model_yaml",
]

_HOME = {
    "DistillTrainer": "train.trainer",
    "GFLDetect": "nn.gfl",
    "MedDet": "model",
    "NmODE2": "nn.nmode",
    "NmODE2Activation": "nn.nmode",
    "NmODE2Block": "nn.blocks",
    "NmODE2Detect": "nn.heads",
    "load_detector": "registry",
    "nmode2": "nn.nmode",
    "register": "registry",
    "resolve_model_yaml": "registry",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("meddet-yolo")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


_moved.install()
try:
    import_module("meddet_yolo.registry").register()
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"torch", "ultralytics"}:
        raise
