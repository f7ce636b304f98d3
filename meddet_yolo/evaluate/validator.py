"""`MedDetValidator`: Ultralytics' detection validator on this package's data set."""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from ultralytics.data.utils import get_split_fraction
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import ops

from meddet_yolo.data.dataset import build_dataset
from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.recalibration import announced, probabilities
from meddet_yolo.trt.recalibration import Recalibration

__all__ = ["BoxScores", "CollectingValidator", "MedDetValidator", "SeenImage", "box_scores"]


class BoxScores(TypedDict):
    """What reports keep of Ultralytics' validation, each in [0, 1].

    Attributes:
        map50_95: Mean average precision over IoU thresholds 0.50 to 0.95.
        map50: Mean average precision at IoU 0.50.
        recall: Mean recall over classes at the confidence with the best F1.
    """

    map50_95: float
    map50: float
    recall: float


def box_scores(metrics: Any) -> BoxScores:
    """Return the scores of a validation, given as the `DetMetrics` that `YOLO.val` returns."""
    box = metrics.box
    return {"map50_95": float(box.map), "map50": float(box.map50), "recall": float(box.mr)}


class MedDetValidator(DetectionValidator):
    """Validate a detector as `DetectionValidator` does, on whatever images `MedDetDataset` can read.

    Its metrics have an attribute `skipped`: the DICOM and NIfTI files that could not be used, and why.

    Where an exported model's sidecar holds a recalibration, confidences are probabilities; `conf` is not, so that the
    boxes stay the same.
    """

    args: Any  # Ultralytics builds these without types
    data: dict[str, Any]
    metrics: Any
    _function: Recalibration | None = None

    def init_metrics(self, model: Any) -> None:
        """Begin anew."""
        super().init_metrics(model)
        self._function = None if self.training else announced(self.args.model)

    def postprocess(self, preds: Any) -> list[dict[str, Any]]:
        """Return the boxes of a batch."""
        found: list[dict[str, Any]] = super().postprocess(preds)
        if self._function is not None:
            found = [{**one, "conf": probabilities(one["conf"], self._function)} for one in found]
        return found

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        """Build the data set of a split."""
        fraction = get_split_fraction(self.args.fraction, self.args.split or "val")
        dataset = build_dataset(self.args, img_path, batch, self.data, mode=mode, stride=self.stride, fraction=fraction)
        self.metrics.skipped = dataset.skipped
        return dataset


class SeenImage(NamedTuple):
    """What a model found in an image of a validation, and what is there, in pixels of the image file."""

    found: Found
    true: Truth


class CollectingValidator(MedDetValidator):
    """Validate as `MedDetValidator` does and keep every image's boxes, with the model's own confidences.

    Attributes:
        images_seen: The images by their paths.
    """

    images_seen: dict[str, SeenImage]
    names: Any

    def init_metrics(self, model: Any) -> None:
        """Begin anew."""
        super().init_metrics(model)
        self._function, self.images_seen = None, {}

    def update_metrics(self, preds: list[dict[str, Any]], batch: dict[str, Any]) -> None:
        """Update the metrics and keep the boxes of a batch."""
        super().update_metrics(preds, batch)
        for index, pred in enumerate(preds):
            image = self._prepare_batch(index, batch)
            scaled = self.scale_preds(self._prepare_pred(pred), image)
            true = image["bboxes"].clone()
            if len(true):
                true = ops.scale_boxes(image["imgsz"], true, image["ori_shape"], ratio_pad=image["ratio_pad"])
            name = str(image["im_file"])
            height, width = image["ori_shape"]
            self.images_seen[name] = SeenImage(
                Found(name, _ordered(scaled["bboxes"]), scaled["cls"].cpu().numpy(), scaled["conf"].cpu().numpy()),
                Truth(name, _ordered(true), image["cls"].cpu().numpy().reshape(-1), (int(height), int(width))),
            )


def _ordered(boxes: Any) -> NDArray[np.float64]:
    """Return boxes (N, 4) as an array; of a tiny one, the corners may have been rounded past each other."""
    corners = boxes.cpu().numpy().astype(np.float64).reshape(-1, 4)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2])
    return corners
