"""What a detector found on the images that were held out from it: taken from its validation, kept in a small file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ultralytics.utils import ops

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.validator import MedDetValidator

__all__ = ["CollectingValidator", "SeenImage", "load_predictions", "save_predictions"]


class SeenImage(NamedTuple):
    """Boxes of one image, in pixels of the image as it is in its file.

    Attributes:
        detected: Of shape (N, 6): x1, y1, x2, y2, confidence and class.
        true: Of shape (M, 5): x1, y1, x2, y2 and class.
        size: (height, width) of the image.
    """

    detected: NDArray[np.float32]
    true: NDArray[np.float32]
    size: tuple[int, int]


class CollectingValidator(MedDetValidator):
    """Validate as `MedDetValidator` does and keep every image's boxes.

    Attributes:
        images_seen: The images by their paths.
    """

    images_seen: dict[str, SeenImage]

    def init_metrics(self, model: Any) -> None:
        """Begin anew."""
        super().init_metrics(model)
        self.images_seen = {}

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
            height, width = image["ori_shape"]
            self.images_seen[str(image["im_file"])] = SeenImage(detected, boxes, (int(height), int(width)))


def save_predictions(file: Path, seen: Mapping[str, SeenImage], patients: Mapping[str, str]) -> None:
    """Write the boxes of images with their patients, whole or not at all.

    Args:
        file: The file, `.npz`.
        seen: As `CollectingValidator` has it.
        patients: Patient of every image.

    Raises:
        KeyError: If the patient of an image is not known.
    """
    images = sorted(seen)
    detected = [seen[image].detected for image in images]
    true = [seen[image].true for image in images]
    unfinished = file.with_name(f"{file.stem}.part.npz")
    np.savez_compressed(
        unfinished,
        images=np.array(images, dtype=str),
        patients=np.array([patients[image] for image in images], dtype=str),
        sizes=np.array([seen[image].size for image in images], np.int32).reshape(-1, 2),
        detected=np.concatenate([np.zeros((0, 6), np.float32), *detected]),
        detected_counts=np.array([len(d) for d in detected], np.int64),
        true=np.concatenate([np.zeros((0, 5), np.float32), *true]),
        true_counts=np.array([len(t) for t in true], np.int64),
    )
    os.replace(unfinished, file)


def load_predictions(file: Path) -> list[tuple[Found, Truth]]:
    """Read what `save_predictions` wrote: of every image what was found and what is there, by the image's path."""
    with np.load(file, allow_pickle=False) as content:
        images, patients, sizes = content["images"].tolist(), content["patients"].tolist(), content["sizes"].tolist()
        detected = _parted(content["detected"], content["detected_counts"])
        true = _parted(content["true"], content["true_counts"])
    return [
        (
            Found(image, d[:, :4], d[:, 5].astype(np.int64), d[:, 4]),
            Truth(image, t[:, :4], t[:, 4].astype(np.int64), tuple(size), patient=patient),
        )
        for image, patient, size, d, t in zip(images, patients, sizes, detected, true, strict=True)
    ]


def _parted(rows: NDArray[np.float32], counts: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    """Return the rows of each image."""
    return np.split(rows.astype(np.float64), np.cumsum(counts)[:-1]) if len(counts) else []
