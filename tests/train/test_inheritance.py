"""`inherit=`: who a student inherits from, when, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from meddet_yolo import DistillTrainer, MedDet, load_detector
from meddet_yolo.distill.inherit import InheritError, inherit

STUDENT = "meddet11-p.yaml"


@pytest.fixture
def settings(tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        **{"model": STUDENT, "data": str(tiny_data), "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"},
        **{"plots": False, "epochs": 1, "project": str(tmp_path), "name": "run", "optimizer": "SGD", "seed": 1},
    }


@pytest.fixture
def teachers(tiny_teachers: list[Path]) -> list[str]:
    return [str(path) for path in tiny_teachers]  # a YOLOv8 and a YOLO11, the latter wider than the student


def started(settings: dict[str, Any], **extra: Any) -> dict[str, torch.Tensor]:
    """The student's weights before the first step."""
    trainer = DistillTrainer(overrides={**settings, **extra})
    trainer.setup_model()
    return trainer.model.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_auto_takes_the_teacher_of_the_students_family(
    settings: dict[str, Any], teachers: list[str], messages: list[str]
) -> None:
    given = started(settings, teachers=teachers)
    (line,) = [line for line in messages if "inherited" in line]
    assert "of the parameters, from" in line
    torch.manual_seed(7)
    expected = DetectionModel(MedDet(STUDENT).model.yaml, nc=2, verbose=False)
    report = inherit(expected, load_detector(teachers[1]))
    assert report.share > 0.9
    taken = [k for k in given if not any(k in names for names in report.left.values())]
    assert len(taken) == report.tensors
    assert all(torch.equal(given[k], expected.state_dict()[k]) for k in taken)


def test_none_starts_as_without_teachers(settings: dict[str, Any], teachers: list[str], messages: list[str]) -> None:
    assert equal(started(settings, teachers=teachers, inherit="none"), started(settings))
    assert not [line for line in messages if "inherited" in line]


def test_auto_without_a_relative_says_so(settings: dict[str, Any], teachers: list[str], messages: list[str]) -> None:
    assert equal(started(settings, teachers=teachers[:1]), started(settings))
    assert any("no teacher is of the student's family" in line for line in messages)


def test_a_named_checkpoint_needs_no_teachers(settings: dict[str, Any], teachers: list[str]) -> None:
    assert equal(started(settings, inherit=teachers[1]), started(settings, teachers=teachers))


def test_pretrained_weights_come_first(settings: dict[str, Any], teachers: list[str], messages: list[str]) -> None:
    started(settings, teachers=teachers, pretrained=teachers[1])
    assert not [line for line in messages if "inherited" in line]
    with pytest.raises(ValueError, match=r"inherit=.* and pretrained=.* choose one"):
        DistillTrainer(overrides={**settings, "inherit": teachers[1], "pretrained": teachers[1]})


@pytest.mark.parametrize(
    ("student", "source", "error", "message"),
    [
        (STUDENT, "missing.pt", FileNotFoundError, "checkpoint missing.pt does not exist"),
        (STUDENT, 0, InheritError, "of another family|another layout|family"),
        ("meddet11-n.yaml", 1, InheritError, "narrower"),
        (STUDENT, 3.5, ValueError, "inherit must be auto, none or the path of a checkpoint, got 3.5"),
    ],
)
def test_bad_sources(
    settings: dict[str, Any],
    teachers: list[str],
    student: str,
    source: Any,
    error: type[Exception],
    message: str,
) -> None:
    source = teachers[source] if isinstance(source, int) else source
    with pytest.raises(error, match=message) as caught:
        started({**settings, "model": student}, inherit=source)
    assert "\n" not in str(caught.value)


def test_a_whole_run_goes_on_from_what_was_inherited(settings: dict[str, Any], teachers: list[str]) -> None:
    options = {k: v for k, v in settings.items() if k != "model"}
    model = MedDet(STUDENT)
    starts: list[dict[str, torch.Tensor]] = []
    model.add_callback(
        "on_train_start", lambda t: starts.append({k: v.clone() for k, v in t.model.state_dict().items()})
    )
    model.train(inherit=teachers[1], **options)
    reference = started(settings, inherit=teachers[1])
    assert all(torch.equal(starts[0][k], reference[k]) for k in reference)


def test_load_inherits_and_training_starts_there(settings: dict[str, Any], teachers: list[str]) -> None:
    model = MedDet(STUDENT)
    assert model.load(teachers[1], inherit=True) is model
    loaded = {k: v.clone() for k, v in model.model.state_dict().items()}
    starts: list[dict[str, torch.Tensor]] = []
    model.add_callback(
        "on_train_start", lambda t: starts.append({k: v.clone() for k, v in t.model.state_dict().items()})
    )
    model.train(**{k: v for k, v in settings.items() if k != "model"})
    same = [k for k in loaded if loaded[k].shape == starts[0][k].shape]
    assert len(same) > 0.9 * len(loaded)
    assert [k for k in same if not torch.equal(loaded[k], starts[0][k])] == []
    with pytest.raises(InheritError):
        MedDet(STUDENT).load(teachers[0], inherit=True)
