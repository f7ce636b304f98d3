"""What `MedDet.export` and `meddet export` do: from the keys that were given to a file that has passed its gate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddet_yolo.export.calibration import calibration_images as calibration_images  # these three were here once
from meddet_yolo.export.calibration import images_for
from meddet_yolo.export.formats import FORMATS as FORMATS
from meddet_yolo.export.formats import Format
from meddet_yolo.export.request import EXPORT_KEYS as EXPORT_KEYS
from meddet_yolo.export.request import gpu_number, read_request

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = ["export", "on_gpu"]


def export(
    model: Model,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    calibration_images: int | None = None,
    device: Any = None,
    out: str | Path | None = None,
    **options: Any,
) -> str:
    """Export a detector as an engine, ONNX or OpenVINO model behind the parity gate.

    Args:
        model: The loaded detector.
        data: Data set (YAML, or the name of a shipped one) whose images are compared and calibrated with.
        split: Its part, "train" by default.
        calibration_images: How many images to calibrate with, 256 by default.
        device: The GPU that an engine is built on.
        out: Where to write; beside the checkpoint by default.
        **options: `format` and the fields of `ExportRequest`, as `read_request` takes them.

    Returns:
        The path of what was written.

    Raises:
        ValueError: If keys do not fit the format or one another.
        ParityError: If the export differs from the model.
    """
    form, request = read_request(options)
    if form.on_gpu:
        gpu_number(device)  # refused before anything is read
    if request.imgsz is None:
        request = replace(request, imgsz=_trained_size(model))
    request = replace(request, images=images_for(model, request, data, split=split, count=calibration_images))
    with _loud(), on_gpu(device) if form.on_gpu else nullcontext():
        path = form.export(model, out, request)
    _report(path, form)
    return str(path)


def _trained_size(model: Model) -> Any:
    arguments = getattr(model.model, "args", None)
    return (arguments.get("imgsz") if isinstance(arguments, dict) else None) or 640


@contextmanager
def on_gpu(device: Any) -> Iterator[None]:
    """Make the chosen GPU the current one, on which TensorRT builds; nothing where none is chosen or there is none.

    Raises:
        ValueError: If there is no GPU of that number.
    """
    import torch

    number = gpu_number(device)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number is None or count == 0:
        yield
        return
    if number >= count:
        raise ValueError(f"device={device}: no such GPU; this machine has {count}, numbered from 0")
    with torch.cuda.device(number):
        torch.zeros(1, device="cuda")  # TensorRT uses the context that PyTorch makes
        yield


@contextmanager
def _loud() -> Iterator[None]:
    """Show the builder's messages as Ultralytics shows its own."""
    from ultralytics.utils import LOGGER

    ours, stages = (logging.getLogger(name) for name in ("meddet_yolo.trt", "meddet_yolo.trt.stages"))
    handlers, level, propagate = ours.handlers[:], ours.level, ours.propagate
    ours.handlers, ours.propagate = LOGGER.handlers[:], False
    ours.setLevel(logging.WARNING)
    stages.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.handlers, ours.propagate = handlers, propagate
        ours.setLevel(level)
        stages.setLevel(logging.NOTSET)


def _report(path: Path, form: Format) -> None:
    """Say what was written and how far it is from the original."""
    from ultralytics.utils import LOGGER

    for line in form.describe(path):
        LOGGER.info(line)
    for name, parity in form.facts(path)["meddet_parity"].items():
        LOGGER.info(f"parity {name}: boxes {parity['boxes']:.1e} of the image's side, scores {parity['scores']:.1e}")
    LOGGER.info(f"Results saved to {path.resolve()}")
