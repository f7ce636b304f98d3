"""Runs that are killed, moved, fail to write, or repeat an epoch."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from ultralytics.utils.torch_utils import unwrap_model

from meddet_yolo import DistillTrainer, MedDet
from meddet_yolo.registry import load_detector
from tests.train._runs import STUDENT, Settings, plain_modules, prepared, run_files


def equal_states(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a.cpu(), b.cpu())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal_states, a, b))
    return bool(a == b)


def killed_run(settings: Settings, teachers: list[str]) -> Path:
    """Start a run in another process, which kills itself in the middle of its second epoch."""
    code = f"""
        import os, signal
        from meddet_yolo import MedDet
        model = MedDet({STUDENT!r})
        def die(trainer):
            if trainer.epoch == 1 and trainer.session._batch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        model.add_callback("on_train_batch_end", die)
        model.train(teachers={teachers!r}, **{settings!r})
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr[-3000:]
    return run_files(settings) / "weights" / "last.pt"


def test_kill_9_and_resume(settings: Settings, teachers: list[str], tmp_path: Path) -> None:
    copies = []
    for path in teachers:
        copies.append(tmp_path / Path(path).name)
        copies[-1].write_bytes(Path(path).read_bytes())
    last = killed_run({**settings, "epochs": 3}, [str(path) for path in copies])
    folder = last.parent
    assert sorted(p.name for p in folder.iterdir()) == ["best.pt", "distill-epoch0.pt", "last.pt"]
    assert not any("distill" in module for module in plain_modules(last))
    state = torch.load(folder / "distill-epoch0.pt", weights_only=True)

    moved = tmp_path / "elsewhere.pt"
    os.replace(copies[0], moved)
    with pytest.raises(FileNotFoundError, match=copies[0].name):
        MedDet(last).train(resume=True)
    with pytest.raises(ValueError, match="not the file that the run was started with"):
        MedDet(last).train(resume=True, teachers=[str(copies[1]), str(copies[1])])

    results = run_files(settings) / "results.csv"
    with results.open("a") as stream:  # as if it had been killed between logging an epoch and saving it
        stream.write(results.read_text().splitlines()[-1].replace("1,", "2,", 1) + "\n")

    model, restored = MedDet(last), {}

    def look(trainer: DistillTrainer) -> None:
        trainer.epoch = trainer.start_epoch
        restored.update(deepcopy(trainer._state()))

    model.add_callback("on_train_start", look)
    model.train(resume=True, teachers=[str(moved), str(copies[1])])
    assert restored.pop("epoch") == 1
    for part in ("student", "ema", "optimizer", "distiller", "disc_optimizer"):
        assert equal_states(state[part], restored[part]), f"{part} was not restored exactly"
    rows = list(csv.DictReader((run_files(settings) / "results.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert sorted(p.name for p in folder.iterdir()) == ["best.pt", "last.pt"]


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupted_run(settings: Settings, teachers: list[str]) -> Path:
    """Return the folder of a run that stopped in its second epoch of two."""
    model = MedDet(STUDENT)

    def stop(trainer: DistillTrainer) -> None:
        if trainer.epoch == 1:
            raise Interrupted

    model.add_callback("on_train_batch_end", stop)
    with pytest.raises(Interrupted):
        model.train(teachers=teachers, **settings)
    return run_files(settings)


@pytest.mark.parametrize("how", ["moved", "copied", "another save_dir"])
def test_a_run_goes_on_in_another_folder(interrupted_run: Path, tmp_path: Path, how: str) -> None:
    folder, new = interrupted_run, tmp_path / "elsewhere" / "new"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    extra = {}
    if how == "moved":
        new.parent.mkdir()
        folder.rename(new)
    elif how == "copied":
        shutil.copytree(folder, new)
    else:
        extra["save_dir"] = str(new)
    last = (folder if extra else new) / "weights" / "last.pt"
    MedDet(last).train(resume=True, **extra)
    rows = list(csv.DictReader((new / "results.csv").open()))
    assert [int(row["epoch"]) for row in rows] == ([2] if extra else [1, 2])
    assert sorted(p.name for p in (new / "weights").iterdir()) == ["best.pt", "last.pt"]
    if how == "moved":
        assert not folder.exists()
    else:
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_without_its_run_takes_the_side_car_beside_it(interrupted_run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(interrupted_run / "weights" / "last.pt", alone)
    with pytest.raises(FileNotFoundError, match=r"alone/distill-epoch0\.pt is missing"):
        MedDet(alone / "last.pt").train(resume=True)  # what lies in the run's folder may be of another run by now
    (interrupted_run / "weights" / "distill-epoch0.pt").rename(alone / "distill-epoch0.pt")
    MedDet(alone / "last.pt").train(resume=True)
    assert [int(row["epoch"]) for row in csv.DictReader((interrupted_run / "results.csv").open())] == [1, 2]


def test_teachers_are_known_by_what_was_loaded(
    settings: Settings, teachers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [shutil.copy(path, tmp_path) for path in teachers]
    trainer = prepared(settings, teachers=copies)
    expected = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in teachers]
    shutil.copy(copies[1], copies[0])
    Path(copies[1]).unlink()
    assert trainer._state()["teachers"] == expected
    names = trainer.distill_config.run.teachers
    trainer._files.check_same(expected, names)
    trainer._files.check_same(["", expected[1]], names)  # one that was given as a loaded model cannot be judged
    with pytest.raises(ValueError, match="not the file that the run was started with"):
        trainer._files.check_same(expected[::-1], names)

    def overwritten(name: str, **options: Any) -> Any:
        model = load_detector(name, **options)
        shutil.copy(teachers[1], name)
        return model

    shutil.copy(teachers[0], copies[0])
    monkeypatch.setattr("meddet_yolo.train.teacher_files.load_detector", overwritten)
    with pytest.raises(ValueError, match="was changed while it was being loaded"):
        prepared(settings, teachers=copies[0])


@pytest.mark.slow("trains, in a process")
def test_a_lost_side_car_is_named(settings: Settings, teachers: list[str]) -> None:
    last = killed_run(settings, teachers)
    (last.parent / "distill-epoch0.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"distill-epoch0\.pt is missing"):
        MedDet(last).train(resume=True)


def test_recovery_after_nan(settings: Settings, teachers: list[str], messages: list[str]) -> None:
    model = MedDet(STUDENT)
    poisoned: list[int] = []

    def poison(trainer: DistillTrainer) -> None:
        if trainer.epoch == 1 and not poisoned:
            poisoned.append(1)
            with torch.no_grad():
                for parameter in unwrap_model(trainer.model).model[16].parameters():
                    parameter.fill_(float("nan"))
                for parameter in trainer.session.methods.parameters():
                    parameter.fill_(float("nan"))

    model.add_callback("on_train_epoch_start", poison)
    model.train(teachers=teachers, **settings)
    assert any("recovering from last.pt" in line for line in messages)
    rows = list(csv.DictReader((run_files(settings) / "results.csv").open()))
    assert len(rows) == 2
    assert all(torch.isfinite(p).all() for p in model.trainer.session.methods.parameters())
    distilled = {k: float(v) for k, v in rows[1].items() if k.startswith("distill/")}
    assert not [k for k, v in distilled.items() if math.isnan(v)], "the epoch's means hold those of its lost attempt"
    assert model.trainer.session._batch == len(model.trainer.train_loader)


def test_an_epoch_that_is_tried_again_after_running_out_of_memory_counts_once(
    settings: Settings, teachers: list[str]
) -> None:
    model = MedDet(STUDENT)
    rises: list[float] = []

    def note(trainer: DistillTrainer) -> None:
        rises.append(float(trainer.loss_items["dist_loss"]))
        if len(rises) == 1:
            method = trainer.session.methods["meddet"]
            forward = method.forward

            def out_of_memory(*args: Any, **kwargs: Any) -> Any:
                method.forward = forward
                raise RuntimeError("CUDA out of memory")

            method.forward = out_of_memory

    model.add_callback("on_train_batch_end", note)
    model.train(teachers=teachers, **{**settings, "epochs": 1})
    trainer = model.trainer
    assert trainer.batch_size == settings["batch"] // 2
    assert trainer.session._batch == len(trainer.train_loader) == len(rises) - 1
    assert rises[0] == rises[1] == 0 < rises[2]  # the warm-up begins again with the epoch


def test_every_epoch_writes_the_same_columns(settings: Settings, teachers: list[str]) -> None:
    model = MedDet(STUDENT)
    model.train(teachers=teachers, **{**settings, "epochs": 3, "batch": 3, "nbs": 9})  # epoch 2 takes no step
    header, *rows = csv.reader((run_files(settings) / "results.csv").open())
    assert model.trainer.accumulate > len(model.trainer.train_loader)
    assert [len(row) for row in rows] == [len(header)] * 3
    losses = [float(row[header.index("distill/disc_loss")]) for row in rows]
    assert all(loss > 0 for loss in losses)
    for row in rows:
        assert all(0 <= float(v) < 1 for k, v in zip(header, row, strict=True) if k.startswith("lr/"))


@pytest.mark.slow("trains")
def test_a_failed_write_keeps_the_last_checkpoint(
    settings: Settings, teachers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MedDet(STUDENT)
    original = Path.write_bytes
    writes: list[Path] = []

    def full_disk(path: Path, data: bytes) -> int:
        if path.name.startswith("last") and len(writes) >= 1:
            original(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        if path.name.startswith("last"):
            writes.append(path)
        return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        model.train(teachers=teachers, **settings)
    monkeypatch.undo()
    last = run_files(settings) / "weights" / "last.pt"
    assert torch.load(last, weights_only=False)["epoch"] == 0
    MedDet(last).train(resume=True)
