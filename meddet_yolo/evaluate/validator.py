"""`MedDetValidator`: Ultralytics' detection validator on this package's data set."""

from __future__ import annotations

from typing import Any

from ultralytics.data.utils import get_split_fraction
from ultralytics.models.yolo.detect import DetectionValidator

from meddet_yolo.data.dataset import build_dataset

__all__ = ["MedDetValidator"]


class MedDetValidator(DetectionValidator):
    """Validate a detector as `DetectionValidator` does, on whatever images `MedDetDataset` can read.

    Its metrics have an attribute `skipped`: the DICOM and NIfTI files that could not be used, and why.
    """

    args: Any  # Ultralytics builds these without types
    data: dict[str, Any]
    metrics: Any

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        """Build the data set of a split."""
        fraction = get_split_fraction(self.args.fraction, self.args.split or "val")
        dataset = build_dataset(self.args, img_path, batch, self.data, mode=mode, stride=self.stride, fraction=fraction)
        self.metrics.skipped = dataset.skipped
        return dataset
