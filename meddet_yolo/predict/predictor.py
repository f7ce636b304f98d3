"""`MedDetPredictor`: Ultralytics' detection predictor that also takes DICOM and NIfTI.

Slices come as pictures named without the patient; results know where their boxes lie in the patient. Beside the
pictures, every series, volume or file gets a JSON file and, on demand, a DICOM Structured Report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.loaders import SourceTypes
from ultralytics.data.utils import IMG_FORMATS, VID_FORMATS
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils import LOGGER
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.patches import imread

from meddet_yolo.files import write_whole
from meddet_yolo.imaging.grey import checked_window
from meddet_yolo.imaging.limits import MAX_PIXELS, checked_max_pixels
from meddet_yolo.imaging.pictures import check_image
from meddet_yolo.imaging.privacy import content_key, public_name, redact
from meddet_yolo.imaging.search import Found, find_volumes, holds_volumes
from meddet_yolo.imaging.volumes import Skipped, Slice, Volume, is_volume, reason_of

__all__ = ["MedDetPredictor", "SliceResults", "VolumeSource"]

SHOWN_SIDE = 768  # pixels; about as long a side as result pictures have at least
_LEVEL = re.compile(r"(?<![A-Z0-9])([CTLS])(\d{1,2})\s*[-/_]?\s*([CTLS])?(\d{1,2})?(?!\d)", re.IGNORECASE)


@dataclass(frozen=True)
class VolumeSource:
    """A prediction source with DICOM or NIfTI in it, and how to read that.

    Args:
        source: What `find_volumes` searches.
        slices: Which slices of a series or volume: "mid", "all" or a number.
        window: "header" (percentiles where it has none), "percentile", or (centre, width).
        sr: Whether to write DICOM Structured Reports.
        max_pixels: The most pixels that a picture may have; see `meddet_yolo.imaging.limits`.
    """

    source: Any
    slices: str | int = "mid"
    window: str | tuple[float, float] = "header"
    sr: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        """Check and normalise the arguments.

        Raises:
            ValueError: If the window is none, or `max_pixels` no number of pixels.
        """
        object.__setattr__(self, "max_pixels", checked_max_pixels(self.max_pixels))
        object.__setattr__(self, "window", checked_window(self.window))

    @staticmethod
    def holds(source: Any) -> bool:
        """Return whether a source is made of paths, with DICOM or NIfTI among them.

        A folder of ordinary images stays Ultralytics', which does not look into its subfolders.
        """
        items = list(source) if isinstance(source, (list, tuple)) else [source]
        if not items or not all(isinstance(item, (str, Path)) for item in items):
            return False
        return holds_volumes(item for item in items if not _is_image_folder(item))


class SliceResults(Results):
    """Results of a DICOM or NIfTI slice: Ultralytics' `Results` that know where their boxes lie.

    Attributes:
        slice: The slice; its `geometry` maps picture pixels to the file's and to the patient.
    """

    slice: Slice

    def new(self) -> SliceResults:
        """Return results of the same slice without boxes."""
        result = SliceResults(orig_img=self.orig_img, path=self.path, names=self.names, speed=self.speed)
        result.save_dir, result.slice = self.save_dir, self.slice
        return result

    def plot(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Draw the boxes as `Results.plot` does, with the patient's sides at the picture's edges.

        Small slices are enlarged, so that labels do not hide them.
        """
        if kwargs.get("img") is not None or self.orig_img.shape[2] != 3:
            return np.asarray(super().plot(*args, **kwargs))
        factor = max(1, round(SHOWN_SIDE / max(self.orig_shape)))
        image = cv2.resize(self.orig_img, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        boxes = None if self.boxes is None else self.boxes.data.clone()
        if boxes is not None:
            boxes[:, :4] *= factor
        large = Results(_marked(image, self.slice), path=self.path, names=self.names, boxes=boxes)
        return np.asarray(large.plot(*args, **kwargs))

    @property
    def boxes_stored(self) -> np.ndarray:
        """Boxes (N, 4) in the file's matrix: (column1, row1, column2, row2) in pixels from its corner."""
        boxes = [self.slice.geometry.box_to_stored(box) for box in self._xyxy()]
        return np.array(boxes).reshape(-1, 4)

    @property
    def boxes_mm(self) -> np.ndarray | None:
        """Corners (N, 4, 3) in the patient, LPS in mm, clockwise from the top left; None where that is unknown."""
        if self.slice.geometry.patient is None:
            return None
        return np.array([self.slice.geometry.box_to_patient(box) for box in self._xyxy()]).reshape(-1, 4, 3)

    def _xyxy(self) -> np.ndarray:
        """Boxes (N, 4) in picture pixels."""
        return np.zeros((0, 4)) if self.boxes is None else np.asarray(self.boxes.numpy().xyxy, float).reshape(-1, 4)

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[dict[str, Any]]:
        """Return Ultralytics' summary of every box, with `level`, `size_mm` (width, height) and `corners_mm`."""
        rows: list[dict[str, Any]] = super().summary(normalize, decimals)
        corners = self.boxes_mm
        for row, box, i in zip(rows, self._xyxy(), range(len(rows)), strict=True):
            size = self.slice.geometry.box_size_mm(box)
            row["level"] = level_of(row["name"])
            row["size_mm"] = None if size is None else [round(s, 3) for s in size]
            row["corners_mm"] = None if corners is None else corners[i].round(3).tolist()
        return rows

    def record(self, words: Iterable[str] = ()) -> dict[str, Any]:
        """Return the slice and its boxes for a JSON file, without anything that names the patient."""
        part, geometry = self.slice, self.slice.geometry
        boxes = []
        for row, picture_box, stored in zip(self.summary(), self._xyxy(), self.boxes_stored, strict=True):
            corners = row["corners_mm"]
            boxes.append(
                {
                    "class": row["class"],
                    "name": row["name"],
                    "level": row["level"],
                    "confidence": row["confidence"],
                    "box_px": [round(float(v), 2) for v in picture_box],
                    "box_stored_px": [round(float(v), 2) for v in stored],
                    "size_mm": row["size_mm"],
                    "centre_mm": None if corners is None else np.mean(corners, axis=0).round(3).tolist(),
                    "corners_mm": corners,
                }
            )
        return {
            "name": part.name,
            "file": redact(part.path.name, words),
            "slice": part.index,
            "shape_px": list(geometry.shape),
            "spacing_mm": None if geometry.spacing is None else [round(s, 6) for s in geometry.spacing],
            "plane": geometry.plane,
            "edges": geometry.edges,
            "offset_left_mm": None if part.offset_mm is None else round(part.offset_mm, 3),
            "source": None if part.reference is None else asdict(part.reference),
            "boxes": boxes,
        }


def _is_image_folder(item: str | Path) -> bool:
    """Return whether a path is a folder with ordinary images or videos, and no DICOM or NIfTI beside them."""
    try:
        files = [path for path in Path(item).iterdir() if path.is_file()]
    except (OSError, ValueError):
        return False
    ordinary = any(_suffix(path) in IMG_FORMATS | VID_FORMATS for path in files)
    return ordinary and not any(map(is_volume, files))


def _suffix(path: Path) -> str:
    """Return a file's suffix as Ultralytics lists them."""
    return path.suffix[1:].lower()


def _marked(image: np.ndarray, part: Slice) -> np.ndarray:
    """Write the patient's sides, and how far to the left or right a sagittal slice lies, at a picture's edges."""
    height, width = image.shape[:2]
    texts = []
    for edge, letter in (part.geometry.edges or {}).items():
        x = {"left": 6, "right": width - 22}.get(edge, width // 2)
        y = {"top": 22, "bottom": height - 8}.get(edge, height // 2)
        texts.append((letter, (x, y)))
    if part.offset_mm is not None:
        side = "L" if part.offset_mm > 0 else "R"
        texts.append((f"{abs(part.offset_mm):.1f} mm {side}" if part.offset_mm else "middle", (6, height - 8)))
    for text, place in texts:
        for colour, thickness in (((0, 0, 0), 3), ((0, 220, 255), 1)):  # readable on any ground
            cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, thickness, cv2.LINE_AA)
    return image


def level_of(name: str) -> str | None:
    """Return the spinal level that a class's name tells, or None.

    Examples:
        >>> level_of("L4-5 herniation"), level_of("disc_C7/T1"), level_of("C3"), level_of("normal")
        ('L4/L5', 'C7/T1', 'C3', None)
    """
    found = _LEVEL.search(name.replace("_", " "))
    if found is None:
        return None
    upper, number, lower, below = found.groups()
    if below is None:
        return f"{upper}{number}".upper()
    return f"{upper}{number}/{lower or upper}{below}".upper()


class VolumeLoader:
    """Feed slices, and ordinary images beside them, to a predictor in batches.

    Args:
        found: What a source holds.
        window: As in `VolumeSource`.
        batch: Images a batch.
        channels: Channels that the model takes.
        max_pixels: The most pixels that an ordinary image may have.
    """

    mode = "image"

    def __init__(
        self,
        found: Found,
        window: str | tuple[float, float],
        batch: int,
        channels: int,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.found, self.window, self.bs, self.channels, self.max_pixels = found, window, batch, channels, max_pixels
        self.source_type = SourceTypes()
        self.skipped = list(found.skipped)
        self.skipped_of: dict[int, list[Skipped]] = {}  # by volume, those that only decoding showed
        self.images = found.images + [p for p in found.beside if _suffix(p) in IMG_FORMATS]
        self.nf = sum(map(len, found.volumes)) + len(self.images)
        self.current: list[tuple[int, Slice] | None] = []  # of the batch: volume and slice; None for an ordinary image
        self.count = 0
        self.on_close: Any = None

    def __len__(self) -> int:
        """Return the number of batches, as far as headers tell."""
        return -(-self.nf // self.bs)

    def __iter__(self) -> Iterator[tuple[list[str], list[np.ndarray], list[str]]]:
        """Yield paths, images (height, width, channels) and log texts of a batch."""
        self.count = 0
        batch: list[tuple[str, np.ndarray, str, tuple[int, Slice] | None]] = []
        for path, image, shown, item in self._images():
            self.count += 1
            batch.append((path, image, f"image {self.count}/{self.nf} {shown}: ", item))
            if len(batch) == self.bs:
                yield self._batch(batch)
                batch = []
        if batch:
            yield self._batch(batch)

    def _batch(self, batch: list[Any]) -> tuple[list[str], list[np.ndarray], list[str]]:
        """Split a batch's entries."""
        paths, images, texts, self.current = map(list, zip(*batch, strict=True))
        return paths, images, texts

    def _images(self) -> Iterator[tuple[str, np.ndarray, str, tuple[int, Slice] | None]]:
        """Yield path, image, its name in the log, and its slice, one image after another."""
        for number, volume in enumerate(self.found.volumes):
            for item in volume.read(self.window):
                if isinstance(item, Skipped):
                    self.skipped_of.setdefault(number, []).append(self._skip(item))
                    continue
                image = np.repeat(item.image[..., None], self.channels, axis=2)
                # Ultralytics names its output after the stem of this path.
                yield f"{item.name}.png", image, item.name, (number, item)
        flag = cv2.IMREAD_GRAYSCALE if self.channels == 1 else cv2.IMREAD_COLOR
        for path in self.images:
            try:
                check_image(path, self.max_pixels)
                image = imread(str(path), flags=flag)
            except Exception as error:  # one file must not end the run
                self._skip(Skipped(path, reason_of(error)))
                continue
            if image is None:
                self._skip(Skipped(path, "not an image, or damaged" if path.is_file() else "no such file any more"))
                continue
            shown = str(path)
            if redact(shown, self.found.words) != shown:  # as with slices, a bare name that is not the patient's
                shown = public_name(path.stem, self.found.words, content_key(path)) + path.suffix
            yield shown, image if image.ndim == 3 else image[..., None], shown, None

    def _skip(self, item: Skipped) -> Skipped:
        """Note a file that turned out unreadable."""
        item = item.masked(self.found.words)
        self.skipped.append(item)
        LOGGER.warning(f"skipped {item}")
        return item

    def close(self) -> None:
        """Tell the predictor that no more will come."""
        if self.on_close is not None:
            self.on_close()


class MedDetPredictor(DetectionPredictor):
    """Predict on whatever `DetectionPredictor` takes, and on a `VolumeSource`.

    With `save=True` every series, volume or DICOM file also gets `NAME.json` in the run's folder, and with the source's
    `sr` a `NAME_sr.dcm`; both are written as soon as its last slice is done, and neither if the run ends before. Where
    a slice cannot be read, the JSON file says so and no report is written.
    """

    args: Any  # Ultralytics builds these without types
    dataset: Any
    _options: VolumeSource | None = None

    def setup_source(self, source: Any, stride: int | None = None) -> None:
        """Set up a source; DICOM and NIfTI get a loader of their own.

        Raises:
            ValueError: If nothing of a source can be read.
        """
        self._options = None
        if not isinstance(source, VolumeSource):
            super().setup_source(source, stride)
            return
        if hasattr(self.model, "imgsz") and not getattr(self.model, "dynamic", False):
            self.args.imgsz = self.model.imgsz  # an exported model of fixed size
        self.imgsz = check_imgsz(self.args.imgsz, stride=stride or self.model.stride, min_dim=2)
        found = find_volumes(source.source, source.slices, source.max_pixels)
        videos = [path for path in found.beside if _suffix(path) in VID_FORMATS]
        alone = "a video beside DICOM or NIfTI; give it by itself"
        found.skipped += [Skipped(path, alone).masked(found.words) for path in videos]
        for note in found.notes:
            LOGGER.warning(note)
        for skipped in found.skipped:
            LOGGER.warning(f"skipped {skipped}")
        channels = getattr(self.model, "channels", 3)
        loader = VolumeLoader(found, source.window, self.args.batch, channels, source.max_pixels)
        if loader.nf == 0:
            more = f" (and {len(found.skipped) - 1} more files)" if len(found.skipped) > 1 else ""
            raise ValueError(f"nothing to predict on: {found.skipped[0]}{more}" if found.skipped else "no image found")
        loader.on_close = self._flush
        self.dataset, self.source_type = loader, loader.source_type
        self.vid_writer: dict[Any, Any] = {}
        self._options = source
        self._done: dict[int, list[SliceResults]] = {}

    def save_predicted_images(self, save_path: Path, frame: int | None = 0) -> None:
        """Save a picture with its boxes as JPEG, whole and not through a link; videos as Ultralytics does."""
        if self.dataset.mode in {"stream", "video"}:
            super().save_predicted_images(save_path, frame)
            return
        done, content = cv2.imencode(".jpg", self.plotted_img)
        if not done:
            raise OSError(f"{save_path} cannot be encoded as JPEG")
        write_whole(save_path.with_suffix(".jpg"), content.tobytes())

    def construct_results(self, preds: Any, img: Any, orig_imgs: Any) -> list[Any]:
        """Build the results of a batch; those of slices know their slice."""
        results = super().construct_results(preds, img, orig_imgs)
        if self._options is None:
            return results
        last = -1
        for i, item in enumerate(self.dataset.current):
            if item is None:
                last = len(self.dataset.found.volumes)
                continue
            last, part = item
            result = SliceResults(results[i].orig_img, path=results[i].path, names=results[i].names)
            result.boxes, result.slice = results[i].boxes, part
            results[i] = result
            self._done.setdefault(last, []).append(result)
        self._flush(last)
        return results

    def _flush(self, before: int | None = None) -> None:
        """Write the records of volumes that are done: those before a number, or, at the end of a run, all."""
        for number in sorted(n for n in self._done if before is None or n < before):
            results = [result.cpu() for result in self._done.pop(number)]
            options = self._options
            if options is not None and (self.args.save or options.sr):
                volume = self.dataset.found.volumes[number]
                seen = len(results) + len(self.dataset.skipped_of.get(number, []))
                if seen < len(volume):  # the run was aborted: half a series must not be taken for a whole one
                    text = f"stopped after {seen} of {len(volume)} slices, so no JSON file and no report"
                    LOGGER.warning(f"{volume.name}: {text}")
                    continue
                self.save_dir.mkdir(parents=True, exist_ok=True)
                self._write(number, results, options.sr)

    def _write(self, number: int, results: list[SliceResults], sr: bool) -> None:
        """Write a volume's JSON file and Structured Report."""
        found: Found = self.dataset.found
        volume = found.volumes[number]
        before = sum(v.name == volume.name for v in found.volumes[:number])  # from other folders
        name = f"{volume.name}-{before + 1}" if before else volume.name
        if self.args.save:
            skipped = self.dataset.skipped_of.get(number, [])
            record = {
                "meddet-yolo": version("meddet-yolo"),
                "name": volume.name,
                "coordinates": {
                    "box_px": "x1, y1, x2, y2 in the picture, from its top left corner",
                    "box_stored_px": "column1, row1, column2, row2 in the file's matrix, from its corner",
                    "mm": "patient coordinates LPS: x to the left, y to the back, z to the head",
                },
                "complete": not skipped,
                "slices": [result.record(found.words) for result in results],
                "skipped": [{"file": s.path.name, "reason": s.reason} for s in skipped],
            }
            text = json.dumps(record, indent=1, ensure_ascii=False)
            text = re.sub(
                r"\[\s+([^][{}\"]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text
            )  # points on one line
            write_whole(self.save_dir / f"{name}.json", text + "\n")
        if sr:
            self._report(number, results, self.save_dir / f"{name}_sr.dcm")

    def _report(self, number: int, results: list[SliceResults], path: Path) -> None:
        """Write a volume's Structured Report, where it is DICOM, all of it could be read, and it has boxes."""
        from meddet_yolo.imaging.structured_report import ReportedBox, write_structured_report

        boxes = [
            ReportedBox(result.slice.reference, tuple(stored), row["name"], row["confidence"], row["level"] or "")
            for result in results
            if result.slice.reference is not None
            for row, stored in zip(result.summary(), result.boxes_stored.tolist(), strict=True)
        ]
        volume: Volume = self.dataset.found.volumes[number]
        skipped = len(self.dataset.skipped_of.get(number, []))
        if volume.nifti is not None:
            LOGGER.warning(f"{volume.name}: no Structured Report, which must cite DICOM images")
        elif skipped:
            text = f"{skipped} of {len(volume)} slices could not be read, so no Structured Report"
            LOGGER.warning(f"{volume.name}: {text}")
        elif not boxes:
            LOGGER.info(f"{volume.name}: no box, so no Structured Report")
        else:
            try:
                write_structured_report(path, [r.slice.path for r in results], boxes, version=version("meddet-yolo"))
            except ValueError as error:
                self.dataset._skip(Skipped(results[0].slice.path, f"no Structured Report: {error}"))
