"""What a detector found on the images that were held out from it: taken from its validation, kept in a small file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ultralytics.utils import ops

from meddet_yolo.evaluate.validator import MedDetValidator

__all__ = ["CollectingValidator", "ImageBoxes", "load_predictions", "save_predictions"]


@dataclass(frozen=True)
class ImageBoxes:
    """Boxes of one image, detected and true, in pixels of the image as it is in its file.

    Attributes:
        image: Path of the image.
        patient: Whose it is.
        boxes: Detected boxes of shape (N, 4), x1, y1, x2, y2.
        confidences: Of shape (N,), in [0, 1].
        classes: Of shape (N,).
        true_boxes: Of shape (M, 4).
        true_classes: Of shape (M,).
    """

    image: str
    patient: str
    boxes: NDArray[np.float32]
    confidences: NDArray[np.float32]
    classes: NDArray[np.int64]
    true_boxes: NDArray[np.float32]
    true_classes: NDArray[np.int64]


class CollectingValidator(MedDetValidator):
    """Validate as `MedDetValidator` does and keep every image's boxes.

    Attributes:
        found: By the image's path: detected boxes (N, 6) with confidence and class, true boxes (M, 5) with class.
    """

    found: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]

    def init_metrics(self, model: Any) -> None:
        """Begin anew."""
        super().init_metrics(model)
        self.found = {}

    def update_metrics(self, preds: list[dict[str, Any]], batch: dict[str, Any]) -> None:
        """Update the metrics and keep the boxes of a batch."""
        super().update_metrics(preds, batch)
        for index, pred in enumerate(preds):
            image = self._prepare_batch(index, batch)
            scaled = self.scale_preds(self._prepare_pred(pred), image)
            detected = np.concatenate(
                [
                    scaled["bboxes"].cpu().numpy().reshape(-1, 4),
                    scaled["conf"].cpu().numpy().reshape(-1, 1),
                    scaled["cls"].cpu().numpy().reshape(-1, 1),
                ],
                1,
            ).astype(np.float32)
            true = image["bboxes"].clone()
            if len(true):
                true = ops.scale_boxes(image["imgsz"], true, image["ori_shape"], ratio_pad=image["ratio_pad"])
            labels = image["cls"].cpu().numpy().reshape(-1, 1)
            boxes = np.concatenate([true.cpu().numpy().reshape(-1, 4), labels], 1).astype(np.float32)
            self.found[str(image["im_file"])] = (detected, boxes)


def save_predictions(
    file: Path,
    found: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    patients: Mapping[str, str],
) -> None:
    """Write the boxes of images with their patients, whole or not at all.

    Args:
        file: The file, `.npz`.
        found: As `CollectingValidator` has it.
        patients: Patient of every image.

    Raises:
        KeyError: If the patient of an image is not known.
    """
    images = sorted(found)
    detected = [found[image][0] for image in images]
    true = [found[image][1] for image in images]
    unfinished = file.with_name(f"{file.stem}.part.npz")
    np.savez_compressed(
        unfinished,
        images=np.array(images, dtype=str),
        patients=np.array([patients[image] for image in images], dtype=str),
        detected=np.concatenate([np.zeros((0, 6), np.float32), *detected]).astype(np.float32),
        detected_counts=np.array([len(d) for d in detected], np.int32),
        true=np.concatenate([np.zeros((0, 5), np.float32), *true]).astype(np.float32),
        true_counts=np.array([len(t) for t in true], np.int32),
    )
    os.replace(unfinished, file)


def load_predictions(file: Path) -> list[ImageBoxes]:
    """Read what `save_predictions` wrote."""
    with np.load(file, allow_pickle=False) as content:
        images, patients = content["images"], content["patients"]
        detected = np.split(content["detected"], np.cumsum(content["detected_counts"])[:-1])
        true = np.split(content["true"], np.cumsum(content["true_counts"])[:-1])
    return [
        ImageBoxes(
            image=str(image),
            patient=str(patient),
            boxes=d[:, :4],
            confidences=d[:, 4],
            classes=d[:, 5].astype(np.int64),
            true_boxes=t[:, :4],
            true_classes=t[:, 4].astype(np.int64),
        )
        for image, patient, d, t in zip(images, patients, detected, true, strict=True)
    ]
