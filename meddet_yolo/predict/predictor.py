"""`MedDetPredictor`: Ultralytics' detection predictor that also takes DICOM and NIfTI.

Slices come as pictures named without the patient; results know where their boxes lie in the patient. Beside the
pictures, every series, volume or file gets a JSON file and, on demand, a DICOM Structured Report.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import torch
from ultralytics.data.utils import VID_FORMATS
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils import LOGGER
from ultralytics.utils.checks import check_imgsz

from meddet_yolo.evaluate.recalibration import announced, probabilities
from meddet_yolo.files import sha256_of, write_whole
from meddet_yolo.imaging.search import Found, find_volumes
from meddet_yolo.imaging.volumes import Skipped, Volume
from meddet_yolo.predict.results import SliceResults
from meddet_yolo.predict.source import VolumeLoader, VolumeSource, suffix_of
from meddet_yolo.trt.recalibration import Recalibration

__all__ = ["MedDetPredictor", "SliceResults", "VolumeSource"]


class MedDetPredictor(DetectionPredictor):
    """Predict on whatever `DetectionPredictor` takes, and on a `VolumeSource`.

    With `save=True` every series, volume or DICOM file also gets `NAME.json` in the run's folder, and with the source's
    `sr` a `NAME_sr.dcm`; both are written as soon as its last slice is done, and neither if the run ends before. Where
    a slice cannot be read, the JSON file says so and no report is written.

    Where an exported model's sidecar holds a recalibration, confidences are probabilities, and so is `conf`.
    """

    args: Any  # Ultralytics builds these without types
    dataset: Any
    _options: VolumeSource | None = None
    _weights: str | None = None  # the hash of the model's file
    _function: Recalibration | None = None
    _conf: float = 0.0  # as it was asked for

    def setup_source(self, source: Any, stride: int | None = None) -> None:
        """Set up a source; DICOM and NIfTI get a loader of their own.

        Raises:
            ValueError: If nothing of a source can be read.
        """
        self._options = None
        self._function = announced(self.args.model)
        if not isinstance(source, VolumeSource):
            super().setup_source(source, stride)
            return
        if hasattr(self.model, "imgsz") and not getattr(self.model, "dynamic", False):
            self.args.imgsz = self.model.imgsz  # an exported model of fixed size
        self.imgsz = check_imgsz(self.args.imgsz, stride=stride or self.model.stride, min_dim=2)
        found = find_volumes(source.source, source.slices, source.max_pixels)
        videos = [path for path in found.beside if suffix_of(path) in VID_FORMATS]
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

    def postprocess(self, preds: Any, img: Any, orig_imgs: Any, **kwargs: Any) -> list[Any]:
        """Return the results of a batch; where the model has a recalibration, `conf` is the least probability."""
        if self._function is None:
            return super().postprocess(preds, img, orig_imgs, **kwargs)
        self._conf = self.args.conf
        self.args.conf = self._function.least(self._conf)
        try:
            return super().postprocess(preds, img, orig_imgs, **kwargs)
        finally:
            self.args.conf = self._conf

    def construct_results(self, preds: Any, img: Any, orig_imgs: Any) -> list[Any]:
        """Build the results of a batch; those of slices know their slice."""
        if self._function is not None:
            self.args.conf = self._conf  # records name what was asked for
            of = self._function
            preds = [torch.cat([p[:, :4], probabilities(p[:, 4:5], of), p[:, 5:]], 1) for p in preds]
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
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **self._detector(),
                "name": volume.name,
                "coordinates": {
                    "box_px": "x1, y1, x2, y2 in the upright slice, from its top left corner",
                    "box_picture_px": "the same in the picture that is saved, which is picture_scale times as large",
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
        wrote = [file for file in (f"{name}.json", f"{name}_sr.dcm") if (self.save_dir / file).is_file()]
        if wrote and self.args.verbose:
            LOGGER.info(f"{volume.name}: {' and '.join(wrote)} written to {self.save_dir}")

    def _detector(self) -> dict[str, Any]:
        """Return which model has found the boxes, and above which confidence."""
        path = Path(str(self.args.model or ""))
        if self._weights is None:
            trained = path.name and path.suffix not in {".yaml", ".yml"} and path.exists()
            self._weights = sha256_of(path) if trained else ""
        return {
            "model": path.name or None,
            "weights_sha256": self._weights or None,  # a model that was handed over has no file
            "confidence_threshold": self.args.conf,
            "iou_threshold": self.args.iou,
        }

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
