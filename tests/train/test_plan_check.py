"""`check=True`: what a training would be, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.utils import YAML

from meddet_yolo import MedDet
from meddet_yolo.cli import main
from meddet_yolo.train.plan_check import PlanCheck, check_training


@pytest.fixture
def options(tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        **{"data": str(tiny_data), "imgsz": 64, "batch": 2, "workers": 0, "device": "cpu", "epochs": 5},
        **{"project": str(tmp_path / "runs"), "name": "run"},
    }


def test_the_answer(options: dict[str, Any], tiny_data: Path, tiny_teachers: list[Path], tmp_path: Path) -> None:
    teachers = [str(path) for path in tiny_teachers]
    found = MedDet("meddet11-p.yaml").train(check=True, teachers=teachers, teacher_imgsz=128, **options)
    assert isinstance(found, PlanCheck)
    folder = tiny_data.parent
    rows = [row for file in (folder / "labels" / "train").glob("*.txt") for row in file.read_text().splitlines()]
    names = YAML.load(tiny_data)["names"]
    assert found.train.boxes == {name: sum(row.split()[0] == str(i) for row in rows) for i, name in names.items()}
    assert found.train.images == len(list((folder / "images" / "train").iterdir()))
    assert found.batches == -(-found.train.images // 2) and found.batch == 2 and found.epochs == 5
    assert found.methods == ["meddet"] and "of the parameters" in found.inherited
    assert "128 px; levels /8 from /8" in found.teachers[1] and found.teachers[1].startswith(teachers[1])
    assert found.step_s > 0 and found.val_s > 0 and found.memory_mb > 50
    assert found.folder == tmp_path / "runs" / "run"
    assert not (tmp_path / "runs").exists()  # nothing is written


def test_the_model_stays_as_it_is(options: dict[str, Any], tiny_teachers: list[Path], tmp_path: Path) -> None:
    model = MedDet(tiny_teachers[0])
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    found = check_training(model, options)
    after = model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert found.methods == [] and found.inherited == "" and "inherits   nothing" in str(found)


def test_what_deserves_a_look(options: dict[str, Any], tiny_data: Path, tmp_path: Path) -> None:
    """A class without boxes, and a batch of more images than there are."""
    data = YAML.load(tiny_data)
    data["names"] = {**data["names"], 2: "tumour"}
    data["path"] = str(tiny_data.parent)
    YAML.save(tmp_path / "d.yaml", data)
    found = check_training(MedDet("meddet11-p.yaml"), {**options, "data": str(tmp_path / "d.yaml"), "batch": 32})
    assert "no box of class 'tumour' to learn from" in found.warnings
    assert "no box of class 'tumour' to validate with" in found.warnings
    assert "batch=32 is more than there are images" in found.warnings
    assert "look at    no box of class 'tumour' to learn from" in str(found)


def test_the_command_prints_it(options: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [f"{key}={value}" for key, value in options.items()]
    assert main(["train", "model=meddet11-p.yaml", *arguments, "check=True"]) == 0
    lines = [line.split(maxsplit=1)[0] for line in capsys.readouterr().out.splitlines() if line]
    assert (
        lines[-11:] == ["model", "inherits", "learns", "train", "val", "device", "step", "epoch", "all", "writes"][-11:]
    )
    assert not (tmp_path / "runs").exists()


def test_refusals_are_those_of_a_training(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"{key}={value}" for key, value in options.items()] + ["check=True"]
    assert main(["train", "model=meddet11-p.yaml", *arguments, "teachers=missing.pt"]) == 1
    assert "missing.pt" in capsys.readouterr().err
    assert main(["train", "model=yolo11n-seg.yaml", *arguments]) == 1
    with pytest.raises(ValueError, match="has not begun"):
        check_training(MedDet("meddet11-p.yaml"), {**options, "resume": True})
    assert not (tmp_path / "runs").exists()
