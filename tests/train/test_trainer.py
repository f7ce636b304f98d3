"""`DistillTrainer`: what a run does, what its weights do, and what it refuses."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import unwrap_model

from meddet_yolo import DistillTrainer, MedDet
from tests.train._runs import (
    STUDENT,
    Settings,
    begin_epoch,
    first_batch,
    plain_modules,
    prepared,
    run_files,
    student_gradient,
)

# What a run does -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_plain_student(settings: Settings, teachers: list[str], messages: list[str]) -> None:
    before = {path: Path(path).read_bytes() for path in teachers}
    model = MedDet(STUDENT)
    states: dict[str, dict[str, Tensor]] = {}

    def remember(trainer: DistillTrainer) -> None:
        states["start"] = {
            f"{i}.{k}": v.clone()
            for i, t in enumerate(trainer.teachers)
            for k, v in t._network.layers.state_dict().items()
        }

    model.add_callback("on_train_start", remember)
    model.train(teachers=teachers, **settings)
    trainer = model.trainer
    after = {f"{i}.{k}": v for i, t in enumerate(trainer.teachers) for k, v in t._network.layers.state_dict().items()}
    assert states["start"].keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in states["start"].items()), "a teacher changed"
    assert before == {path: Path(path).read_bytes() for path in teachers}

    folder = run_files(settings)
    assert sorted(p.name for p in (folder / "weights").iterdir()) == ["best.pt", "last.pt"]
    for name in ("best.pt", "last.pt"):
        assert not any("distill" in module for module in plain_modules(folder / "weights" / name))
    plain = MedDet(STUDENT).model
    trained = YOLO(folder / "weights" / "best.pt").model
    assert [type(m) for m in trained.modules()] == [type(m) for m in plain.modules()]

    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert len(rows) == 2
    columns = {name.strip() for name in rows[0]}
    for name in ("dist_loss", "adv_loss", "guard_loss", "dist_share", "adv_share", "disc_acc", "fused_ev"):
        assert f"train/{name}" in columns
        assert f"val/{name}" not in columns
    for level in (3, 4, 5):
        shares = [float(rows[-1][f"distill/w_p{level}_t{t}"]) for t in (0, 1)]
        assert sum(shares) == pytest.approx(1.0, abs=1e-3)
    assert {"distill/ev_t0", "distill/ev_t1", "distill/disc_loss", "val/box_loss"} <= columns
    assert all(float(row["train/dist_loss"]) > 0 for row in rows)
    progress = next(line for line in messages if "Epoch" in line and "dist_loss" in line)
    for name in ("adv_loss", "guard_loss", "dist_share", "adv_share", "disc_acc", "fused_ev"):
        assert name in progress
    report = [line for line in messages if "explained variance" in line]
    assert len(report) == 2
    assert all(f"P{level}" in report[0] for level in (3, 4, 5))


@pytest.mark.slow("starts a process")
def test_the_student_predicts_where_the_package_is_not_imported_by_name(
    settings: Settings, teachers: list[str], tiny_data: Path
) -> None:
    MedDet(STUDENT).train(teachers=teachers, **{**settings, "epochs": 1})
    image = next((tiny_data.parent / "images" / "val").iterdir())
    code = f"""
        from ultralytics import YOLO
        result = YOLO({str(run_files(settings) / "weights" / "best.pt")!r}).predict({str(image)!r}, imgsz=64)[0]
        print("boxes", tuple(result.boxes.data.shape)[1])
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert "boxes 6" in run.stdout, run.stderr


def test_without_teachers_it_is_the_stock_trainer(settings: Settings) -> None:
    trained = {}
    for name, trainer in (("stock", DetectionTrainer), ("ours", DistillTrainer)):
        model = YOLO("yolo11n.yaml")
        model.train(trainer=trainer, **{**settings, "name": name, "epochs": 1})
        trained[name] = model.model.state_dict()
    assert all(torch.equal(v, trained["ours"][k]) for k, v in trained["stock"].items())


def test_the_student_starts_equal_with_and_without_teachers(settings: Settings, teachers: list[str]) -> None:
    alone, distilled = prepared(settings), prepared(settings, teachers=teachers)
    theirs = unwrap_model(distilled.model).state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in unwrap_model(alone.model).state_dict().items())


def test_loaded_models_can_be_teachers(settings: Settings, teachers: list[str]) -> None:
    given = YOLO(teachers[0])
    model = MedDet(STUDENT)
    model.train(teachers=[given, YOLO(teachers[1]).model], **{**settings, "epochs": 1})
    assert len(model.trainer.teachers) == 2
    assert model.trainer.args.teachers == ["<model 0>", "<model 1>"]


@pytest.mark.parametrize("student", ["meddet-n.yaml", "yolov8n.yaml"])
def test_other_students(settings: Settings, teachers: list[str], student: str) -> None:
    model = MedDet(student)
    model.train(teachers=teachers[0], **{**settings, "epochs": 1})
    assert float(model.trainer.loss_items["dist_loss"]) > 0


def test_multi_scale_accumulation_and_own_teacher_size(settings: Settings, teachers: list[str]) -> None:
    model = MedDet(STUDENT)
    model.train(teachers=teachers, **{**settings, "multi_scale": 0.5, "nbs": 16, "teacher_imgsz": [96, 64]})
    assert model.trainer.accumulate > 1
    assert torch.isfinite(model.trainer.loss_items["dist_loss"])


def test_early_stopping_completes_the_run(settings: Settings, teachers: list[str]) -> None:
    model = MedDet(STUDENT)

    def stall(trainer: DistillTrainer) -> None:
        trainer.best_fitness = 0.5
        trainer.validate = lambda: (trainer.metrics, 0.5)

    model.add_callback("on_train_start", stall)
    model.train(teachers=teachers[0], **{**settings, "epochs": 9, "patience": 1})
    rows = list(csv.DictReader((run_files(settings) / "results.csv").open()))
    assert len(rows) < 9
    assert not list((run_files(settings) / "weights").glob("distill*"))


# What the weights do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["dist_weight", "adv_weight"])
def test_the_gradient_changes_with_each_weight(settings: Settings, teachers: list[str], weight: str) -> None:
    gradients = []
    for value in (0.5, 5.0):
        trainer = prepared(settings, teachers=teachers, distill_warmup=0, **{weight: value})
        torch.manual_seed(0)
        gradients.append(student_gradient(trainer, first_batch(trainer)))
    assert not torch.allclose(*gradients, rtol=1e-3, atol=0)


@pytest.mark.parametrize("changed", [0, 1])
def test_the_gradient_changes_with_each_teacher(settings: Settings, teachers: list[str], changed: int) -> None:
    trainer = prepared(settings, teachers=teachers, distill_warmup=0)
    batch = first_batch(trainer)
    before = student_gradient(trainer, batch)
    again = student_gradient(trainer, batch)
    with torch.no_grad():
        for parameter in trainer.teachers[changed]._network.layers[0].parameters():
            parameter.mul_(-1.5)
    batch["teacher_feats"] = [teacher(batch["img"]).feats for teacher in trainer.teachers]
    after = student_gradient(trainer, batch)
    noise = (before - again).abs().max()
    assert (before - after).abs().max() > 10 * noise + 1e-6


def test_the_student_gets_no_gradient_from_the_guard(settings: Settings, teachers: list[str]) -> None:
    gradients = []
    for value in (0.1, 10.0):
        trainer = prepared(settings, teachers=teachers, distill_warmup=0, guard_weight=value)
        gradients.append(student_gradient(trainer, first_batch(trainer)))
    torch.testing.assert_close(*gradients)


def test_weights_warm_up(settings: Settings, teachers: list[str]) -> None:
    trainer = prepared(settings, teachers=teachers, distill_warmup=4, epochs=20, distill_stop=0)
    batch, terms = first_batch(trainer), []
    for epoch in (0, 1, 2, 4, 8):
        begin_epoch(trainer, epoch)
        student_gradient(trainer, batch)
        terms.append(float(trainer.loss_items["dist_loss"]))
    assert terms[0] == 0
    assert terms[1] == pytest.approx(terms[3] / 4, rel=0.05)
    assert terms[2] == pytest.approx(terms[3] / 2, rel=0.05)
    assert terms[4] == pytest.approx(terms[3], rel=0.05)


def test_distillation_modules_learn_and_are_in_the_optimizer(settings: Settings, teachers: list[str]) -> None:
    trainer = prepared(settings, teachers=teachers, distill_warmup=0)
    assert trainer.session is not None
    in_optimizer = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert all(id(p) in in_optimizer for p in trainer.session.parameters())
    discriminators = [p for n, p in trainer.session.methods.named_parameters() if "discriminators" in n]
    assert discriminators and not any(id(p) in in_optimizer for p in discriminators)
    before = {k: v.clone() for k, v in trainer.session.methods.named_parameters()}
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.01
    loss, trainer.loss_items = trainer.model(first_batch(trainer))
    loss.sum().backward()
    trainer.optimizer_step()
    same = [k for k, v in trainer.session.methods.named_parameters() if torch.equal(v, before[k])]
    assert not same, f"these never learn: {same}"


@pytest.mark.parametrize("optimizer", ["auto", "SGD", "MuSGD", "RMSprop"])
def test_every_optimizer_takes_the_distillation_modules(
    settings: Settings, teachers: list[str], optimizer: str
) -> None:
    trainer = prepared(settings, teachers=teachers, distill_warmup=0, optimizer=optimizer)
    groups = [group for group in trainer.optimizer.param_groups if group["param_group"] == "distill"]
    assert len(groups) == 1
    assert groups[0]["initial_lr"] == trainer.args.lr0
    student_gradient(trainer, first_batch(trainer))
    trainer.optimizer_step()
    assert all(torch.isfinite(p).all() for p in trainer.session.methods.parameters())  # type: ignore[union-attr]


def test_drowning_is_warned_of_once(settings: Settings, teachers: list[str], messages: list[str]) -> None:
    MedDet(STUDENT).train(teachers=teachers, dist_weight=1000.0, distill_warmup=0, **settings)
    warnings = [line for line in messages if "may drown" in line]
    assert len(warnings) == 1
    assert "dist_weight=1000" in warnings[0]


def test_the_detection_guard_trains(settings: Settings, teachers: list[str]) -> None:
    trainer = prepared(settings, teachers=teachers, guard="detection", distill_warmup=0)
    plain = prepared(settings)
    batch = first_batch(trainer)
    student_gradient(trainer, batch)
    assert float(trainer.loss_items["guard_loss"]) > 0
    assert all(p.grad is not None for p in trainer.session.parameters())  # type: ignore[union-attr]
    plain.model(dict(batch))
    for ours, theirs in zip(trainer.model.buffers(), plain.model.buffers(), strict=True):
        if ours.dtype.is_floating_point:  # the statistics are those of the student's maps alone
            assert torch.equal(ours, theirs)
    assert all(m.momentum > 0 for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d))


# Bad input -----------------------------------------------------------------------------------------------------------


def refused(settings: Settings, error: type[Exception], match: str, **extra: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        MedDet(STUDENT).train(**{**settings, **extra})
    assert "\n" not in str(caught.value).strip()
    assert not list(Path(settings["project"]).glob("**/*.pt"))


def test_bad_teachers_are_refused(settings: Settings, teachers: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(Path(teachers[0]).read_bytes()[:1000])
    refused(settings, FileNotFoundError, "missing.pt", teachers=["missing.pt"])
    refused(settings, Exception, "broken.pt", teachers=[str(broken)])
    refused(settings, ValueError, "distill_model", teachers=teachers, distill_model=teachers[0])
    refused(settings, ValueError, "teacher_imgsz", teachers=teachers, teacher_imgsz=[64])


def test_unknown_keys_name_the_nearest(settings: Settings, teachers: list[str]) -> None:
    with pytest.raises(SyntaxError, match="dist_weight"):
        MedDet(STUDENT).train(teachers=teachers, dist_wieght=1.0, **settings)


def other_classes(path: str, tmp_path: Path, names: dict[int, str]) -> str:
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["model"].names = names
    renamed = tmp_path / "renamed.pt"
    torch.save(checkpoint, renamed)
    return str(renamed)


def test_other_classes_of_the_same_number_are_refused(settings: Settings, teachers: list[str], tmp_path: Path) -> None:
    refused(settings, ValueError, "renamed.pt", teachers=[other_classes(teachers[0], tmp_path, {0: "cat", 1: "dog"})])


def copied_data(data: Path, target: Path, edit: Callable[[Path], None]) -> str:
    shutil.copytree(data.parent, target, ignore=shutil.ignore_patterns("*.cache"))
    for label in (target / "labels" / "train").glob("*.txt"):
        edit(label)
    text = (target / data.name).read_text().splitlines()
    (target / data.name).write_text("\n".join(line for line in text if not line.startswith("path:")))
    return str(target / data.name)


def test_bad_data_is_refused(settings: Settings, teachers: list[str], tiny_data: Path, tmp_path: Path) -> None:
    data = copied_data(tiny_data, tmp_path / "range", lambda p: p.write_text("7 0.5 0.5 0.1 0.1"))
    refused(settings, Exception, "7", teachers=teachers, data=data)
    data = copied_data(tiny_data, tmp_path / "empty", lambda p: p.write_text(""))
    refused(settings, ValueError, "No boxes", teachers=teachers, data=data)
    one = sorted((tiny_data.parent / "labels" / "train").glob("*.txt"))[0].name
    data = copied_data(
        tiny_data, tmp_path / "one", lambda p: p.write_text("7 0.5 0.5 0.1 0.1") if p.name == one else None
    )
    refused(settings, ValueError, "class 7 is out of range, expected 0 to 1", teachers=teachers, data=data)


def test_levels_that_cannot_be_matched(settings: Settings, tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    path = tmp_path / "coarse.pt"
    model = DetectionModel("yolov8n-p6.yaml", nc=2, verbose=False)
    head = model.model[-1]
    head.f, head.nl = head.f[-1:], 1  # only the level of stride 64
    torch.save({"model": model.half(), "train_args": {}}, path)
    refused(settings, ValueError, "strides", teachers=[str(path)])


@pytest.mark.parametrize(("size", "levels"), [(None, [0, 1, 2]), (128, [1, 2, 2]), (32, [0, 0, 1])])
def test_levels_are_matched_at_the_teachers_own_size(
    settings: Settings, teachers: list[str], size: int | None, levels: list[int]
) -> None:
    trainer = prepared(settings, teachers=teachers[0], teacher_imgsz=size)
    method = trainer.session.methods["meddet"]  # type: ignore[union-attr]
    assert method._levels == [levels]
    aligned = [teacher[0].conv.in_channels for teacher in method.align]  # type: ignore[union-attr, index]
    assert aligned == [trainer.teachers[0].channels[i] for i in levels]


def test_another_teacher_size_is_a_remedy(settings: Settings, teachers: list[str]) -> None:
    refused(settings, ValueError, "no counterpart.*teacher_imgsz", teachers=teachers[0], teacher_imgsz=256)
    prepared(settings, teachers=teachers[0], teacher_imgsz=128)
