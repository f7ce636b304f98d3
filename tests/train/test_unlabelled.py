"""Images without labels in a training: they reach the distillation terms and nothing else."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML

from meddet_yolo import DistillTrainer, cli
from meddet_yolo.train.plan_check import check_training

Settings = dict[str, Any]


@pytest.fixture
def settings(tmp_path: Path, tiny_data: Path, tiny_teachers: list[Path]) -> Settings:
    """A training with as many images without labels as labelled ones."""
    for file in (tiny_data.parent / "images" / "train").iterdir():
        (tmp_path / "more" / "images").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "more" / "images" / file.name), cv2.flip(cv2.imread(str(file)), 0))
    return {
        "model": "meddet11-n.yaml",
        "data": str(tiny_data),
        "teachers": [str(tiny_teachers[0])],
        "unlabelled": str(tmp_path / "more"),
        "distill": "response",
        "imgsz": 64,
        "batch": 4,
        "epochs": 2,
        "nbs": 4,
        "device": "cpu",
        "optimizer": "AdamW",
        "warmup_epochs": 0,
        "distill_warmup": 0,
        "plots": False,
        "project": str(tmp_path / "runs"),
        "name": "run",
        "exist_ok": True,
        "verbose": False,
    }


def prepared(settings: Settings, **extra: Any) -> DistillTrainer:
    """Return a trainer just before its first step."""
    trainer = DistillTrainer(overrides={**settings, **extra})
    trainer._setup_train()
    trainer.epoch = 0
    trainer.run_callbacks("on_train_epoch_start")
    trainer._model_train()
    return trainer


@pytest.mark.parametrize(("ratio", "images"), [(1.0, 8), (0.5, 6), (0.01, 5)])
def test_they_go_behind_the_labelled_ones(settings: Settings, ratio: float, images: int) -> None:
    trainer = prepared(settings, unlabelled_batch=ratio, multi_scale=0.5)
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    assert len(batch["img"]) == len(batch["im_file"]) == len(batch["ori_shape"]) == images
    assert int(batch["batch_idx"].max()) < 4
    assert all((Path(file).parent.parent.name == "more") == (i >= 4) for i, file in enumerate(batch["im_file"]))
    assert trainer.session is not None and trainer.session.labelled == 4


@pytest.mark.parametrize("model", ["meddet11-n.yaml", "yolo26n.yaml", "meddet-gfl-mobilenetv2.yaml"])
def test_the_detection_loss_is_that_of_the_labelled_images_alone(settings: Settings, model: str) -> None:
    if "gfl" in model:  # of five levels, which no YOLO has
        settings["teachers"] = [DetectionModel(model, nc=2, verbose=False)]
        settings["teachers"][0].names = YAML.load(settings["data"])["names"]
    trainer = prepared(settings, model=model, inherit="none")
    student = trainer.model.eval()  # statistics of the batch would tell one image of another
    criterion = student.criterion
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    student.model[-1].training = True  # its training output, of layers that stay as they are
    preds = student(batch["img"])
    swapped = {**batch, "img": batch["img"].clone()}
    swapped["img"][4:] = swapped["img"][4:].flip(2)
    loss, items = criterion(preds, batch)
    trainer.session.observe(swapped["img"], 4)
    other, others = criterion(student(swapped["img"]), swapped)
    terms = sum(name.endswith("_share") for name in items)
    assert torch.equal(loss[:-terms], other[:-terms])
    assert not torch.equal(loss[-terms:], other[-terms:])
    assert items["response_share"] != others["response_share"]


def test_the_gradient_of_a_weight_of_zero_is_that_of_the_labelled_images_alone(settings: Settings) -> None:
    trainer = prepared(settings, response_weight=0)
    student = trainer.model.eval()
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    student.model[-1].training = True
    loss, _ = student.criterion(student(batch["img"]), batch)
    image = batch["img"].clone().requires_grad_()
    trainer.session.observe(image.detach(), 4)
    student.criterion(student(image), batch)[0].sum().backward()
    assert image.grad[:4].abs().sum() > 0 and not image.grad[4:].any()
    assert loss[-1] == 0


def test_a_step_in_mixed_precision_is_finite(settings: Settings) -> None:
    trainer = prepared(settings, distill=["meddet", "response"])
    with torch.autocast("cpu", torch.bfloat16):
        batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
        loss, _ = trainer.model(batch)
    loss.sum().backward()
    assert trainer.session is not None
    trainer.session.step()
    gradients = [p.grad for p in (*trainer.model.parameters(), *trainer.session.parameters()) if p.grad is not None]
    assert loss.dtype == torch.float32 and gradients and all(torch.isfinite(g).all() for g in gradients)


def test_labels_beside_them_change_nothing(settings: Settings, tiny_data: Path, tmp_path: Path) -> None:
    with_labels = tmp_path / "labelled"
    shutil.copytree(tmp_path / "more", with_labels / "more")
    shutil.copytree(tiny_data.parent / "labels" / "train", with_labels / "more" / "labels")
    ends = []
    for folder in (tmp_path / "more", with_labels / "more"):
        trainer = DistillTrainer(overrides={**settings, "unlabelled": str(folder), "epochs": 1, "close_mosaic": 0})
        trainer.add_callback("on_train_epoch_end", lambda t: ends.append(t.model.state_dict()))
        trainer.train()
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_the_log_tells_their_shares_in_every_epoch(settings: Settings, tmp_path: Path) -> None:
    trainer = DistillTrainer(overrides={**settings, "distill": ["response", "cwd"], "close_mosaic": 1})
    trainer.train()
    with trainer.csv.open() as file:
        first, last = csv.DictReader(file)
    assert 0.5 <= float(first["distill/unlabelled_images"]) <= 0.7  # the epoch's second batch has two labelled ones
    assert 0 < float(first["distill/unlabelled_scores"]) < 1
    assert float(last["distill/unlabelled_images"]) == float(last["train/response_loss"]) == 0  # distillation is over


def test_without_distillation_in_the_last_epochs_they_are_not_read(settings: Settings) -> None:
    trainer = prepared(settings, close_mosaic=1)
    trainer.epoch = 1
    trainer.run_callbacks("on_train_epoch_start")
    trainer._close_dataloader_mosaic()
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    assert len(batch["img"]) == 4


@pytest.mark.parametrize(("methods", "named"), [(["ld", "cwd"], True), (["response"], False)])
def test_methods_that_read_labels_are_named(
    settings: Settings, methods: list[str], named: bool, messages: list[str]
) -> None:
    prepared(settings, distill=methods)
    assert any("ld reads labels and learns from labelled images only" in line for line in messages) == named


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"teachers": []}, "is learnt from by what teachers say of it, and there are none"),
        ({"unlabelled": "nowhere"}, "nowhere is not there"),
        ({"unlabelled_batch": 0}, "unlabelled_batch must be a number above 0"),
        ({"unlabelled": 3}, "unlabelled must be a folder"),
        ({"distill": ["fgd", "ld"]}, "is of no use: distill=fgd,ld reads labels"),
        ({"distill": "meddet", "foreground_weight": 0.5}, "is of no use: distill=meddet reads labels"),
        ({"rect": True}, "rect=True gives batches shapes of their own"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(
    settings: Settings, extra: Settings, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {**settings, **extra}
    texts = [f"{k}={str(v).replace(' ', '').replace(chr(39), '')}" for k, v in arguments.items()]
    assert cli.main(["train", *texts]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in line


def test_a_tainted_folder_trains_on_what_is_clean(
    settings: Settings, tiny_data: Path, tmp_path: Path, messages: list[str]
) -> None:
    copied = next((tiny_data.parent / "images" / "val").iterdir())
    shutil.copy(copied, tmp_path / "more" / "images" / "innocent.png")
    (tmp_path / "more" / "images" / "broken.png").write_bytes(copied.read_bytes()[:200])
    plan = check_training_of(settings)
    assert "6 images without labels; skipped 2: 1 cannot be read, 1 in val or test" in plan
    said = [line for line in messages if "unlabelled: skipped" in line]
    assert sorted(line.split("images/")[1].split(":")[0] for line in said) == ["broken.png", "innocent.png"]


def check_training_of(settings: Settings) -> str:
    from meddet_yolo import MedDet

    options = dict(settings)
    return str(check_training(MedDet(options.pop("model")), options))


@pytest.mark.parametrize(("model", "task"), [("yolo11n-seg.yaml", "segment"), ("yolo11n-pose.yaml", "pose")])
def test_students_of_other_tasks_are_refused_in_a_line(
    model: str, task: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"data={settings['data']}", f"teachers={settings['teachers'][0]}", "unlabelled=more"]
    assert cli.main(["train", f"model={model}", *arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert f"model={model} is for task '{task}'; teachers= distils into YOLO detectors" in lines[-1]
