"""A run that is interrupted after any epoch and resumed is the run that was not, to the last bit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml
from ultralytics.nn.tasks import yaml_model_load

from meddet_yolo import DistillTrainer

Settings = dict[str, Any]


class Interrupted(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def settings(tiny_data: Path, tmp_path: Path) -> Settings:
    narrow = {**yaml_model_load("yolo26n.yaml"), "scales": {"n": [0.33, 0.125, 1024]}}  # its criterion has a schedule
    (tmp_path / "yolo26n.yaml").write_text(yaml.safe_dump(narrow))
    return {
        "model": str(tmp_path / "yolo26n.yaml"),
        "data": str(tiny_data),
        "imgsz": 64,
        "epochs": 4,
        "batch": 2,
        "nbs": 8,  # gradients of four batches, of which an epoch has three: some wait when it ends
        "device": "cpu",
        "optimizer": "SGD",
        "warmup_epochs": 1,
        "close_mosaic": 1,
        "mixup": 0.2,
        "multi_scale": 0.5,
        "mri_noise": 0.5,
        "plots": False,
        "exist_ok": True,
        "verbose": False,
        "project": str(tmp_path),
    }


class Watched(DistillTrainer):
    """The trainer with workers on a CPU too, where Ultralytics takes none, and its state as training leaves it."""

    processes = 0
    end: dict[str, Any]

    def _setup_train(self) -> None:
        self.args.workers = self.processes
        super()._setup_train()

    def final_eval(self) -> None:
        self.end = self._state()
        super().final_eval()


def train(settings: Settings, processes: int, stops: tuple[int, ...] = (), resume: Path | None = None) -> Watched:
    """Train; a run that is interrupted in the middle of each of the epochs given is resumed."""
    overrides = {**settings, "resume": str(resume)} if resume else settings

    def stop(trainer: Watched) -> None:
        if stops and trainer.epoch == stops[0]:
            raise Interrupted

    trainer = Watched(overrides=overrides)
    trainer.processes = processes
    trainer.add_callback("on_train_batch_end", stop)
    if not stops:
        trainer.train()
        return trainer
    with pytest.raises(Interrupted):
        trainer.train()
    trainer.train_loader.close()
    torch.rand(7)  # whatever else the process draws
    return train(settings, processes, stops[1:], trainer.last)


def rows(trainer: Watched) -> list[dict[str, str]]:
    with trainer.csv.open() as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def ends_alike(settings: Settings, processes: int) -> Watched:
    """Train undisturbed and interrupted in every later epoch, and compare the ends; return the second run."""
    whole = train({**settings, "name": "whole"}, processes)
    parted = train({**settings, "name": "parted"}, processes, stops=(1, 2, 3))
    assert parted.start_epoch == 3
    different = [key for key in whole.end if key != "epoch" and not same(whole.end[key], parted.end[key])]
    assert not different
    assert whole.ema.updates == parted.ema.updates
    assert rows(whole) == rows(parted) and len(rows(whole)) == 4
    return parted


@pytest.mark.parametrize(
    ("taught", "unlabelled", "processes"),
    [
        (True, False, 0),
        *(
            pytest.param(*case, marks=pytest.mark.slow("trains"))
            for case in ((False, False, 0), (True, True, 0), (False, False, 2), (True, False, 2), (True, True, 2))
        ),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    settings: Settings,
    tiny_teachers: list[Path],
    tiny_data: Path,
    tmp_path: Path,
    processes: int,
    taught: bool,
    unlabelled: bool,
) -> None:
    if taught:
        settings["teachers"] = [str(tiny_teachers[0])]
    if unlabelled:  # five images, of which an epoch takes six: they begin anew in the middle of it
        (tmp_path / "more").mkdir()
        for file in sorted((tiny_data.parent / "images" / "train").iterdir())[:5]:
            image = cv2.flip(cv2.imread(str(file)), 0)
            cv2.imwrite(str(tmp_path / "more" / file.name), image)
        settings |= {"unlabelled": str(tmp_path / "more"), "distill": ["meddet", "response"]}
    parted = ends_alike(settings, processes)
    assert sorted(p.name for p in parted.wdir.iterdir()) == ["best.pt", "last.pt"]


@pytest.mark.slow("trains")
def test_a_run_of_another_method_too(settings: Settings, tiny_teachers: list[Path]) -> None:
    ends_alike({**settings, "teachers": [str(tiny_teachers[0])], "distill": "l2"}, 0)


@pytest.mark.slow("trains")
def test_a_student_that_has_inherited_too(settings: Settings, tiny_teachers: list[Path], tmp_path: Path) -> None:
    narrow = {**yaml_model_load("yolo11n.yaml"), "scales": {"n": [0.50, 0.125, 1024]}}
    (tmp_path / "yolo11n.yaml").write_text(yaml.safe_dump(narrow))
    inheriting = {**settings, "model": str(tmp_path / "yolo11n.yaml"), "teachers": [str(tiny_teachers[1])]}
    random = train({**inheriting, "name": "none", "epochs": 1, "inherit": "none", "close_mosaic": 0}, 0)
    heir = train({**inheriting, "name": "first", "epochs": 1, "close_mosaic": 0}, 0)
    assert not same(random.end["student"], heir.end["student"])  # it has inherited
    ends_alike(inheriting, 0)


def test_another_seed_is_another_run(settings: Settings) -> None:
    ends = [train({**settings, "name": f"s{seed}", "seed": seed, "epochs": 2}, 0).end for seed in (0, 1)]
    assert not same(ends[0]["student"], ends[1]["student"])
