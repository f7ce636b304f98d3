"""A folder that holds, on tiny data, every file that the examples of the pages speak of."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from tests.dicom_files import make_dicom

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CHECKPOINTS = {
    0: ("best", "large", "student", "a", "yolo11n-trained", "silu-a", "nmode2-a"),
    1: ("medium", "teacher", "b", "yolo11s", "silu-b", "nmode2-b"),
}
PLAN = {"data": "d.yaml", "student": "meddet11-p.yaml", "methods": ["none"], "seeds": 1, "folds": 1, "jobs": 1}
RECIPE = {"model": "meddet11-n.yaml", "data": "d.yaml", "teachers": ["large.pt"], "epochs": 1, "batch": 4}


def fill(folder: Path, checkpoints: Sequence[Path]) -> None:
    """Make the files.

    Args:
        folder: An empty folder.
        checkpoints: Of two tiny detectors of the phantom's two classes.
    """
    from meddet_yolo.phantom import generate_phantom

    data = generate_phantom(folder / "data", patients=16, imgsz=64, preset="tiny", slices=1)
    names = yaml.safe_load(data.read_text(encoding="utf-8"))["names"]
    parts = {"train": "data/images/train", "val": "data/images/val", "test": "data/images/test"}
    for name in ("d.yaml", "my.yaml"):
        (folder / name).write_text(yaml.safe_dump({**parts, "names": names}), encoding="utf-8")
    for number, stems in CHECKPOINTS.items():
        for stem in stems:
            shutil.copy(checkpoints[number], folder / f"{stem}.pt")
    student = folder / "runs/student/weights/best.pt"
    student.parent.mkdir(parents=True)
    shutil.copy(checkpoints[0], student)
    pictures = sorted((folder / "data/images").rglob("*.png"))
    (folder / "images").mkdir()
    for file in pictures[:2]:
        shutil.copy(file, folder / "images")
    shutil.copy(pictures[0], folder / "image.png")
    (folder / "more").mkdir()
    for file in pictures[:4]:
        cv2.imwrite(str(folder / "more" / file.name), cv2.flip(cv2.imread(str(file)), 0))
    training = {"epochs": 1, "imgsz": 64, "batch": 4}
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **training}), encoding="utf-8")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    write_tables(folder, pictures, names)
    write_models(folder / "only", checkpoints[0])
    grey = cv2.imread(str(pictures[0]), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 8
    for place, stems in {"t2_sagittal": ("IM004", "IM006", "IM008"), "spine/images/train": ("1", "2", "3")}.items():
        write_series(folder / place, grey, stems)
    write_study(folder / "study", grey)


def write_models(folder: Path, checkpoint: Path) -> None:
    """Write what only one page speaks of: teachers of other classes, of the GFL family, and a student in INT8.

    A network as it is initialised finds nothing in any precision; the others, whose activations are set on the data and
    whose weights are random, are not the same in INT8.
    """
    from ultralytics.nn.tasks import DetectionModel

    import meddet_yolo  # noqa: F401  registers the layers

    content = torch.load(checkpoint, weights_only=False)
    tiny = content["model"].yaml
    wanted = {
        "teachers/spine": (tiny, ["herniation", "disc"]),
        "tensorrt/best": (tiny, ["herniation", "normal"]),
        "teachers/b": (tiny, ["disc", "cord", "vertebra", "normal"]),
        **{f"gfl/{name}": ("gfl-mobilenetv2.yaml", ["herniation", "normal"]) for name in ("r50", "r101", "r152")},
    }
    for name, (layout, classes) in wanted.items():
        model = DetectionModel(deepcopy(layout), nc=len(classes), verbose=False)
        model.names, model.task = dict(enumerate(classes)), "detect"
        path = folder / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**content, "model": model.half().eval()}, path)


def write_tables(folder: Path, pictures: Sequence[Path], names: dict[int, str]) -> None:
    """Write a table of the images, one of their boxes as an annotation tool does, and detections made elsewhere."""
    annotated = folder / "spider_disc2"
    rows: list[list[object]] = []
    found: list[dict[str, object]] = []
    with open(folder / "images.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient", "scanner", "sex"])
        for number, picture in enumerate(pictures):
            patient = picture.stem.rpartition("_")[0]
            table.writerow([picture.name, patient, "ab"[number % 2], "FM"[number // 2 % 2]])
            part = picture.parent.name
            for kind in ("images", "labels"):
                (annotated / kind / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, annotated / "images" / part)
            label = folder / "data/labels" / part / f"{picture.stem}.txt"
            shutil.copy(label, annotated / "labels" / part)
            side = cv2.imread(str(picture)).shape[0]
            for line in label.read_text().splitlines():
                kind, x, y, w, h = (float(value) * (side if place else 1) for place, value in enumerate(line.split()))
                corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                rows.append(
                    [f"images/{part}/{picture.name}", patient, names[int(kind)], *(f"{v:.2f}" for v in corners)]
                )
                box = [corners[0], corners[1], w, h]
                found.append({"image_id": picture.stem, "category_id": int(kind), "bbox": box, "score": 0.9})
    with open(annotated / "boxes.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "patient", "class", "x0", "y0", "x1", "y1"], *rows])
    parts = {"train": "images/train", "val": "images/val"}
    (annotated / "data.yaml").write_text(yaml.safe_dump({**parts, "names": names}), encoding="utf-8")
    val = {path.stem for path in pictures if path.parent.name == "val"}
    (folder / "theirs.json").write_text(json.dumps([box for box in found if box["image_id"] in val]))


def write_series(folder: Path, grey: np.ndarray, stems: Sequence[str]) -> None:
    """Write one series of sagittal DICOM slices, 4 mm apart."""
    from pydicom.uid import generate_uid

    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    for number, stem in enumerate(stems):
        make_dicom(folder / f"{stem}.dcm", grey, position=(4.0 * number, 0, 0), InstanceNumber=number + 1, **uids)


def write_study(folder: Path, grey: np.ndarray) -> None:
    """Write a folder of files that cannot be used, beside a series that can."""
    import nibabel

    write_series(folder, grey, ("IM1", "IM2", "IM3"))
    colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    make_dicom(folder / "SC_rgb.dcm", np.zeros((8, 8), np.uint8), bits=8, **colours)
    make_dicom(folder / "rtplan.dcm", grey, Modality="RTPLAN", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.5")
    make_dicom(folder / "localizer.dcm", grey, orientation=AXIAL)
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6, 3), np.int16), np.eye(4)), folder / "four.nii.gz")
    labels = np.zeros((16, 16, 16), np.int16)
    for value in (1, 2, 3):
        labels[4:12, 4:12, 4 * value : 4 * value + 3] = value
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), folder / "t2_seg.nii.gz")
