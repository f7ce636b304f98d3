"""Boxes of images as all that judges a detector takes them: what is there (`Truth`), what was found (`Found`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Found", "Truth", "TruthSet", "align", "load_found", "save_found"]

_SCORE_SLACK = 1e-6  # a half-precision sigmoid's rounding


def _boxes(name: str, boxes: ArrayLike, classes: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return boxes (N, 4) and classes (N,) of an image, checked."""
    array = np.asarray(boxes, np.float64)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"image {name}: boxes have shape {array.shape}, expected (N, 4) as x1, y1, x2, y2 in pixels")
    numbers = np.asarray(classes)
    if numbers.shape != (len(array),):
        raise ValueError(f"image {name}: {len(array)} boxes but classes of shape {numbers.shape}, expected one a box")
    if not np.isfinite(array).all():
        raise ValueError(f"image {name}: a box has a coordinate that is no finite number: {_first_bad(array)}")
    if (array[:, 2:] < array[:, :2]).any():
        worst = array[(array[:, 2:] < array[:, :2]).any(1)][0].tolist()
        raise ValueError(f"image {name}: box {worst} ends before it begins, expected x1 <= x2 and y1 <= y2")
    whole = numbers.astype(np.int64)
    if len(numbers) and ((whole != numbers) | (whole < 0)).any():
        raise ValueError(f"image {name}: class {numbers[(whole != numbers) | (whole < 0)][0]} is no index of a class")
    return array, whole


def _first_bad(array: NDArray[np.float64]) -> list[float]:
    bad: list[float] = array[~np.isfinite(array).all(1)][0].tolist()
    return bad


@dataclass(frozen=True, eq=False)
class Truth:
    """The labelled boxes of one image.

    Args:
        name: The image's file name (with its folders where two images of a split are called alike).
        boxes: (N, 4) float64, x1, y1, x2, y2 in pixels.
        classes: (N,) int64, indices of the data set's class names.
        size: (height, width) of the image in pixels.
        patient: Whose image it is; None where that is unknown.
        spacing: (height, width) of a pixel in mm; None where that is unknown.
        path: The image's file, where there is one.

    Raises:
        ValueError: A box that is none, or classes that do not fit the boxes.

    Examples:
        >>> Truth("a.png", [[0, 0, 10, 20]], [1], (64, 64), patient="p1").boxes.dtype
        dtype('float64')
    """

    name: str
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    size: tuple[int, int]
    patient: str | None = None
    spacing: tuple[float, float] | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        """Check and convert the arrays."""
        boxes, classes = _boxes(self.name, self.boxes, self.classes)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class Found:
    """The boxes that a detector found in one image.

    Args:
        name: The image's file name, as in its `Truth`.
        boxes: (N, 4) float64, x1, y1, x2, y2 in pixels.
        classes: (N,) int64, indices of the data set's class names.
        scores: (N,) float64, confidences in [0, 1].

    Raises:
        ValueError: A box that is none, a score outside [0, 1] or none at all, or arrays of different lengths.

    Examples:
        >>> found = Found("a.png", [[0, 0, 10, 20], [5, 5, 9, 9]], [1, 0], [0.9, 0.2])
        >>> len(found), len(found.above(0.5))
        (2, 1)
        >>> Found("a.png", [[0, 0, 1, 1]], [0], [float("nan")])
        Traceback (most recent call last):
        ...
        ValueError: image a.png: score nan, expected a number in [0, 1]
    """

    name: str
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check and convert the arrays."""
        boxes, classes = _boxes(self.name, self.boxes, self.classes)
        scores = np.asarray(self.scores, np.float64)
        if scores.shape != (len(boxes),):
            raise ValueError(f"image {self.name}: {len(boxes)} boxes but scores of shape {scores.shape}")
        sound = (scores >= -_SCORE_SLACK) & (scores <= 1 + _SCORE_SLACK)  # false for NaN
        if not sound.all():
            raise ValueError(f"image {self.name}: score {scores[~sound][0]:g}, expected a number in [0, 1]")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "scores", np.clip(scores, 0.0, 1.0))

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.boxes)

    def above(self, threshold: float) -> Found:
        """Return the boxes with a score of at least `threshold`."""
        keep = self.scores >= threshold
        return Found(self.name, self.boxes[keep], self.classes[keep], self.scores[keep])


@dataclass(frozen=True, eq=False)
class TruthSet:
    """The labelled images of one part of a data set.

    Args:
        images: The images, each name once.
        names: Class names by index.
        source: Where they come from, for messages.
        notes: What a reader of results should know, for example why patients are unknown.

    Raises:
        ValueError: No image, two of one name, or a class without a name.
    """

    images: tuple[Truth, ...]
    names: tuple[str, ...]
    source: str = "the ground truth"
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check that images and classes can be told apart."""
        if not self.images:
            raise ValueError(f"{self.source} has no images")
        seen: set[str] = set()
        for image in self.images:
            if image.name in seen:
                raise ValueError(f"{self.source} has two images called {image.name}")
            seen.add(image.name)
            if len(image) and image.classes.max() >= len(self.names):
                raise ValueError(
                    f"{self.source}: {image.name} has class {image.classes.max()}, expected 0 to {len(self.names) - 1}"
                )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def patients(self) -> list[str] | None:
        """The patient of every image; None where that of any image is unknown."""
        known = [image.patient for image in self.images if image.patient is not None]
        return known if len(known) == len(self.images) else None

    def subset(self, keep: Sequence[bool]) -> TruthSet:
        """Return the images for which `keep` is true."""
        images = tuple(image for image, kept in zip(self.images, keep, strict=True) if kept)
        return TruthSet(images, self.names, self.source, self.notes)


def align(found: Iterable[Found], truth: TruthSet, source: str = "the detections") -> list[Found]:
    """Put detections in the order of the images; images of which there are none get an empty `Found`.

    Names are compared as they are, then by file name alone, then without suffix, so that the detections of another
    program, which may know images by stem, are found.

    Args:
        found: Detections, each image at most once.
        truth: The images.
        source: Where the detections come from, for messages.

    Raises:
        ValueError: Detections of an image that is not there, of one twice, or of a class that has no name.

    Examples:
        >>> truth = TruthSet((Truth("v/a.png", [], [], (8, 8)), Truth("v/b.png", [], [], (8, 8))), ("disc",))
        >>> [len(f) for f in align([Found("b", [[0, 0, 4, 4]], [0], [0.5])], truth)]
        [0, 1]
    """
    index = _index([image.name for image in truth.images])
    placed: dict[int, Found] = {}
    unknown: list[str] = []
    for item in found:
        place = next((index[key] for key in _keys(item.name) if index.get(key) is not None), None)
        if place is None:
            unknown.append(item.name)
            continue
        if place in placed:
            raise ValueError(f"{source} has two entries for image {truth.images[place].name}")
        if len(item) and item.classes.max() >= len(truth.names):
            raise ValueError(
                f"{source} has class {item.classes.max()} in image {item.name}, but {truth.source} has the "
                f"{len(truth.names)} classes {', '.join(truth.names)}: give detections of the same class list"
            )
        placed[place] = Found(truth.images[place].name, item.boxes, item.classes, item.scores)
    if unknown:
        raise ValueError(
            f"{source} has detections of {len(unknown)} images that {truth.source} lacks, for example {unknown[0]}: "
            "give the split that they were made on"
        )
    return [placed.get(i) or _nothing(image.name) for i, image in enumerate(truth.images)]


def _nothing(name: str) -> Found:
    return Found(name, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))


def _keys(name: str) -> tuple[str, str, str]:
    """Return what an image may be known by, the most exact first."""
    path = Path(name.replace("\\", "/"))
    return path.as_posix(), path.name, path.stem


def _index(names: Sequence[str]) -> dict[str, int | None]:
    """Return the place of every name by each of its keys; None where a key is of several images."""
    index: dict[str, int | None] = {}
    for depth in range(3):
        of_depth: dict[str, int | None] = {}
        for place, name in enumerate(names):
            key = _keys(name)[depth]
            of_depth[key] = None if key in of_depth else place
        index = {**of_depth, **index}  # a more exact key wins
    return index


def save_found(path: str | Path, found: Sequence[Found]) -> Path:
    """Write detections to a compressed `.npz` file, scores and boxes as float64.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_found(f"{folder}/found.npz", [Found("a.png", [[0, 0, 4, 4]], [0], [0.5])])
        ...     load_found(file)[0].scores.tolist()
        [0.5]
    """
    path = Path(path)
    counts = np.array([len(f) for f in found], np.int64)
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array([f.name for f in found], np.str_),
            counts=counts,
            boxes=np.concatenate([f.boxes for f in found]) if len(found) else np.zeros((0, 4)),
            classes=np.concatenate([f.classes for f in found]) if len(found) else np.zeros(0, np.int64),
            scores=np.concatenate([f.scores for f in found]) if len(found) else np.zeros(0),
        )
    return path


def load_found(path: str | Path) -> list[Found]:
    """Read what `save_found` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none of `save_found`'s.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            names, counts = data["names"].tolist(), data["counts"]
            boxes, classes, scores = data["boxes"], data["classes"], data["scores"]
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, numpy and the operating system each have their own
        raise ValueError(f"{path} is no file of detections, or damaged: make it anew") from error
    ends = np.cumsum(counts)
    starts = ends - counts
    return [Found(name, boxes[a:b], classes[a:b], scores[a:b]) for name, a, b in zip(names, starts, ends, strict=True)]
