"""Make the tutorial's data: DICOM series of phantom patients and a table of boxes, as an annotation tool exports one.

    python docs/tutorial_data.py [FOLDER] [PATIENTS]

FOLDER (`tutorial`) gets `mri/PATIENT/*.dcm` with `boxes.csv`, and `new_patient/`, a series without boxes. Each patient
has one series of three sagittal slices, 4 mm apart. The patients are drawn, not real.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from meddet_yolo.phantom import generate_phantom

SLICES, SIDE, SPACING = 3, 160, 1.25  # pixels, millimetres a pixel
CLASSES = ("herniation", "normal")  # as the phantom counts them


def write_slice(path: Path, picture: np.ndarray, patient: str, series: str, study: str, number: int) -> None:
    """Write one grey picture (H, W) of 8 bits as a sagittal MR image."""
    image = pydicom.Dataset()
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = (
        study,
        series,
        generate_uid(entropy_srcs=[series]),
    )
    image.PatientName, image.PatientID, image.Modality = f"Phantom^{patient}", patient, "MR"
    image.PatientBirthDate = image.PatientSex = image.StudyDate = image.StudyTime = ""
    image.AccessionNumber = image.StudyID = image.ReferringPhysicianName = ""
    image.SeriesNumber, image.InstanceNumber = 1, number + 1
    image.Rows, image.Columns = picture.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelSpacing, image.SliceThickness = [SPACING, SPACING], 4.0
    image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # columns run to the back, rows to the feet
    image.ImagePositionPatient = [4.0 * (number - 1), -SPACING * SIDE / 2, SPACING * SIDE / 2]
    image.PixelData = (picture.astype(np.uint16) * 8).tobytes()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def main(folder: str = "tutorial", patients: str = "24") -> None:
    """Write the patients but the last with their boxes, the last without."""
    root, rows = Path(folder), []
    with tempfile.TemporaryDirectory() as made:
        data = generate_phantom(
            Path(made) / "data", int(patients), imgsz=SIDE, preset="tiny", slices=SLICES, test_fraction=0.0
        )
        pictures = sorted((data.parent / "images").rglob("*.png"), key=lambda file: file.name)
        names = sorted({file.stem.rpartition("_")[0] for file in pictures})
        uids = {name: (generate_uid(), generate_uid()) for name in names}
        for file in pictures:
            patient, _, number = file.stem.rpartition("_")
            target = root / ("new_patient" if patient == names[-1] else f"mri/{patient}") / f"IM{number}.dcm"
            picture = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
            write_slice(target, picture, patient, *uids[patient], int(number))
            label = data.parent / "labels" / file.relative_to(data.parent / "images").with_suffix(".txt")
            for line in label.read_text().splitlines() if patient != names[-1] else ():
                kind, x, y, w, h = (float(value) for value in line.split())
                corners = [(x - w / 2) * SIDE, (y - h / 2) * SIDE, (x + w / 2) * SIDE, (y + h / 2) * SIDE]
                place = target.relative_to(root / "mri").as_posix()
                rows.append([place, patient, CLASSES[int(kind)], *(f"{value:.1f}" for value in corners)])
    with open(root / "mri" / "boxes.csv", "w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([["image", "patient", "label", "x0", "y0", "x1", "y1"], *rows])
    print(f"{len(names) - 1} patients in {root / 'mri'}, one in {root / 'new_patient'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
