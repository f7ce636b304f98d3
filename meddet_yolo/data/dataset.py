"""`MedDetDataset`: Ultralytics' detection data set, read as this package reads images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import get_split_fraction
from ultralytics.utils import colorstr
from ultralytics.utils.patches import imread

from meddet_yolo.data.mri_noise import MRINoise, MRINoiseConfig

__all__ = ["MedDetDataset", "build_dataset"]


class MedDetDataset(YOLODataset):
    """A YOLO detection data set; on ordinary images the same as the stock one.

    Takes the arguments of `ultralytics.data.dataset.YOLODataset`. In training, images get MRI noise as the options of
    `MRINoiseConfig` in `hyp` say: each image of a mosaic its own, after it has been brought to the input size.

    Attributes:
        degrade: What to do to every image as it is read, before it is resized: a function of an image of shape
            (H, W, C) that returns another of the same shape and type. None does nothing.
    """

    degrade: Callable[[np.ndarray], np.ndarray] | None = None
    _noise: MRINoise | None = None

    def build_transforms(self, hyp: Any) -> Any:
        """Build the transforms and, for training, the MRI noise that comes before them."""
        config = MRINoiseConfig.from_options(vars(hyp)) if self.augment else MRINoiseConfig()
        self._noise = MRINoise(config) if config.mri_noise else None
        return super().build_transforms(hyp)

    def read_image(self, index: int) -> np.ndarray:
        """Return an image as it is in its file, uint8 of shape (H, W, C).

        Raises:
            FileNotFoundError: If it cannot be read.
        """
        image = imread(self.im_files[index], flags=self.cv2_flag)
        if image is None:
            raise FileNotFoundError(f"{self.im_files[index]} cannot be read as an image")
        return image if image.ndim == 3 else image[..., None]

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Return an image brought to the input size, its size before and its size now."""
        if self.degrade is None:
            loaded: tuple[np.ndarray, tuple[int, int], tuple[int, int]] = super().load_image(i, rect_mode, resize_short)
            return loaded
        image = self.degrade(self.read_image(i))
        height, width = image.shape[:2]
        ratio = self.imgsz / max(height, width)
        if ratio != 1:
            size = (min(math.ceil(width * ratio), self.imgsz), min(math.ceil(height * ratio), self.imgsz))
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
            image = image if image.ndim == 3 else image[..., None]
        return image, (height, width), image.shape[:2]

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Return an image with its labels; mixing augmentations fetch their further images here too."""
        label: dict[str, Any] = super().get_image_and_label(index)
        if self._noise is not None:
            label["img"] = self._noise(label["img"])
        return label


def build_dataset(
    cfg: Any,
    img_path: str | list[str],
    batch: int | None,
    data: dict[str, Any],
    *,
    mode: str,
    rect: bool = False,
    stride: int = 32,
    fraction: float | int | None = None,
) -> MedDetDataset:
    """Build the detection data set of a split with the settings that Ultralytics' own builder uses.

    Args:
        cfg: The run's arguments (`imgsz`, `cache`, `single_cls`, augmentation, ...).
        img_path: Folder or list file of the images, or several of them.
        batch: Images a batch, for rectangular batches.
        data: The checked contents of the data set's YAML.
        mode: "train" augments; anything else does not.
        rect: Whether batches are rectangular (also where `cfg.rect` says so).
        stride: The model's largest stride in pixels.
        fraction: Share (or number) of the images to use; by default what `cfg.fraction` says for this split.
    """
    train = mode == "train"
    if data.get("complete"):
        fraction = 1.0  # limited already when it was downloaded
    elif fraction is None:
        fraction = get_split_fraction(cfg.fraction, "train" if train else cfg.split)
    return MedDetDataset(
        img_path=img_path,
        imgsz=cfg.imgsz,
        batch_size=batch,
        augment=train,
        hyp=cfg,
        rect=cfg.rect or rect,
        cache=cfg.cache or None,
        single_cls=cfg.single_cls or False,
        stride=stride,
        pad=0.0 if train else 0.5,
        prefix=colorstr(f"{mode}: "),
        task=cfg.task,
        classes=cfg.classes,
        data=data,
        fraction=fraction,
    )
