from __future__ import annotations

from pathlib import Path

import pytest
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

from meddet_yolo import DistillTrainer, MedDet


def test_it_is_a_yolo_that_picks_our_trainer_for_detection() -> None:
    model = MedDet("meddet-n.yaml")
    assert isinstance(model, YOLO)
    assert model._smart_load("trainer") is DistillTrainer
    assert issubclass(DistillTrainer, DetectionTrainer)
    stock = YOLO("yolo11n.yaml").task_map
    assert {k: v for k, v in model.task_map.items() if k != "detect"} == {
        k: v for k, v in stock.items() if k != "detect"
    }


def test_other_tasks_keep_their_trainers() -> None:
    assert MedDet("yolo11n-seg.yaml")._smart_load("trainer").__name__ == "SegmentationTrainer"


def test_a_trained_checkpoint_opens(tiny_teachers: list[Path]) -> None:
    model = MedDet(tiny_teachers[0])
    assert set(model.names.values()) == {"herniation", "normal"}


def test_tuning_with_teachers_is_refused(tiny_teachers: list[Path]) -> None:
    with pytest.raises(ValueError, match="leave the teachers out"):
        MedDet("meddet11-n.yaml").tune(teachers=[str(path) for path in tiny_teachers])
