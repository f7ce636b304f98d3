"""Images of a data set as a network sees them, to compare an export with and to calibrate it on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from meddet_yolo.data.shipped import find_data
from meddet_yolo.trt.original import GATE_IMAGES, channels_of, input_size
from meddet_yolo.trt.preprocess import preprocess

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

    from meddet_yolo.trt.request import ExportRequest

__all__ = ["CALIBRATION_IMAGES", "calibration_images", "images_for"]

CALIBRATION_IMAGES = 256


def images_for(
    model: Model,
    request: ExportRequest,
    data: str | Path | None,
    *,
    split: str | None = None,
    count: int | None = None,
) -> list[np.ndarray] | None:
    """Read the images that an export needs: all to calibrate with, or a few to compare with.

    Args:
        model: The loaded detector.
        request: What it shall become.
        data: The data set; None takes none.
        split: As in `calibration_images`.
        count: How many to calibrate with; None is `CALIBRATION_IMAGES`.

    Returns:
        The images, None without a data set.

    Raises:
        ValueError: If images are needed and there is no data set, or as `calibration_images` does.
    """
    if data is None:
        if request.quantized:
            raise ValueError(
                f"data= is missing: precision={request.precision} is calibrated on images of your application"
            )
        return None
    wanted = (CALIBRATION_IMAGES if count is None else int(count)) if request.quantized else GATE_IMAGES
    size = input_size(model, request.imgsz)
    return calibration_images(data, size, channels=channels_of(model), split=split, count=wanted)


def calibration_images(
    data: str | Path,
    imgsz: tuple[int, int],
    *,
    channels: int = 3,
    split: str | None = None,
    count: int = CALIBRATION_IMAGES,
) -> list[np.ndarray]:
    """Read images of a data set as a network sees them, DICOM and NIfTI included.

    Args:
        data: The data set's YAML, or the name of one that the package ships.
        imgsz: Input (height, width).
        channels: Channels of the detector's input.
        split: "train" by default, so that accuracy on "val" stays honest.
        count: How many, evenly spaced over the split.

    Returns:
        Images of shape (C, H, W), float32 in [0, 1].

    Raises:
        ValueError: If the split does not exist or the count is not positive.
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.data.utils import check_det_dataset

    from meddet_yolo.data.dataset import build_dataset

    if count < 1:
        raise ValueError(f"calibration_images={count} must be at least 1")
    data = find_data(data)
    found = check_det_dataset(str(data))
    chosen = split or "train"
    if not found.get(chosen):
        raise ValueError(f"split={chosen}: {data} has no such split")
    cfg = get_cfg(overrides={"task": "detect", "imgsz": max(imgsz), "data": str(data)})
    dataset = build_dataset(cfg, found[chosen], 1, found, mode="calibrate", fraction=1.0)
    picked = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    images = (dataset.read_image(int(k)) for k in picked)
    return [preprocess([image], imgsz, channels=channels)[0][0].astype(np.float32) for image in images]
