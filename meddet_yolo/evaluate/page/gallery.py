"""The pictures of the page: worst misses, worst false alarms and random cases, with all boxes, small enough to send."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.page.operating import steps_reached
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.evaluate.report import read_image

__all__ = ["KINDS", "Case", "as_jpeg", "choose_cases", "gallery"]

KINDS = ("miss", "alarm", "random")
_HIT, _ALARM, _NEITHER = 1, 0, 2
_SIZES = ((640, 85), (512, 80), (448, 75), (384, 70), (320, 65), (256, 60), (192, 50), (128, 40), (96, 30))
"""Longest side in pixels and JPEG quality, tried until a picture is small enough."""


@dataclass(frozen=True)
class Case:
    """An image with why it is shown.

    Attributes:
        image: Its place in the list of images.
        kind: One of `KINDS`.
        model: Of which model it is a miss or a false alarm; None for a random case.
    """

    image: int
    kind: str
    model: int | None


def choose_cases(pools: Sequence[Pool], *, hit: str, iou: float, count: int = 60, seed: int = 0) -> list[Case]:
    """Choose a third of worst misses, a third of worst false alarms, shared by the models, and a third at random.

    A miss is the worse the lower the confidence at which a labelled box is found, the worst being one that is found at
    none; of equals, the image with more of them comes first, then the greater box. A false alarm is the worse the more
    confident it is. Random cases are drawn from all images, so that they show how it usually is.

    Args:
        pools: The models' detections on the same images.
        hit: As in `Pool.matches`.
        iou: As in `Pool.matches`.
        count: Most cases.
        seed: Seed of the random ones.

    Returns:
        The cases, of each kind and model the worst first.
    """
    cases = []
    each = count // 3 // len(pools)
    for kind, order in (("miss", _misses), ("alarm", _alarms)):
        for number, pool in enumerate(pools):
            cases += [Case(image, kind, number) for image in order(pool, hit, iou)[:each]]
    images = len(pools[0])
    drawn = np.random.default_rng(seed).permutation(images)[: count // 3]
    return cases + [Case(image, "random", None) for image in drawn.tolist()]


def _misses(pool: Pool, hit: str, iou: float) -> list[int]:
    """Return the images with labelled boxes, the one with the worst miss first."""
    found = _found_at(pool, hit, iou)
    worst = np.full(len(pool), np.inf)
    np.minimum.at(worst, pool.truth_image, found)
    as_bad = found == worst[pool.truth_image]
    number = np.bincount(pool.truth_image[as_bad], minlength=len(pool))
    area = np.zeros(len(pool))
    sides = pool.truth_boxes[:, 2:] - pool.truth_boxes[:, :2]
    np.maximum.at(area, pool.truth_image[as_bad], sides[as_bad].prod(1))
    order = np.lexsort((np.arange(len(pool)), -area, -number, worst))
    return [int(i) for i in order if np.isfinite(worst[i])]


def _alarms(pool: Pool, hit: str, iou: float) -> list[int]:
    """Return the images with false alarms, the one with the most confident first."""
    images = pool.image[pool.matches(hit, iou)[1]]  # found boxes are sorted by score
    return list(dict.fromkeys(images.tolist()))


def _found_at(pool: Pool, hit: str, iou: float) -> NDArray[np.float64]:
    """Return the confidence at which each labelled box is found, -1 for one that never is."""
    match, _ = pool.matches(hit, iou)
    found = np.full(len(pool.truth_image), -1.0)
    found[match[match >= 0]] = pool.scores[match >= 0]
    return found


def gallery(
    pools: Sequence[Pool],
    cases: Sequence[Case],
    thresholds: NDArray[np.float64],
    names: Callable[[int], str],
    *,
    hit: str,
    iou: float,
    most: int = 6_500_000,
) -> dict[str, Any]:
    """Return the cases' pictures with labelled and found boxes, as plain values for the page.

    Args:
        pools: The models' detections on the same images.
        cases: The cases.
        thresholds: (T,) thresholds of the slider; boxes below all of them are left out.
        names: Returns the public name of an image.
        hit: As in `Pool.matches`.
        iou: As in `Pool.matches`.
        most: Most bytes of all pictures and boxes; pictures are made smaller until they fit.

    Returns:
        `cases` with picture, kind and model; `pictures` with name, size, source (empty where the file cannot be read),
        `truth` rows of x1, y1, x2, y2, class and for each model the steps at which it is found, and for each model
        `found` rows of x1, y1, x2, y2, class, steps, confidence and whether it is a hit (1), a false alarm (0) or
        counts for nothing (2).
    """
    images = list(dict.fromkeys(case.image for case in cases))
    place = {image: i for i, image in enumerate(images)}
    found_at = [steps_reached(thresholds, _found_at(pool, hit, iou)) for pool in pools]
    pictures = []
    for image in images:
        truth = pools[0].truth_list[image]
        there = np.flatnonzero(pools[0].truth_image == image)
        rows = [
            [*_rounded(box), int(cls), *(int(f[i]) for f in found_at)]
            for i, box, cls in zip(there, truth.boxes, truth.classes, strict=True)
        ]
        pictures.append(
            {
                "name": names(image),
                "width": truth.size[1],
                "height": truth.size[0],
                "truth": rows,
                "found": [_found_rows(pool, image, thresholds, hit, iou) for pool in pools],
            }
        )
    left = (most - len(json.dumps(pictures))) // max(1, len(pictures))
    for image, picture in zip(images, pictures, strict=True):
        picture["source"] = _source(pools[0].truth_list[image].path, left)
    return {
        "pictures": pictures,
        "cases": [{"picture": place[c.image], "kind": c.kind, "model": c.model} for c in cases],
    }


def _found_rows(
    pool: Pool, image: int, thresholds: NDArray[np.float64], hit: str, iou: float
) -> list[list[float | int]]:
    match, alarm = pool.matches(hit, iou)
    own = np.flatnonzero((pool.image == image) & (pool.scores >= thresholds[0]))
    steps = steps_reached(thresholds, pool.scores[own])
    return [
        [*_rounded(pool.boxes[i]), int(pool.classes[i]), int(step), round(float(pool.scores[i]), 3),
         _HIT if match[i] >= 0 else _ALARM if alarm[i] else _NEITHER]
        for i, step in zip(own, steps, strict=True)
    ]  # fmt: skip


def _rounded(box: NDArray[np.float64]) -> list[float]:
    return [round(v, 1) for v in box.tolist()]


def _source(path: Path | None, most: int) -> str:
    """Return a picture as data URI; empty where there is none."""
    try:
        data = as_jpeg(read_image(path), most * 3 // 4 - 64) if path is not None else b""
    except (OSError, ValueError):
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}" if data else ""


def as_jpeg(image: NDArray[np.uint8], most: int) -> bytes:
    """Return an image as a JPEG without metadata, grey where it is grey, of at most so many bytes.

    Args:
        image: BGR pixels, uint8 of shape (H, W, 3).
        most: Most bytes. The picture is made smaller, and coarser, until it fits.

    Raises:
        ValueError: Not even the smallest fits.

    Examples:
        >>> picture = as_jpeg(np.zeros((64, 48, 3), np.uint8), 10_000)
        >>> picture[:2].hex(), len(picture) < 10_000
        ('ffd8', True)
    """
    if (image[..., :1] == image).all():
        image = image[..., 0]
    for side, quality in _SIZES:
        scale = min(1.0, side / max(image.shape[:2]))
        size = tuple(max(1, round(n * scale)) for n in image.shape[1::-1])
        small = image if scale == 1.0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= most:
            return bytes(data)
    raise ValueError(f"a picture of at most {most} bytes is asked for, expected {len(data)} or more")
