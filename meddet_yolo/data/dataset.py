"""`MedDetDataset`: Ultralytics' detection data set, read as this package reads images."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import get_split_fraction, img2label_paths
from ultralytics.utils import LOGGER, TQDM, USER_CONFIG_DIR, colorstr
from ultralytics.utils.patches import imread

from meddet_yolo.data.labels import label_problem
from meddet_yolo.data.mri_noise import MRINoise, MRINoiseConfig
from meddet_yolo.imaging.grey import checked_window
from meddet_yolo.imaging.limits import MAX_PIXELS, checked_max_pixels
from meddet_yolo.imaging.search import CACHE_SUFFIX, volume_files
from meddet_yolo.imaging.slice_cache import cache_slices
from meddet_yolo.imaging.volumes import Skipped, is_volume

__all__ = ["MedDetDataset", "build_checked_dataset", "build_dataset"]


class MedDetDataset(YOLODataset):
    """A YOLO detection data set, also of DICOM and NIfTI files; on ordinary images the same as the stock one.

    Takes the arguments of `ultralytics.data.dataset.YOLODataset`. DICOM and NIfTI files are decoded once to pictures
    (see `slice_cache`), which then are the data set's images; which slices, and by what window, the keys `slices`
    ("labelled", the default, "mid", "all" or a number), `window` ("header", the default, "percentile" or [centre,
    width]) and `max_pixels` (the most that a picture may have) of the data set's YAML say. In training, images get MRI
    noise as the options of `MRINoiseConfig` in `hyp` say: each image of a mosaic its own, after it has been brought to
    the input size.

    Attributes:
        degrade: What to do to every image as it is read, before it is resized: a function of an image of shape
            (H, W, C) that returns another of the same shape and type. None does nothing.
        skipped: DICOM and NIfTI files that could not be used, and why.
    """

    degrade: Callable[[np.ndarray], np.ndarray] | None = None
    fraction: float | int
    _noise: MRINoise | None = None
    skipped: Sequence[Skipped] = ()
    _slice_labels: Mapping[str, str] = {}

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Return the image files of a split; those of DICOM and NIfTI files are decoded pictures.

        Raises:
            FileNotFoundError: If there is no image.
            ValueError: If there are only DICOM or NIfTI files, and none can be used, or `slices` or `window` is wrong.
        """
        volumes = self.volumes(img_path)
        if not volumes:
            return list(super().get_img_files(img_path))
        found = cache_slices(
            volumes,
            label_folder=self.label_folder,
            fallback=Path(USER_CONFIG_DIR) / "slices",
            slices=self.data.get("slices", "labelled"),
            window=checked_window(self.data.get("window", "header")),
            max_pixels=checked_max_pixels(self.data.get("max_pixels", MAX_PIXELS)),
            progress=lambda results, total: TQDM(results, desc=f"{self.prefix}Decoding slices...", total=total),
        )
        self.report(found.skipped)
        self.skipped = found.skipped
        self._slice_labels = {str(picture): str(label) for picture, label in found.labels.items()}
        fraction, self.fraction = self.fraction, 1.0
        try:
            images = [f for f in super().get_img_files(img_path) if Path(f).parent.suffix != CACHE_SUFFIX]
        except FileNotFoundError:  # no ordinary image
            images = []
        self.fraction = fraction
        files = sorted([*images, *self._slice_labels])
        if not files:
            more = f" (and {len(found.skipped) - 1} more files)" if len(found.skipped) > 1 else ""
            raise ValueError(f"no image in {img_path} can be used: {found.skipped[0]}{more}")
        count = fraction if isinstance(fraction, int) else max(1, round(len(files) * fraction))
        return files[:count]

    def report(self, skipped: Sequence[Skipped]) -> None:
        """Say which DICOM and NIfTI files could not be used."""
        for item in skipped:
            LOGGER.warning(f"{self.prefix}skipped {item}")

    def volumes(self, img_path: str | list[str]) -> list[Path]:
        """Return the DICOM and NIfTI files of a split."""
        return [file for p in (img_path if isinstance(img_path, list) else [img_path]) for file in _volumes(p)]

    def label_folder(self, folder: Path) -> Path:
        """Return the folder of the label files for a folder of images; decoded slices are kept beside it."""
        return Path(img2label_paths([str(folder / "x.png")])[0]).parent

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        """Return the labels of a cache that fits the files and is whole, otherwise those that are read anew."""
        cache, exists = super()._load_or_scan_cache(cache_path, cache_hash)
        if exists and not _is_whole(cache, self.im_files):
            return self.cache_labels(cache_path), False
        return cache, exists

    def get_label_files(self) -> list[str]:
        """Return the label file of every image."""
        self.label_files = self.label_files_of(self.im_files)
        return self.label_files

    def label_files_of(self, images: Sequence[str]) -> list[str]:
        """Return the label files that belong to images of this data set."""
        stock = img2label_paths(images)
        return [self._slice_labels.get(image, label) for image, label in zip(images, stock, strict=True)]

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


def _is_whole(cache: Mapping[str, Any], images: Sequence[str]) -> bool:
    """Return whether a label cache holds what Ultralytics takes from one, and no other images than these."""
    known = set(images)
    try:
        for label in cache["labels"]:
            rows = len(label["cls"])
            if (label["cls"].shape, label["bboxes"].shape) != ((rows, 1), (rows, 4)) or label["im_file"] not in known:
                return False
            if len(label["shape"]) != 2 or not isinstance(label["segments"], list) or not label["normalized"]:
                return False
        return len(cache["results"]) == 5 and all(isinstance(text, str) for text in cache["msgs"])
    except (AttributeError, KeyError, TypeError):
        return False


def _volumes(path: str) -> list[Path]:
    """Return the DICOM and NIfTI files of a folder or list; what does not exist is left to Ultralytics to refuse."""
    source = Path(path)
    if source.is_dir():
        return volume_files(source)
    if not source.is_file():
        return []
    lines = source.read_text(encoding="utf-8-sig").split("\n")  # as Ultralytics reads it: `./` is the list's folder
    listed = (source.parent / line if line.startswith("./") else Path(line) for line in map(str.strip, lines) if line)
    return [file for file in listed if is_volume(file)]


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
    kind: type[MedDetDataset] = MedDetDataset,
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
        kind: Class of the data set.
    """
    train = mode == "train"
    if data.get("complete"):
        fraction = 1.0  # limited already when it was downloaded
    elif fraction is None:
        fraction = get_split_fraction(cfg.fraction, "train" if train else cfg.split)
    return kind(
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


def build_checked_dataset(
    args: Any, path: str, batch: int | None, data: dict[str, Any], *, mode: str, stride: int
) -> MedDetDataset:
    """Build the data set of a split to train or validate with; what the stock one only warns of stops the run.

    Args:
        args: The run's arguments.
        path: Where the images of the split are.
        batch: Batch size, for rectangular batches.
        data: The data set's description, as Ultralytics resolves it.
        mode: "train" or "val".
        stride: Largest stride of the model.

    Raises:
        ValueError: If a label row is out of range, no image is valid, or the training split has no box at all.
    """
    try:
        dataset = build_dataset(args, path, batch, data, mode=mode, rect=mode == "val", stride=stride)
    except RuntimeError as error:  # several lines, one for each image
        reasons = re.findall(r"(\S+): ignoring corrupt image/label: (.*)", str(error))
        if not reasons:
            raise
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise ValueError(f"No valid images in {path}: {reasons[0][0]}: {reasons[0][1]}{more}") from error
    kept = set(dataset.label_files_of(dataset.im_files))
    dropped = [file for file in dataset.label_files if file not in kept]
    problem = label_problem(dropped, len(data["names"]))
    if problem:
        raise ValueError(f"Label out of range: {problem}; correct the labels or `names` in {args.data}")
    if mode == "train" and not any(len(label["cls"]) for label in dataset.labels):
        raise ValueError(f"No boxes in {path}: every label file is empty or missing; nothing can be learnt")
    return dataset
