"""What a detector found on the images that were held out from it, kept in a small file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.validator import SeenImage

__all__ = ["load_predictions", "save_predictions"]


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
    found = [seen[image].found for image in images]
    true = [seen[image].true for image in images]
    unfinished = file.with_name(f"{file.stem}.part.npz")
    np.savez_compressed(
        unfinished,
        images=np.array(images, dtype=str),
        patients=np.array([patients[image] for image in images], dtype=str),
        sizes=np.array([t.size for t in true], np.int32).reshape(-1, 2),
        detected=_joined([(f.boxes, f.scores, f.classes) for f in found], 6),
        detected_counts=np.array([len(f) for f in found], np.int64),
        true=_joined([(t.boxes, t.classes) for t in true], 5),
        true_counts=np.array([len(t.boxes) for t in true], np.int64),
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


def _joined(images: Iterable[tuple[NDArray[Any], ...]], columns: int) -> NDArray[np.float32]:
    """Return the boxes of all images below each other, each with what is known of it beside it."""
    return np.concatenate(
        [np.zeros((0, columns), np.float32), *(np.column_stack(parts) for parts in images)], dtype=np.float32
    )


def _parted(rows: NDArray[np.float32], counts: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    """Return the rows of each image."""
    return np.split(rows.astype(np.float64), np.cumsum(counts)[:-1]) if len(counts) else []
