"""Boxes from segmentation masks: PNG beside images, or NIfTI beside volumes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from meddet_yolo.data.convert.pixels import open_picture
from meddet_yolo.data.convert.records import Collection, Item, NamedBox
from meddet_yolo.imaging.limits import MAX_PIXELS
from meddet_yolo.imaging.nifti import is_nifti, read_nifti
from meddet_yolo.imaging.volumes import reason_of, stem_of

__all__ = ["MASK_FOLDERS", "is_mask_name", "mask_boxes", "pair_masks", "read_masks"]

MASK_FOLDERS = (
    "masks",
    "mask",
    "segmentations",
    "segmentation",
    "seg",
    "labelsTr",
    "labelsTs",
    "annotations",
    "labels",
)
_MARK = re.compile(r"[-_. ]*(masks?|seg(mentation)?s?|labels?|gt|dseg)$", re.IGNORECASE)
_MOST_LABELS = 1000
_CHANNEL = re.compile(r"_0000$")  # nnU-Net's first channel


def mask_boxes(
    mask: np.ndarray, names: Mapping[int, str] | None = None, *, min_area: int = 4, instances: bool = False
) -> tuple[list[NamedBox], int]:
    """Return the boxes around the connected components of each label.

    Args:
        mask: Label of every pixel, whole numbers of shape (H, W); 0 is background.
        names: Class name of each label; labels that are not in it are left out. By default every label is a class of
            its own, named by its number.
        min_area: Components of fewer pixels are left out.
        instances: Whether all pixels of a label are one object, connected or not.

    Returns:
        The boxes, by label and place, and how many components were too small.

    Raises:
        ValueError: If there are so many labels that it can be no mask.

    Examples:
        >>> mask = np.zeros((8, 8), int)
        >>> mask[1:4, 1:3] = mask[5:8, 5:8] = 1
        >>> boxes, small = mask_boxes(mask)
        >>> [box.xyxy for box in boxes]
        [(1.0, 1.0, 3.0, 4.0), (5.0, 5.0, 8.0, 8.0)]
    """
    boxes, small = [], 0
    values = [int(v) for v in np.unique(mask) if v > 0]
    if len(values) > _MOST_LABELS:
        raise ValueError(f"holds {len(values)} labels, expected at most {_MOST_LABELS}: is it an image, no mask?")
    for value in values:
        if names is not None and value not in names:
            continue
        region = (mask == value).astype(np.uint8)
        if instances:
            rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
            found = [(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, int(region.sum()))]
        else:
            _, _, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
            stats = stats[1:]  # the first is the background
            small += int((stats[:, 4] < min_area).sum())
            found = [(x, y, x + w, y + h, area) for x, y, w, h, area in stats[stats[:, 4] >= min_area]]
        for x0, y0, x1, y1, area in found:
            if area < min_area:
                small += 1
            else:
                name = str(value) if names is None else names[value]
                boxes.append(NamedBox(name, (float(x0), float(y0), float(x1), float(y1))))
    return boxes, small


def pair_masks(images: Sequence[Path], masks: Sequence[Path]) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """Match images and masks by their names, in which `_mask`, `_seg`, `_label` and the like do not count.

    Returns:
        Pairs; images without a mask; masks without an image.

    Examples:
        >>> pair_masks([Path("i/a.png"), Path("i/b.png")], [Path("m/a_mask.png")])
        ([(PosixPath('i/a.png'), PosixPath('m/a_mask.png'))], [PosixPath('i/b.png')], [])
    """
    by_name: dict[str, list[Path]] = {}
    for mask in masks:
        by_name.setdefault(_core(mask), []).append(mask)
    pairs, alone = [], []
    for image in images:
        found = by_name.get(_core(image), [])
        if len(found) > 1:  # the same name in several folders, as in train/ and val/
            found = [m for m in found if m.parent.name == image.parent.name] or found
        if found:
            pairs.append((image, found[0]))
        else:
            alone.append(image)
    used = {mask for _, mask in pairs}
    return pairs, alone, [mask for mask in masks if mask not in used]


def _core(path: Path) -> str:
    """Return the part of a file's name that an image and its mask share."""
    stem = _CHANNEL.sub("", stem_of(path))
    return (_MARK.sub("", stem) or stem).lower()


def is_mask_name(path: Path) -> bool:
    """Return whether a file's name says that it is a mask."""
    return bool(_MARK.search(stem_of(path)))


def read_masks(
    images: Sequence[Path],
    masks: Sequence[Path],
    root: Path,
    *,
    names: Mapping[int, str] | None = None,
    min_area: int = 4,
    instances: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Collection:
    """Read boxes from masks. An image without a mask is left out; one with an empty mask has no boxes.

    Of a NIfTI volume, the sagittal slices in which anything is labelled become images.

    Args:
        images: The images or volumes.
        masks: The masks.
        root: Folder that messages are relative to.
        names: See `mask_boxes`.
        min_area: See `mask_boxes`.
        instances: See `mask_boxes`.
        max_pixels: The most pixels that a picture may have; see `meddet_yolo.imaging.limits`.
    """
    collection = Collection(root)
    pairs, alone, orphans = pair_masks(images, masks)
    for path in alone:
        collection.leave_out(path, "no mask of that name")
    for path in orphans:
        collection.leave_out(path, "mask without an image of that name")
    specks, values = 0, set()
    for image, mask in pairs:
        try:
            for item, labels in _items(image, mask, max_pixels):
                item.split = collection.part_of(image)
                item.boxes, small = mask_boxes(labels, names, min_area=min_area, instances=instances)
                specks += small
                values |= {int(v) for v in np.unique(labels) if v > 0}
                if item.boxes or item.index is None:
                    collection.items.append(item)
        except ImportError:  # what is missing is missing for all
            raise
        except Exception as error:
            collection.leave_out(mask, str(error) if isinstance(error, (OSError, ValueError)) else reason_of(error))
    if specks:
        collection.notes.append(f"masks: {specks} components of fewer than min_area={min_area} pixels left out")
    if names is None:
        collection.names = [str(v) for v in sorted(values)]
    else:
        collection.names = list(dict.fromkeys(names.values()))
        if unnamed := sorted(values - names.keys()):
            collection.notes.append(f"masks: labels that classes= does not name left out: {_short(unnamed)}")
    return collection


def _short(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:10])) + (" ..." if len(values) > 10 else "")


def _items(image: Path, mask: Path, max_pixels: int) -> Iterator[tuple[Item, np.ndarray]]:
    """Yield the images of a file, each with its labels of shape (H, W)."""
    if not is_nifti(mask):
        labels = read_labels(mask, max_pixels)
        yield Item(image, declared=(labels.shape[1], labels.shape[0])), labels
        return
    if not is_nifti(image):
        raise ValueError(f"a NIfTI mask, but {image.name} is no NIfTI volume")
    ours, theirs = read_nifti(mask, max_pixels), read_nifti(image, max_pixels)
    if ours.shape != theirs.shape:
        shapes = (" x ".join(map(str, volume.shape)) for volume in (ours, theirs))
        raise ValueError("shape {} differs from its image's {}".format(*shapes))
    if ours.located and theirs.located and not np.allclose(ours.affine, theirs.affine, atol=0.1):
        raise ValueError("lies elsewhere in the patient than its image (the affine matrices differ)")
    voxels = np.moveaxis(np.moveaxis(ours.voxels(), 0, ours.axis), theirs.axis, 0)  # in the image's order
    for index in range(len(voxels)):
        labels = _whole(voxels[index])
        if labels.any():
            yield Item(image, index=index), labels


def read_labels(mask: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the labels of a PNG mask, of shape (H, W); a palette's indices are its labels.

    Raises:
        ValueError: If it is damaged or in colour.
    """
    picture = open_picture(mask, max_pixels)
    mode, values = picture.mode, np.asarray(picture)
    if values.ndim == 3:
        colours = values[..., :3]
        if mode not in ("RGB", "RGBA", "LA") or (mode != "LA" and (colours != colours[..., :1]).any()):
            raise ValueError("is in colour; expected one channel whose values are the labels, or a palette")
        values = values[..., 0]
    labels = _whole(values)
    present = np.unique(labels)
    return (labels > 0).astype(np.int64) if present.tolist() in ([0, 255], [255]) else labels  # black and white


def _whole(values: np.ndarray) -> np.ndarray:
    """Return labels as whole numbers."""
    rounded = np.rint(values)
    if not np.array_equal(rounded, values):
        raise ValueError("holds values that are no whole numbers, which are no labels")
    if rounded.min(initial=0) < 0:
        raise ValueError(f"holds a negative label, {int(rounded.min())}")
    return rounded.astype(np.int64)
