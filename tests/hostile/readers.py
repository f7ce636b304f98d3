"""Every reader of files, with the sound files that its mutants are made of."""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom

from tests.dicom_files import make_dicom, make_enhanced
from tests.hostile.made import nifti1, nifti2
from tests.hostile.mutants import Seed

PIXELS = np.add.outer(np.arange(32), np.arange(24)).astype(np.uint16) * 17
SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
_COMPRESSED = ("MR_small_jp2klossless.dcm", "MR_small_RLE.dcm", "JPEG-LL.dcm", "emri_small_jpeg_2k_lossless.dcm")
_COMPRESSED += ("MR_small_jpeg_ls_lossless.dcm", "image_dfl.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm")


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read.

    Attributes:
        seeds: Makes sound files in a folder.
        read: Reads a mutant, which lies in a folder of its own; returns the reason where it is refused by a value.
        refusals: Exceptions by which it may refuse; their message must say why.
    """

    seeds: Callable[[Path], Sequence[Seed]]
    read: Callable[[Path], str | None]
    refusals: tuple[type[Exception], ...] = ()


def _dicom_fields(content: bytes) -> list[tuple[int, int]]:
    """Return where lengths and values of the elements of an explicit little-endian file stand."""
    fields, at = [], 132
    while at + 8 <= len(content):
        vr = content[at + 4 : at + 6]
        long = vr in (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"UC", b"UR")
        fields.append((at + 8, 4) if long else (at + 6, 2))
        length = int.from_bytes(content[at + 8 : at + 12], "little") if long else fields[-1][0]
        length = length if long else int.from_bytes(content[at + 6 : at + 8], "little")
        at += 12 if long else 8
        if vr == b"SQ" or length > len(content):
            continue  # into it
        if 0 < length < 200:
            fields.append((at, length))
        at += length
    return fields


def _dicom_seeds(folder: Path) -> list[Seed]:
    files = [
        make_dicom(folder / "plain.dcm", PIXELS, PatientBirthDate="19700101", WindowCenter=300, WindowWidth=500),
        make_dicom(folder / "frames.dcm", np.stack([PIXELS] * 4), RescaleSlope=2.0, RescaleIntercept=-5.0),
        make_enhanced(folder / "enhanced.dcm", np.stack([PIXELS] * 3), [(i, 0.0, 0.0) for i in range(3)]),
    ]
    seeds = [Seed(path.read_bytes(), ".dcm", _dicom_fields(path.read_bytes())) for path in files]
    shipped = [SHIPPED / name for name in _COMPRESSED if (SHIPPED / name).is_file()]
    small = [path.read_bytes() for path in shipped if path.stat().st_size < 200_000]
    return seeds + [Seed(content, ".dcm", _dicom_fields(content)) for content in small]


_NIFTI = [(40 + 2 * i, 2) for i in range(8)] + [(70, 2), (72, 2), (108, 4), (112, 4), (116, 4), (252, 2), (254, 2)]
_NIFTI += [(76 + 4 * i, 4) for i in range(8)] + [(280 + 4 * i, 4) for i in range(12)] + [(0, 4)]
_NIFTI_2 = [(12, 2), (14, 2), (168, 8), (176, 8), (184, 8)] + [(16 + 8 * i, 8) for i in range(8)]
_NIFTI_2 += [(104 + 8 * i, 8) for i in range(8)] + [(0, 4)]


def _nifti_seeds(folder: Path) -> list[Seed]:
    return [
        Seed(nifti1(folder / "a.nii", (12, 20, 16)).read_bytes(), ".nii", _NIFTI),
        Seed(nifti1(folder / "b.nii.gz", (12, 20, 16)).read_bytes(), ".nii.gz", _NIFTI, packed="gzip"),
        Seed(nifti2(folder / "c.nii", (8, 12, 10)).read_bytes(), ".nii", _NIFTI_2),
    ]


def _read_volume(path: Path) -> str | None:
    from meddet_yolo.imaging.search import find_volumes
    from meddet_yolo.imaging.volumes import Skipped

    found = find_volumes(path, "all")
    reasons = [skipped.reason for skipped in found.skipped]
    for volume in found.volumes:
        reasons += [item.reason for item in volume.read() if isinstance(item, Skipped)]
    return reasons[0] if reasons else None


def _picture_seeds(folder: Path) -> list[Seed]:
    grey = (PIXELS % 256).astype(np.uint8)
    seeds = []
    for suffix, image in (
        (".png", grey),
        (".jpg", grey),
        (".bmp", grey),
        (".tif", PIXELS),
        (".webp", grey),
        (".png", PIXELS),
    ):
        content = cv2.imencode(suffix, image)[1].tobytes()
        fields = (
            [(16, 4), (20, 4), (24, 1), (25, 1), (8, 4), (33, 4)] if suffix == ".png" else [(18, 4), (22, 4), (2, 4)]
        )
        seeds.append(Seed(content, suffix, fields))
    return seeds


def _read_picture(path: Path) -> str | None:
    from meddet_yolo.data.convert.pixels import read_picture
    from meddet_yolo.data.convert.records import Item

    read_picture(Item(path))
    return None


def _read_mask(path: Path) -> str | None:
    from meddet_yolo.data.convert.masks import mask_boxes, read_labels

    mask_boxes(read_labels(path))
    return None


def _mask_seeds(folder: Path) -> list[Seed]:
    mask = np.zeros((32, 24), np.uint8)
    mask[4:9, 4:9], mask[20:30, 3:7] = 1, 2
    return [Seed(cv2.imencode(".png", m)[1].tobytes(), ".png", [(16, 4), (20, 4), (24, 1)]) for m in (mask, PIXELS)]


def _text(suffix: str, *texts: str) -> Callable[[Path], list[Seed]]:
    return lambda _: [Seed(text.encode(), suffix, text=True) for text in texts]


def _read_labels(path: Path) -> str | None:
    from meddet_yolo.data.labels import label_problem

    return label_problem([path], 2)


def _annotations(kind: str) -> Callable[[Path], str | None]:
    def read(path: Path) -> str | None:
        from meddet_yolo.data.convert.formats import read_source

        if not (path.parent / "a.png").exists():
            cv2.imwrite(str(path.parent / "a.png"), np.zeros((32, 24), np.uint8))
        _, collection = read_source(path, kind)
        return str(collection.problems[0]) if collection.problems else None

    return read


def _read_list(path: Path) -> str | None:
    from meddet_yolo.imaging.search import find_volumes

    make_dicom(path.parent / "a.dcm", PIXELS)
    lines = path.read_bytes().split(b"\n")  # folders elsewhere on this machine would be searched, as a user may want
    path.write_bytes(b"\n".join(line for line in lines if b".." not in line and not line.strip().startswith(b"/")))
    found = find_volumes(path)
    return str(found.skipped[0]) if found.skipped else None


def _report_seeds(folder: Path) -> list[Seed]:
    from meddet_yolo.imaging.structured_report import ReportedBox, write_structured_report
    from meddet_yolo.imaging.volumes import open_volume

    source = make_dicom(folder / "a.dcm", PIXELS, PatientName="A", PatientID="1")
    reference = open_volume(source).parts[0].frame.reference  # type: ignore[union-attr]
    boxes = [ReportedBox(reference, (1.0, 2.0, 9.0, 12.0), "disc", 0.5)] * 2
    content = write_structured_report(folder / "sr.dcm", [source], boxes).read_bytes()
    return [Seed(content, ".dcm", _dicom_fields(content))]


def _read_report(path: Path) -> str | None:
    from meddet_yolo.imaging.structured_report import read_structured_report

    read_structured_report(path)
    return None


def _cache_seeds(folder: Path) -> list[Seed]:
    made = make_dicom(folder / "images" / "a.dcm", PIXELS)
    _cached(made.parent)
    return [Seed((folder / "labels.slices" / "slices.json").read_bytes(), ".json", text=True)]


def _cached(images: Path) -> Any:
    from meddet_yolo.imaging.slice_cache import cache_slices

    return cache_slices(
        sorted(images.glob("*.dcm")),
        label_folder=lambda folder: folder.parent / "labels",
        fallback=images.parent / "fallback",
        slices="all",
    )


def _read_cache(path: Path) -> str | None:
    images, target = path.parent / "images", path.parent / "labels.slices"
    if not images.exists():
        make_dicom(images / "a.dcm", PIXELS)
        target.mkdir()
    path.replace(target / "slices.json")
    found = _cached(images)
    outside = [picture for picture in found.labels if picture.parent != target]
    assert len(found.labels) == 1, found
    assert not outside, outside
    return None


def _read_manifest(path: Path) -> str | None:
    from meddet_yolo.data.convert.write import earlier_files

    folder = path.parent / "out"
    folder.mkdir(exist_ok=True)
    path.replace(folder / "convert.json")
    earlier_files(folder)
    return None


_HEADER = {
    "task": "detect",
    "names": {0: "disc", 1: "hernia"},
    "imgsz": [64, 64],
    "stride": 32,
    "meddet_runtime": "rtx",
}


def _engine_seeds(folder: Path) -> list[Seed]:
    header = json.dumps(_HEADER).encode()
    content = struct.pack("<i", len(header)) + header + bytes(range(200))
    return [Seed(content, ".engine", [(0, 4)]), Seed(content, ".engine", text=True)]


def _read_engine(path: Path) -> str | None:
    from meddet_yolo.trt.engine_file import read_engine

    read_engine(path)
    return None


def _read_sidecar(path: Path) -> str | None:
    from meddet_yolo.trt.engine_file import read_engine, read_sidecar

    model = path.with_name("model.onnx")
    model.write_bytes(bytes(100))
    path.replace(path.with_name("model.onnx.json"))
    read_sidecar(model)
    try:
        read_engine(model)
    except ValueError as error:
        return str(error)
    return None


def _checkpoint_seeds(folder: Path) -> list[Seed]:
    import torch
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG_DICT, YAML
    from ultralytics.utils.checks import check_yaml

    config = YAML.load(check_yaml("yolov8.yaml"))
    config.update(scales={"n": [0.33, 0.0625, 64]}, scale="n")
    model = DetectionModel(config, nc=2, verbose=False)
    model.names, model.task = {0: "a", 1: "b"}, "detect"
    target = io.BytesIO()
    args = {**DEFAULT_CFG_DICT, "task": "detect", "model": "yolov8.yaml", "imgsz": 64}
    torch.save({"epoch": -1, "ema": None, "model": model.half().eval(), "train_args": args}, target)
    return [Seed(target.getvalue(), ".pt", packed="zip")]


def _read_checkpoint(path: Path) -> str | None:
    from meddet_yolo.registry import load_detector

    load_detector(path)
    return None


def _label_cache_seeds(folder: Path) -> list[Seed]:
    import pickle

    boxes = np.array([[0.5, 0.5, 0.1, 0.2]], np.float32)
    label = {
        "im_file": "a.png",
        "shape": (32, 24),
        "cls": np.zeros((1, 1), np.float32),
        "bboxes": boxes,
        "segments": [],
    }
    label |= {"keypoints": None, "normalized": True, "bbox_format": "xywh"}
    cache = {"labels": [label], "hash": "ab" * 32, "results": (1, 0, 0, 0, 1), "msgs": [], "version": "1.0.3"}
    target = io.BytesIO()
    np.save(target, cache)
    return [Seed(target.getvalue(), ".cache"), Seed(pickle.dumps(cache), ".cache")]


def _read_label_cache(path: Path) -> str | None:
    from ultralytics.data import utils

    import meddet_yolo.registry

    meddet_yolo.registry.register()
    utils.load_dataset_cache_file(path)
    return None


_YAML = "path: .\ntrain: .\nval: .\ntest: [.]\nnames: {0: disc, 1: hernia}\n"
_CSV = (
    "image,x0,y0,x1,y1,class,patient,split,width,height\na.png,1,2,9,12,disc,p1,train,24,32\na.png,,,,,,p2,val,24,32\n"
)
_COCO = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.png", "width": 24, "height": 32, "patient_id": "p1"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 8, 9], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "segmentation": [[1, 2, 8, 9, 3, 4]]},
        ],
        "categories": [{"id": 3, "name": "disc"}, {"id": 4, "name": "hernia"}],
    },
    indent=1,
)
_VOC = (
    '<?xml version="1.0" encoding="utf-8"?>\n<annotation><filename>a.png</filename><size><width>24</width>'
    "<height>32</height></size><object><name>disc</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax>"
    "<ymax>12</ymax></bndbox></object></annotation>"
)
_MANIFEST = json.dumps(
    {"made_by": "meddet convert", "arguments": {}, "complete": True, "files": ["images/train/a.png"]}
)
_USER = (ValueError, OSError)  # what the command line shows as it is

READERS: dict[str, Reader] = {
    "dicom": Reader(_dicom_seeds, _read_volume),
    "nifti": Reader(_nifti_seeds, _read_volume),
    "picture": Reader(_picture_seeds, _read_picture, (ValueError,)),
    "mask": Reader(_mask_seeds, _read_mask, (ValueError,)),
    "labels": Reader(_text(".txt", "0 0.5 0.5 0.1 0.2\n1 0.1 0.2 0.3 0.4 0.5 0.6\n"), _read_labels),
    "data YAML": Reader(
        _text(".yaml", _YAML, _YAML.replace("{0: disc, 1: hernia}", "[a, b]")), _annotations("yolo"), _USER
    ),
    "CSV": Reader(_text(".csv", _CSV, _CSV.replace(",", ";")), _annotations("csv"), _USER),
    "COCO": Reader(_text(".json", _COCO), _annotations("coco"), _USER),
    "VOC": Reader(_text(".xml", _VOC), _annotations("voc"), _USER),
    "list": Reader(_text(".txt", "a.dcm\n./a.dcm\n"), _read_list, (OSError, RuntimeError)),
    "report": Reader(_report_seeds, _read_report, (ValueError,)),
    "slice cache": Reader(_cache_seeds, _read_cache),
    "conversion": Reader(_text(".json", _MANIFEST), _read_manifest, (FileExistsError,)),
    "engine": Reader(_engine_seeds, _read_engine, (ValueError,)),
    "sidecar": Reader(
        _text(".json", json.dumps({**_HEADER, "sha256": "ab" * 32}, indent=1)), _read_sidecar, (ValueError,)
    ),
    "label cache": Reader(_label_cache_seeds, _read_label_cache, (ValueError,)),
    "checkpoint": Reader(_checkpoint_seeds, _read_checkpoint, (ValueError, TypeError)),
}


def seeds_of(name: str) -> list[Seed]:
    """Return the sound files of a reader."""
    with tempfile.TemporaryDirectory() as folder:
        return list(READERS[name].seeds(Path(folder)))
