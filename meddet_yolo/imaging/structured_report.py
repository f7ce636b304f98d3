"""Boxes as a DICOM Structured Report (TID 1500, one planar region of interest a box), written and read by highdicom.

Coordinates are those of the source image's stored matrix, (column, row) in pixels from its outer corner, as SCOORD
defines them. Patient and study are identified in the report, as DICOM requires, by the attributes that its patient and
study modules demand (types 1 and 2) and by no other; the referring physician is left empty.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meddet_yolo.files import write_whole
from meddet_yolo.imaging.dicom_header import DicomReference, load, require
from meddet_yolo.imaging.limits import VolumeError
from meddet_yolo.imaging.privacy import silent

__all__ = ["ReportedBox", "read_structured_report", "write_structured_report"]

SCHEME = "99MEDDET"  # a private coding scheme: a model's class names are its own
_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


@dataclass(frozen=True)
class ReportedBox:
    """A box of a report.

    Args:
        reference: The image, and its frame, that the box lies on.
        box: (column1, row1, column2, row2) in stored pixels.
        name: The class's name.
        confidence: From 0 to 1.
        label: What a reader of the report is shown as the finding's identifier; by default the class's name.
    """

    reference: DicomReference
    box: tuple[float, float, float, float]
    name: str
    confidence: float
    label: str = ""


def write_structured_report(
    path: str | Path,
    sources: Sequence[str | Path],
    boxes: Sequence[ReportedBox],
    *,
    algorithm: str = "meddet-yolo",
    version: str = "0",
) -> Path:
    """Write boxes as a Comprehensive SR with an Imaging Measurement Report (TID 1500).

    Every box becomes a planar region (a closed polyline) with its class as finding type and its confidence as
    "Certainty of Finding" in per cent. The report is marked partial, preliminary and unverified: nobody has read it.

    Args:
        path: The report to write.
        sources: DICOM files that were looked at, with or without a box; all of one study.
        boxes: Boxes on images of `sources`.
        algorithm: Name of what found the boxes.
        version: Its version.

    Returns:
        `path`.

    Raises:
        VolumeError: If a source cannot be read, lacks a UID that a report must cite or holds a value that no report may
            have, or the sources are of several studies. The message quotes no value.
        ValueError: If there are no sources or no boxes (TID 1500 demands a measurement), or a box lies on none of them.
        ImportError: If highdicom is missing.
    """
    hd, codes = require("highdicom"), require("pydicom.sr.codedict").codes
    evidence = [_evidence(Path(source)) for source in dict.fromkeys(map(str, sources))]
    if not evidence or not boxes:
        raise ValueError(f"{len(evidence)} DICOM sources and {len(boxes)} boxes given; a report needs one of each")
    if len({item.StudyInstanceUID for item in evidence}) > 1:
        raise VolumeError("the images are of several studies; a report belongs to one")
    known = {str(item.SOPInstanceUID) for item in evidence}
    if unknown := [box for box in boxes if box.reference.sop_instance not in known]:
        raise ValueError(f"{len(unknown)} boxes lie on images that are not among the sources")
    by_device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(uid=hd.UID(), name=algorithm),
    )
    how = hd.sr.AlgorithmIdentification(name=algorithm, version=version)
    groups = [_group(box, how, number) for number, box in enumerate(boxes, start=1)]
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=by_device),
        procedure_reported=hd.sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    with silent("highdicom"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it quotes the patient's name where it finds that oddly written
        try:
            document = hd.sr.ComprehensiveSR(
                evidence=evidence,
                content=report,
                series_instance_uid=hd.UID(),
                series_number=1,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer=algorithm,
                manufacturer_model_name=algorithm,
                software_versions=version,
                series_description="Detections of a neural network, not for clinical use",
            )
        except Exception as error:  # its text quotes what it refuses, which may be the day of birth
            raise VolumeError(f"highdicom refuses the images' headers ({type(error).__name__})") from None
    content = io.BytesIO()
    document.save_as(content)
    write_whole(path, content.getvalue())
    return Path(path)


def _evidence(path: Path) -> Any:
    """Return what a report needs of a source's header and nothing else."""
    with silent("pydicom"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        return _cited(load(path, pixels=False))


def _cited(header: Any) -> Any:
    """Return the parts of a header that a report repeats."""
    item = require("pydicom").Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        value = str(header.get(keyword) or "")
        if not value:
            raise VolumeError(f"has no {keyword}, which a Structured Report must cite")
        setattr(item, keyword, value)
    for keyword in _REQUIRED:
        try:
            value = header.get(keyword) or ""
            setattr(item, keyword, value)
            if value and item[keyword].VR in ("DA", "TM"):
                getattr(require("pydicom.valuerep"), item[keyword].VR)(str(value))
        except Exception as error:  # the text quotes the value
            raise VolumeError(f"its {keyword} is not as DICOM writes it ({type(error).__name__})") from None
    if item.PatientSex not in {"M", "F", "O"}:
        item.PatientSex = ""
    item.ReferringPhysicianName = ""
    if header.get("SpecificCharacterSet"):
        item.SpecificCharacterSet = header.SpecificCharacterSet
    return item


def _group(box: ReportedBox, how: Any, number: int) -> Any:
    """Return the measurement group of a box."""
    hd, codes = require("highdicom"), require("pydicom.sr.codedict").codes
    x1, y1, x2, y2 = box.box
    reference = box.reference
    region = hd.sr.ImageRegion(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]),
        source_image=hd.sr.SourceImageForRegion(
            reference.sop_class, reference.sop_instance, None if reference.frame is None else [reference.frame]
        ),
    )
    certainty = hd.sr.Measurement(
        name=codes.DCM.CertaintyOfFinding, value=round(100 * box.confidence, 2), unit=codes.UCUM.Percent
    )
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=f"{box.label or box.name} {number}"),
        referenced_region=region,
        finding_type=hd.sr.CodedConcept(_code(box.name), SCHEME, box.name[:64]),
        algorithm_id=how,
        measurements=[certainty],
    )


def _code(name: str) -> str:
    """Return a class's name as a code value: at most 16 characters without spaces."""
    return "".join(c if c.isalnum() else "_" for c in name)[:16] or "_"


def read_structured_report(path: str | Path) -> list[ReportedBox]:
    """Read the planar regions of a TID 1500 report as boxes.

    Args:
        path: A Structured Report, of this package or another's; regions of any shape are read as the box around them.

    Raises:
        VolumeError: If the file is no such report, or a damaged one.
        ImportError: If highdicom is missing.
    """
    path, hd = Path(path), require("highdicom")
    with silent("highdicom"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        content = _content(path)
        try:
            report = hd.sr.srread(content)
            groups = report.content.get_planar_roi_measurement_groups()
        except Exception as error:
            raise VolumeError(f"{path}: no DICOM Structured Report with planar regions (TID 1500)") from error
        try:
            return _boxes(report, groups)
        except Exception as error:  # a value that is not what its tag says
            raise VolumeError(f"{path}: a damaged DICOM Structured Report ({type(error).__name__})") from error


def _content(path: Path) -> io.BytesIO:
    """Return a report's bytes, once it is known that they are DICOM that fits into memory."""
    try:
        load(path, pixels=True)
        return io.BytesIO(path.read_bytes())
    except (VolumeError, OSError) as error:
        reason = str(error) if isinstance(error, VolumeError) else error.strerror
        raise VolumeError(f"{path}: no DICOM Structured Report with planar regions (TID 1500): {reason}") from error


def _boxes(report: Any, groups: Sequence[Any]) -> list[ReportedBox]:
    """Return the boxes of a report's measurement groups."""
    hd, codes = require("highdicom"), require("pydicom.sr.codedict").codes
    series = {
        str(item.ReferencedSOPInstanceUID): (str(study.StudyInstanceUID), str(group.SeriesInstanceUID))
        for study in report.get("CurrentRequestedProcedureEvidenceSequence", [])
        for group in study.ReferencedSeriesSequence
        for item in group.ReferencedSOPSequence
    }
    boxes = []
    for group in groups:
        if not isinstance(group.roi, hd.sr.ImageRegion):
            continue  # in patient coordinates, without an image
        image = next(item for item in group.roi.ContentSequence if item.ValueType == "IMAGE").ReferencedSOPSequence[0]
        uid = str(image.ReferencedSOPInstanceUID)
        frame = image.get("ReferencedFrameNumber")
        points = np.asarray(group.roi.value, float)
        if not np.isfinite(points).all():
            raise ValueError("coordinates that are no finite numbers")
        (x1, y1), (x2, y2) = points.min(0), points.max(0)
        certainty = group.get_measurements(name=codes.DCM.CertaintyOfFinding)
        study, own_series = series.get(uid, ("", ""))
        boxes.append(
            ReportedBox(
                DicomReference(
                    study, own_series, str(image.ReferencedSOPClassUID), uid, None if frame is None else int(frame)
                ),
                (float(x1), float(y1), float(x2), float(y2)),
                str(group.finding_type.meaning) if group.finding_type else "",
                float(certainty[0].value) / 100 if certainty else 1.0,
                str(group.tracking_identifier or ""),
            )
        )
    return boxes
