"""Safe mode is no loss: stock checkpoints of all families load in it, and those of this package."""

from __future__ import annotations

import shutil
import zipfile
from copy import copy
from pathlib import Path

import pytest
import torch
from ultralytics.nn import tasks
from ultralytics.utils import DEFAULT_CFG_DICT

from meddet_yolo import MedDet, registry
from meddet_yolo.registry.plain_pickle import read_plain

FAMILIES = [
    "yolov3-tiny.yaml",
    "yolov5n.yaml",
    "yolov5n6.yaml",
    "yolov6n.yaml",
    "yolov8n.yaml",
    "yolov8n-ghost.yaml",
    "yolov8n-p2.yaml",
    "yolov8n-cls.yaml",
    "yolov8n-obb.yaml",
    "yolov8n-pose.yaml",
    "yolov8n-rtdetr.yaml",
    "yolov8n-seg.yaml",
    "yolov9t.yaml",
    "yolov9c-seg.yaml",
    "yolov10n.yaml",
    "yolo11n.yaml",
    "yolo11n-cls.yaml",
    "yolo11n-obb.yaml",
    "yolo11n-pose.yaml",
    "yolo11n-seg.yaml",
    "yolo12n.yaml",
    "yolo26n.yaml",
    "yolo26n-obb.yaml",
    "yolo26n-pose.yaml",
    "yolo26n-seg.yaml",
    "rtdetr-l.yaml",
    "meddet-n.yaml",
    "meddet11-p.yaml",
    "gfl-shufflenetv2.yaml",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_stock_checkpoints_of_all_families_load(name: str, tmp_path: Path) -> None:
    config = tasks.yaml_model_load(name)
    for row in config["backbone"]:
        if row[2] == "Backbone":  # whose weights would be fetched
            row[3] = [row[3][0], {"pretrained": False}]
    if "scales" in config and not name.startswith("yolo12"):  # whose widths must be multiples of 32
        config["scales"] = {key: [depth, 0.125, 1024] for key, (depth, *_) in config["scales"].items()}
    task = tasks.guess_model_task(config) or "detect"
    kinds = {"segment": tasks.SegmentationModel, "pose": tasks.PoseModel, "obb": tasks.OBBModel}
    kind = {**kinds, "classify": tasks.ClassificationModel, "detect": tasks.DetectionModel}[task]
    if config["head"][-1][2] == "RTDETRDecoder":
        kind = tasks.RTDETRDetectionModel
    model = kind(config, verbose=False)
    model.args, model.task = {**DEFAULT_CFG_DICT, "task": task}, task
    path = tmp_path / "any.pt"
    torch.save({"epoch": -1, "model": model.half(), "ema": None, "train_args": model.args}, path)
    read_plain(path)  # does not ask for another reader
    loaded = MedDet(path)
    assert loaded.task == task
    want, got = model.float().state_dict(), loaded.model.state_dict()
    assert want.keys() == got.keys() and all(torch.equal(want[key], got[key]) for key in want)


def test_a_checkpoint_that_is_compressed_or_cut_is_refused(tmp_path: Path) -> None:
    sound = tmp_path / "sound.pt"
    torch.save({"model": torch.nn.Linear(3, 3)}, sound)
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(sound) as given, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        for name in given.namelist():
            made.writestr(name, given.read(name))
    with pytest.raises(ValueError, match=r"bomb.pt was not written by torch"):
        registry.load_detector(bomb)
    for end in (200, len(sound.read_bytes()) // 2):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(sound.read_bytes()[:-end])
        with pytest.raises(ValueError, match=r"cannot be read|is damaged"):
            MedDet(cut)


def test_a_model_of_another_family_keeps_our_guards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rtdetr-l.yaml is no YOLO detector"):
        MedDet("rtdetr-l.yaml")
    stock = tasks.RTDETRDetectionModel("yolov8n-rtdetr.yaml", verbose=False)
    torch.save({"model": stock, "train_args": {"task": "detect"}}, tmp_path / "other.pt")
    model = MedDet(tmp_path / "other.pt")
    (tmp_path / "other.pt").unlink()
    assert type(model).__name__ == "RTDETR"
    with pytest.raises(ValueError, match="is an RT-DETR; teachers= distils into YOLO detectors"):
        model.train(data="x.yaml", teachers=["a.pt"], project=tmp_path)
    with pytest.raises(ValueError, match="workers=-1"):
        model.val(workers=-1)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_whose_parts_overlap_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as archive:
        large = max(archive.infolist(), key=lambda entry: entry.file_size)
        name, offset = large.filename, large.header_offset
    shutil.copy(tmp_path / "sound.pt", tmp_path / "again.pt")
    with zipfile.ZipFile(tmp_path / "again.pt", "a") as archive:  # the same bytes under another name
        again = copy(archive.getinfo(name))
        again.filename, again.header_offset = name[:-1] + "9", offset
        archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"again.pt was not written by torch: what it holds overlaps"):
        registry.load_detector(tmp_path / "again.pt")
