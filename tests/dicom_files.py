"""DICOM files made for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # columns run to the back, rows to the feet


def make_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    orientation: Sequence[float] | None = SAGITTAL,
    position: Sequence[float] = (0.0, 0.0, 0.0),
    spacing: Sequence[float] | None = (1.0, 1.0),
    bits: int = 16,
    **attributes: Any,
) -> Path:
    """Write a grey MR image of stored values `pixels` (rows, columns) or (frames, rows, columns)."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Modality, dataset.PatientName, dataset.PatientID = "MR", "Nobody", "0"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if orientation is not None:
        dataset.ImageOrientationPatient = [f"{v:.10g}"[:16] for v in orientation]
        dataset.ImagePositionPatient = [f"{v:.10g}"[:16] for v in position]
    if spacing is not None:
        dataset.PixelSpacing = [f"{v:.10g}"[:16] for v in spacing]
    for keyword, value in attributes.items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def make_enhanced(path: Path, pixels: np.ndarray, positions: Sequence[Sequence[float]], **shared: Any) -> Path:
    """Write a multi-frame MR image (frames, rows, columns) with functional groups."""
    make_dicom(path, pixels, orientation=None, spacing=None)
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"

    def item(**values: Any) -> pydicom.Dataset:
        made = pydicom.Dataset()
        for keyword, value in values.items():
            setattr(made, keyword, value)
        return made

    measures = item(PixelSpacing=list(shared.pop("spacing", (1.0, 1.0))))
    plane = item(ImageOrientationPatient=list(shared.pop("orientation", SAGITTAL)))
    dataset.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[plane])]
    frames = []
    for number, position in enumerate(positions):
        values = item(RescaleSlope=float(number + 1), RescaleIntercept=0.0, RescaleType="US")
        window = item(
            WindowCenter=127.5 * (number + 1), WindowWidth=255.0 * (number + 1), VOILUTFunction="LINEAR_EXACT"
        )
        frames.append(
            item(
                PlanePositionSequence=[item(ImagePositionPatient=list(position))],
                PixelValueTransformationSequence=[values],
                FrameVOILUTSequence=[window],
            )
        )
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.save_as(path)
    return path
