"""Teachers of other classes and kinds, from the command line to the student's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, PoseModel, SegmentationModel
from ultralytics.utils import DEFAULT_CFG_DICT, YAML
from ultralytics.utils.checks import check_yaml

from meddet_yolo.cli import main

EIGHT = dict(enumerate(["circle", "square", "triangle", "star", "ring", "disc", "cross", "arrow"]))
Train = Callable[..., int]


def tiny_checkpoint(path: Path, names: dict[int, str], build: Any = DetectionModel, layout: str = "yolo11") -> str:
    """Save a tiny model of Ultralytics' with random weights as a training would."""
    torch.manual_seed(0)
    config = YAML.load(check_yaml(f"{layout}.yaml"))
    config.update(scales={"n": [0.33, 0.125, 1024]}, scale="n")
    model = build(config, nc=len(names), verbose=False)
    model.names, model.task = names, config.get("task", "detect")
    args = {**DEFAULT_CFG_DICT, "task": model.task, "model": f"{layout}.yaml", "imgsz": 64}
    torch.save({"epoch": -1, "ema": None, "model": model.half().eval(), "train_args": args}, path)
    return str(path)


@pytest.fixture
def train(tiny_data: Path, tmp_path: Path) -> Train:
    """Run `meddet train` for an epoch of a tiny student; returns the exit code."""

    def run(**options: Any) -> int:
        given = {
            **{"model": "meddet11-p.yaml", "data": tiny_data, "imgsz": 64, "batch": 4, "epochs": 1, "device": "cpu"},
            **{"workers": 0, "plots": False, "project": tmp_path / "runs", "name": "run", "exist_ok": True, **options},
        }
        return main(["train", *(f"{key}={value}" for key, value in given.items())])

    return run


def line_of(messages: list[str], name: str) -> str:
    return next(line for line in messages if "teacher:" in line and name in line)


def student_is_plain(tmp_path: Path) -> bool:
    model = YOLO(tmp_path / "runs" / "run" / "weights" / "best.pt").model
    return {type(m).__module__.partition(".")[0] for m in model.modules()} <= {"torch", "ultralytics", "meddet_yolo"}


def test_eight_other_classes_teach_with_features(train: Train, tmp_path: Path, messages: list[str]) -> None:
    teacher = tiny_checkpoint(tmp_path / "eight.pt", EIGHT)
    assert train(teachers=teacher) == 0
    assert "features only: has other classes (circle, square" in line_of(messages, "eight.pt")
    assert student_is_plain(tmp_path)


def test_eight_classes_teach_with_predictions_where_they_are_mapped(
    train: Train, tmp_path: Path, messages: list[str], tiny_data: Path
) -> None:
    name = YAML.load(tiny_data)["names"][0]
    teacher = tiny_checkpoint(tmp_path / "eight.pt", EIGHT)
    assert train(teachers=teacher, distill="l2", teacher_classes="{disc:0,7:0}") == 0
    assert f"disc or arrow for {name}, nothing for" in line_of(messages, "eight.pt")
    saved = YAML.load(tmp_path / "runs" / "run" / "args.yaml")
    assert saved["teacher_classes"] == "{disc:0,7:0}"


@pytest.mark.parametrize(("layout", "build"), [("yolo11-seg", SegmentationModel), ("yolo11-pose", PoseModel)])
def test_the_detection_part_of_other_tasks_teaches(
    train: Train, tmp_path: Path, messages: list[str], tiny_data: Path, layout: str, build: Any
) -> None:
    names = YAML.load(tiny_data)["names"]
    teacher = tiny_checkpoint(tmp_path / f"{layout}.pt", names, build, layout)
    assert train(teachers=teacher, distill="l2") == 0
    assert line_of(messages, layout).endswith("features and predictions")
    assert student_is_plain(tmp_path)


@pytest.mark.slow
def test_a_backbone_of_timm_teaches_and_a_run_with_it_resumes(
    train: Train, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    teacher = tiny_checkpoint(tmp_path / "eight.pt", EIGHT)
    stop_after(monkeypatch, 1)
    assert train(teachers=f"timm:test_vit@w.pth,{teacher}", epochs=2) == 130
    assert "(64@/8, 64@/16, 64@/32), features only: has no dense ones" in line_of(messages, "timm:test_vit@")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path.parent)  # the file's path was made absolute
    last = tmp_path / "runs" / "run" / "weights" / "last.pt"
    assert main(["train", f"model={last}", "resume=True"]) == 0
    rows = (tmp_path / "runs" / "run" / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    assert student_is_plain(tmp_path)


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Interrupt a training when an epoch has been saved, as a person would."""
    from meddet_yolo import DistillTrainer

    save = DistillTrainer.save_model

    def saved(trainer: Any) -> Any:
        done = save(trainer)
        if trainer.epoch + 1 == epochs:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(DistillTrainer, "save_model", saved)


def test_a_detector_of_torchvision_teaches(train: Train, tmp_path: Path, messages: list[str]) -> None:
    from torchvision.models import get_model

    name = "fasterrcnn_mobilenet_v3_large_fpn"
    torch.save(get_model(name, weights=None, weights_backbone=None).state_dict(), tmp_path / "w.pth")
    assert train(teachers=f"torchvision:{name}@{tmp_path / 'w.pth'}") == 0
    assert "(256@/8, 256@/16, 256@/32), features only" in line_of(messages, name)
    assert student_is_plain(tmp_path)


def test_the_plan_says_what_a_teacher_serves_with(train: Train, tmp_path: Path, capsys: Any) -> None:
    teacher = tiny_checkpoint(tmp_path / "eight.pt", EIGHT)
    assert train(teachers=teacher, check=True) == 0
    out = capsys.readouterr().out
    assert "8 classes, read at 64 px; levels /8 from /8" in out and "; features only: has other classes (circle" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill": "l2"}, "teacher_classes can map"),
        ({"distill": "l2", "teacher_classes": "{dics:0}"}, "has no class 'dics'"),
        ({"teacher_classes": "disc"}, "teacher_classes must map"),
        ({"teachers": "timm:no_such"}, "timm has no such model"),
        ({"teachers": "tim:resnet18"}, "did you mean timm:?"),
        ({"teachers": "torchvision:fcos_resnet50_fpn@none.pth"}, "there is no file "),
    ],
)
def test_mistakes_are_one_line(
    train: Train, tmp_path: Path, capsys: Any, options: dict[str, Any], message: str
) -> None:
    assert train(**{"teachers": tiny_checkpoint(tmp_path / "eight.pt", EIGHT), **options}) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("meddet: error: ") and message in error
