"""`ExportRequest`: everything that an export can be asked for, checked once, whatever the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from meddet_yolo.trt.original import as_pair, check_heads
from meddet_yolo.trt.quantize import CALIBRATION_METHODS

__all__ = ["ENGINE_KEYS", "PASSED_ON", "ExportRequest"]

Array = npt.NDArray[np.float32]
PASSED_ON = frozenset({"conf", "iou", "max_det", "agnostic_nms", "simplify"})


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What an export shall be; each format says which of it it takes.

    Attributes:
        precision: "fp32", "tf32", "fp16", "bf16", "int8" or "fp8"; each format has its own.
        imgsz: Input size in pixels, one number or (height, width); None is that of the training, else 640.
        batch: Batch size; the largest where `dynamic`.
        dynamic: Whether batch and size may change.
        end2end: Whether to export the head that needs no NMS.
        nms: Whether to put NMS into the graph.
        images: Images (C, H, W), float32 in [0, 1], to compare and calibrate with; None takes photographs that come
            with Ultralytics, which is not enough to calibrate.
        calibration: How activation ranges are found: "minmax", "entropy" or "percentile".
        opset: ONNX opset; None is the package's own choice.
        workspace: Limit of an engine build's scratch memory in GiB.
        min_batch: Smallest batch of a dynamic engine.
        min_imgsz: Smallest size of a dynamic engine; None is the model's stride.
        max_imgsz: Largest size of a dynamic engine; None is `imgsz`.
        compute_capability: GPU generations that TensorRT-RTX builds for, such as "8.6,8.9".
        timing_cache: File or folder for measured kernel times.
        version_compatible: Whether later versions of TensorRT shall load the engine.
        hardware_compatible: True, "ampere" or "same": which other GPUs shall load the engine.
        refit: Whether an engine's weights can be replaced later.
        strip: Whether to leave the weights out of an engine.
        strongly_typed: False lets TensorRT 10 choose types by precision flags.
        optimization_level: Of an engine build, 0 (fast) to 5.
        keep_onnx: Whether to keep the ONNX file that an engine was built from.
        options: Further arguments of Ultralytics' exporter: conf, iou, max_det, agnostic_nms, simplify.

    Raises:
        ValueError: If a value is out of range or two exclude each other.

    Examples:
        >>> ExportRequest(precision="fp16", batch=4).changed("batch", "dynamic")
        {'batch': 4}
        >>> ExportRequest(precision="fp32", batch=0)
        Traceback (most recent call last):
        ...
        ValueError: batch=0: expected a whole number of at least 1
    """

    precision: str
    imgsz: int | Sequence[int] | None = None
    batch: int = 1
    dynamic: bool = False
    end2end: bool = False
    nms: bool = False
    images: Sequence[Array] | None = field(default=None, compare=False, repr=False)
    calibration: str = "minmax"
    opset: int | None = None
    workspace: float | None = None
    min_batch: int = 1
    min_imgsz: int | Sequence[int] | None = None
    max_imgsz: int | Sequence[int] | None = None
    compute_capability: Any = None
    timing_cache: Any = None
    version_compatible: bool = False
    hardware_compatible: bool | str = False
    refit: bool = False
    strip: bool = False
    strongly_typed: bool = True
    optimization_level: int | None = None
    keep_onnx: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("batch", "min_batch"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{key}={value}: expected a whole number of at least 1")
        for key in ("imgsz", "min_imgsz", "max_imgsz"):
            value = getattr(self, key)
            if value is not None:
                try:
                    as_pair(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{key}={value} must be a number of pixels or (height, width)") from error
        check_heads(self.end2end, self.nms)
        if self.calibration not in CALIBRATION_METHODS:
            raise ValueError(
                f"calibration={self.calibration!r} is unknown: use one of {', '.join(CALIBRATION_METHODS)}"
            )
        if self.opset is not None and (isinstance(self.opset, bool) or not isinstance(self.opset, int)):
            raise ValueError(f"opset={self.opset}: expected a whole number")
        unknown = sorted(self.options.keys() - PASSED_ON)
        if unknown:
            raise ValueError(f"{unknown[0]}= has no meaning for this export")

    @property
    def quantized(self) -> bool:
        """Whether it is calibrated on images."""
        return self.precision in {"int8", "fp8"}

    def changed(self, *names: str) -> dict[str, Any]:
        """Return those of the named fields that are not at their defaults, as keyword arguments."""
        defaults = {f.name: f.default for f in fields(self)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    def common(self) -> dict[str, Any]:
        """Return what every format takes, as keyword arguments."""
        names = ("imgsz", "batch", "dynamic", "end2end", "nms", "images")
        return {**{name: getattr(self, name) for name in names}, "options": dict(self.options)}


# What only engines take; `workspace` is Ultralytics' own key, which other formats leave unread.
ENGINE_KEYS = frozenset(
    {
        "min_batch",
        "min_imgsz",
        "max_imgsz",
        "compute_capability",
        "timing_cache",
        "version_compatible",
        "hardware_compatible",
        "refit",
        "strip",
        "strongly_typed",
        "optimization_level",
        "keep_onnx",
    }
)
