"""Detectors side by side: accuracy, size and time in one table, and their boxes in one picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import cv2
import numpy as np
from ultralytics import YOLO
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset, img2label_paths

from meddet_yolo.evaluate.info import measure_size
from meddet_yolo.evaluate.validator import box_scores

__all__ = [
    "Box",
    "ModelReport",
    "as_markdown",
    "as_text",
    "compare",
    "draw_grid",
    "labelled_boxes",
    "measure_latency",
    "predicted_boxes",
    "read_image",
    "split_images",
    "write_image",
    "write_json",
]


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """What is told of one detector.

    Attributes:
        name: How the reader knows it.
        parameters: Parameters of the fused model, the form that is deployed.
        gflops: 10^9 floating point operations of a forward pass at the compared image size, a multiply-add being two,
            as Ultralytics counts. (The MedDet paper counts a multiply-add once.)
        map50_95: Mean average precision over IoU thresholds 0.50 to 0.95, in [0, 1].
        map50: Mean average precision at IoU 0.50, in [0, 1].
        recall: Mean recall over classes at the confidence with the best F1, in [0, 1].
        ms_per_image: Median time for one image in milliseconds: preprocessing, forward pass, postprocessing.
        ms_p90: Ninetieth percentile of the same.
    """

    name: str
    parameters: int
    gflops: float
    map50_95: float
    map50: float
    recall: float
    ms_per_image: float
    ms_p90: float


@dataclass(frozen=True)
class Box:
    """A box in pixels, of a label or a prediction.

    Attributes:
        xyxy: Left, top, right, bottom.
        cls: Class index.
        conf: Confidence in [0, 1]; None for a label.
    """

    xyxy: tuple[float, float, float, float]
    cls: int
    conf: float | None = None


# Measuring ------------------------------------------------------------------------------------------------------------


def compare(
    models: Mapping[str, str | Path | YOLO],
    data: str | Path,
    *,
    imgsz: int = 640,
    device: str | None = None,
    split: str = "val",
    rounds: int = 5,
    **val_options: Any,
) -> list[ModelReport]:
    """Validate and time detectors on the same images.

    Args:
        models: Detectors or their checkpoints, by the name that the report gives them.
        data: The data set's YAML.
        imgsz: Image size for validation, timing and operations.
        device: Where to run, as Ultralytics takes it.
        split: Which part of the data set to use.
        rounds: How often each image is timed with each model.
        **val_options: Further arguments of `YOLO.val`, such as `batch`, `project` or `plots`.

    Returns:
        One report for each model, in the given order.

    Examples:
        >>> reports = compare({"alone": "a.pt", "distilled": "b.pt"}, "d.yaml", imgsz=256)  # doctest: +SKIP
        >>> print(as_text(reports))  # doctest: +SKIP
    """
    loaded = {name: model if isinstance(model, YOLO) else YOLO(model) for name, model in models.items()}
    sizes = {name: _size(model, imgsz) for name, model in loaded.items()}
    files = split_images(data, split)
    images = [read_image(f) for f in files[:: max(1, len(files) // 16)][:16]]
    options = {"data": str(data), "imgsz": imgsz, "split": split, "device": device, **val_options}
    accuracy = {
        name: box_scores(model.val(**{"name": f"val-{name.replace(os.sep, '-')}", **options}))
        for name, model in loaded.items()
    }
    times = measure_latency(loaded, images, imgsz=imgsz, device=device, rounds=rounds)
    return [
        ModelReport(
            name=name,
            parameters=sizes[name][0],
            gflops=sizes[name][1],
            **scores,
            ms_per_image=median(times[name]),
            ms_p90=quantiles(times[name], n=10, method="inclusive")[-1],
        )
        for name, scores in accuracy.items()
    ]


def _size(model: YOLO, imgsz: int) -> tuple[int, float]:
    """Return parameters and GFLOPs of a model's fused copy."""
    fused = deepcopy(model.model).float().cpu().eval().fuse(verbose=False)
    size = measure_size(fused, -(-imgsz // 32) * 32)  # Ultralytics rounds the image size up as well
    return size.parameters, size.gflops


def measure_latency(
    models: Mapping[str, YOLO],
    images: Sequence[np.ndarray],
    *,
    imgsz: int = 640,
    device: str | None = None,
    rounds: int = 5,
    warmup: int = 2,
) -> dict[str, list[float]]:
    """Time detectors image by image, taking turns so that a disturbance of the machine meets all of them alike.

    Args:
        models: Detectors by name.
        images: BGR images, uint8 of shape (H, W, 3).
        imgsz: Image size.
        device: Where to run, as Ultralytics takes it.
        rounds: How often each image is timed with each model, at least 1.
        warmup: Untimed predictions of each model before that.

    Returns:
        For each model, the milliseconds of each prediction: preprocessing, forward pass and postprocessing as
        Ultralytics times them. Their number is `rounds * len(images)`.

    Raises:
        ValueError: If there is nothing to time.
    """
    if rounds < 1 or not images:
        raise ValueError(f"nothing to time: {rounds} rounds over {len(images)} images; both must be at least 1")
    arguments: dict[str, Any] = {"imgsz": imgsz, "device": device, "verbose": False, "save": False}
    for model in models.values():
        for _ in range(warmup):
            model.predict(images[0], **arguments)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for image in images:
            for name, model in models.items():
                times[name].append(sum(model.predict(image, **arguments)[0].speed.values()))
    return times


# Tables ---------------------------------------------------------------------------------------------------------------

_COLUMNS = ("model", "parameters", "GFLOPs", "mAP50-95", "mAP50", "recall", "ms/image")


def _cells(report: ModelReport) -> tuple[str, ...]:
    return (
        report.name,
        f"{report.parameters / 1e6:.2f} M",
        f"{report.gflops:.2f}",
        f"{report.map50_95:.3f}",
        f"{report.map50:.3f}",
        f"{report.recall:.3f}",
        f"{report.ms_per_image:.1f}",
    )


def as_text(reports: Iterable[ModelReport]) -> str:
    """Return the reports as a table for a terminal.

    Examples:
        >>> r = ModelReport(name="a", parameters=2_500_000, gflops=1.5, map50_95=0.4, map50=0.7, recall=0.6,
        ...                 ms_per_image=9.0, ms_p90=11.0)
        >>> print(as_text([r]))
        model  parameters  GFLOPs  mAP50-95  mAP50  recall  ms/image
        -----  ----------  ------  --------  -----  ------  --------
        a          2.50 M    1.50     0.400  0.700   0.600       9.0
    """
    rows = [_COLUMNS, *(_cells(r) for r in reports)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in rows]  # fmt: skip
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(reports: Iterable[ModelReport]) -> str:
    """Return the reports as a Markdown table."""
    rows = [_COLUMNS, ("---", *["---:"] * (len(_COLUMNS) - 1)), *(_cells(r) for r in reports)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)


def write_json(reports: Iterable[ModelReport], path: str | Path, **context: Any) -> Path:
    """Write the reports and what they were measured with as JSON.

    Args:
        reports: The reports.
        path: File to write.
        **context: What a reader needs to repeat the measurement: data, image size, device, versions.

    Returns:
        The path.
    """
    path = Path(path)
    path.write_text(json.dumps({**context, "models": [asdict(r) for r in reports]}, indent=2, default=str) + "\n")
    return path


# BGR, told apart on grey images and by colour-blind readers (Okabe and Ito's palette, the darkest left out).
_COLOURS = ((0, 94, 213), (233, 180, 86), (115, 158, 0), (66, 228, 240), (167, 121, 204), (0, 159, 230))

# Pictures -------------------------------------------------------------------------------------------------------------


def split_images(data: str | Path, split: str = "val") -> list[Path]:
    """Return the image files of a part of a data set, sorted.

    Raises:
        FileNotFoundError: If the data set has no such part or no image in it.
    """
    places = check_det_dataset(str(data)).get(split)
    files: list[Path] = []
    for place in [places] if isinstance(places, (str, Path)) else places or []:
        path = Path(place)
        if path.is_dir():
            files += [f for f in path.rglob("*") if f.suffix[1:].lower() in IMG_FORMATS]
        else:  # a list of files, relative ones beginning with ./
            lines = (line.strip() for line in path.read_text().splitlines())
            files += [path.parent / line if line.startswith("./") else Path(line) for line in lines if line]
    if not files:
        raise FileNotFoundError(f"{data} has no images for {split!r}")
    return sorted(files)


def read_image(file: str | Path) -> np.ndarray:
    """Read an image as BGR, uint8 of shape (H, W, 3).

    Raises:
        OSError: If it cannot be read.
    """
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise OSError(f"{file} cannot be read as an image")
    return image


def write_image(file: str | Path, image: np.ndarray) -> None:
    """Write a BGR image.

    Raises:
        OSError: If it cannot be written.
    """
    if not cv2.imwrite(str(file), image):
        raise OSError(f"{file} cannot be written")


def labelled_boxes(file: Path, shape: tuple[int, ...]) -> list[Box]:
    """Return the boxes of an image's label file; none if it has no file.

    Args:
        file: The image, whose label file lies where Ultralytics looks for it.
        shape: The image's (H, W, ...).
    """
    labels = Path(img2label_paths([str(file)])[0])
    if not labels.is_file():
        return []
    height, width = shape[:2]
    boxes = []
    for line in labels.read_text().splitlines():
        if fields := line.split():
            cls, (x, y, w, h) = int(float(fields[0])), (float(v) for v in fields[1:5])
            corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            boxes.append(Box(corners, cls))
    return boxes


def predicted_boxes(model: YOLO, image: np.ndarray, **options: Any) -> list[Box]:
    """Return a model's boxes on a BGR image of shape (H, W, 3); `options` are arguments of `YOLO.predict`."""
    found = model.predict(image, verbose=False, save=False, **options)[0].boxes
    rows = zip(found.xyxy.tolist(), found.cls.tolist(), found.conf.tolist(), strict=True)
    return [Box(tuple(xyxy), int(cls), float(conf)) for xyxy, cls, conf in rows]


def draw_grid(
    rows: Sequence[tuple[np.ndarray, Mapping[str, Sequence[Box]]]], names: Mapping[int, str], *, tile: int = 320
) -> np.ndarray:
    """Draw images below one another and, for each, the boxes of several sources side by side.

    Args:
        rows: For each image its BGR pixels, uint8 of shape (H, W, 3), and the boxes by column title; every row has the
            same titles in the same order.
        names: Class names by index, for the legend.
        tile: Width and height in pixels that each image is fitted into, at least 64.

    Returns:
        BGR picture, uint8, with titles above and a legend below.

    Raises:
        ValueError: If there are no rows, or their titles differ.
    """
    titles = list(rows[0][1]) if rows else []
    if not titles or any(list(columns) != titles for _, columns in rows):
        raise ValueError(f"every row needs the same columns, at least one; got {[list(c) for _, c in rows]}")
    gap, head = 6, 30
    step = tile + gap
    picture = np.full((head + len(rows) * step + head, gap + len(titles) * step, 3), 255, np.uint8)
    for column, title in enumerate(titles):
        _write(picture, title, (gap + column * step, head - 9), tile)
    for row, (image, columns) in enumerate(rows):
        for column, title in enumerate(titles):
            x, y = gap + column * step, head + row * step
            picture[y : y + tile, x : x + tile] = _tile(image, columns[title], tile)
    x, y = gap, picture.shape[0] - 9
    for cls, name in names.items():
        cv2.rectangle(picture, (x, y - 11), (x + 14, y + 2), _colour(cls), -1)
        x += 22 + _write(picture, name, (x + 20, y), tile) + 16
    return picture


def _tile(image: np.ndarray, boxes: Sequence[Box], tile: int) -> np.ndarray:
    """Fit an image into a square and draw its boxes, the confidence of each at its upper left corner."""
    height, width = image.shape[:2]
    scale = tile / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    out = np.full((tile, tile, 3), 40, np.uint8)
    left, top = (tile - size[0]) // 2, (tile - size[1]) // 2
    shown = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    out[top : top + size[1], left : left + size[0]] = shown
    for box in boxes:
        x1, y1, x2, y2 = (round(v * scale) for v in box.xyxy)
        colour = _colour(box.cls)
        cv2.rectangle(out, (left + x1, top + y1), (left + x2, top + y2), colour, 2, cv2.LINE_AA)
        if box.conf is not None:
            place = (left + x2 + 4, top + (y1 + y2) // 2 + 4)
            cv2.putText(out, f"{box.conf:.2f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, colour, 1, cv2.LINE_AA)
    return out


def _colour(cls: int) -> tuple[int, int, int]:
    return _COLOURS[cls % len(_COLOURS)]


def _write(picture: np.ndarray, text: str, place: tuple[int, int], width: int) -> int:
    """Write dark text no wider than `width` pixels, in place; return the width it took."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    taken = cv2.getTextSize(text, font, scale, 1)[0][0]
    if taken > width:
        scale, taken = scale * width / taken, width
    cv2.putText(picture, text, place, font, scale, (30, 30, 30), 1, cv2.LINE_AA)
    return int(taken)
