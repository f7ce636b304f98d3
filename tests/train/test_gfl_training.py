"""Every GFL detector learns: a short training on drawn spines, by Ultralytics' loop with our loss."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from meddet_yolo import MedDet
from meddet_yolo.evaluate.info import PAPER_MODELS
from meddet_yolo.phantom import generate_phantom

SHORT: dict[str, Any] = {
    "imgsz": 96,
    "batch": 2,
    "nbs": 2,
    "device": "cpu",
    "optimizer": "AdamW",
    "lr0": 5e-4,
    "warmup_epochs": 0,
    "mosaic": 0.0,
    "fliplr": 0.0,
    "scale": 0.0,
    "translate": 0.0,
    "workers": 0,
    "plots": False,
    "exist_ok": True,
    "amp": False,
    "verbose": False,
}


@pytest.fixture(scope="module")
def spines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few drawn images; the model is validated on those it has learnt."""
    data = Path(generate_phantom(out=tmp_path_factory.mktemp("spines") / "data", patients=8, seed=0, imgsz=96))
    text = data.read_text().replace("val: images/val", "val: images/train")
    data.write_text(text)
    assert "val: images/train" in text
    return data


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").open()))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER_MODELS)
def test_learns(name: str, spines: Path, tmp_path: Path) -> None:
    epochs = 6 if "resnet" in name else 12
    model = MedDet(f"{name}.yaml")
    model.train(data=str(spines), epochs=epochs, project=str(tmp_path), name="run", val=False, **SHORT)
    history = rows(tmp_path / "run")
    losses = [sum(float(row[f"train/{part}_loss"]) for part in ("box", "dfl", "cls")) for row in history]
    assert losses[-1] < 0.9 * losses[0]
    best = YOLO(tmp_path / "run" / "weights" / "best.pt")
    assert type(best.model) is DetectionModel
    metrics = best.val(data=str(spines), imgsz=96, batch=2, device="cpu", plots=False, verbose=False, workers=0)
    assert metrics.box.map > 0


def saved(name: str, data: Path, path: Path) -> Path:
    from ultralytics.utils import YAML

    names = YAML.load(data)["names"]
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=len(names), verbose=False)
    model.names = dict(names)
    torch.save({"model": model.half(), "ema": None, "train_args": {"task": "detect"}}, path)
    return path


@pytest.fixture(scope="module")
def teacher(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("gfl-efficientnet-b0", tiny_data, tmp_path_factory.mktemp("teacher") / "gfl.pt")


@pytest.mark.slow("trains")
def test_distils_on_five_levels_and_resumes(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    settings = {**SHORT, "imgsz": 64, "data": str(tiny_data), "project": str(tmp_path), "name": "run", "epochs": 2}

    def stop(trainer: Any) -> None:
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    model = MedDet("gfl-shufflenetv2.yaml")
    model.add_callback("on_model_save", stop)
    with pytest.raises(KeyboardInterrupt):
        model.train(teachers=[str(teacher)], **settings)
    last = tmp_path / "run" / "weights" / "last.pt"
    MedDet(str(last)).train(resume=True)
    history = rows(tmp_path / "run")
    assert len(history) == 2
    for row in history:
        assert all(float(row[f"train/{part}_loss"]) > 0 for part in ("box", "cls", "dfl", "dist", "adv"))
        assert {f"distill/w_p{level}_t0" for level in (3, 4, 5, 6, 7)} <= {k.strip() for k in row}
    student = YOLO(last).model
    assert type(student) is DetectionModel
    assert sum(p.numel() for p in student.parameters()) == 8_819_503  # nothing of the teacher or the distiller


@pytest.mark.parametrize(("student", "levels"), [("meddet11-n", 3), ("gfl-shufflenetv2", 5)])
def test_guard_of_the_head_works_with_both_families(
    student: str, levels: int, teacher: Path, tiny_data: Path, tmp_path: Path, messages: list[str]
) -> None:
    """A YOLO student of a GFL teacher, and the guard that asks the student's own head and loss."""
    model = MedDet(f"{student}.yaml")
    settings = {**SHORT, "imgsz": 64, "data": str(tiny_data), "project": str(tmp_path), "name": "run", "epochs": 1}
    model.train(teachers=[str(teacher)], guard="detection", **settings)
    (row,) = rows(tmp_path / "run")
    assert float(row["train/guard_loss"]) > 0
    assert sum(k.strip().startswith("distill/w_p") for k in row) == levels
    (line,) = (message for message in messages if "teacher:" in message)
    assert ("no level of the student matches /4, /64," in line) == (levels == 3)


def test_the_stock_trainer_trains_it_too(tiny_data: Path, tmp_path: Path) -> None:
    """Frozen statistics stay, weights move, and losses of training and validation are GFL's."""
    model = YOLO("gfl-shufflenetv2.yaml")
    model.train(data=str(tiny_data), epochs=1, project=str(tmp_path), name="run", **{**SHORT, "imgsz": 64, "batch": 4})
    (row,) = rows(tmp_path / "run")
    for split in ("train", "val"):
        assert all(float(row[f"{split}/{part}_loss"]) > 0 for part in ("box", "cls", "dfl"))


def test_mixed_precision_of_the_loss_on_a_cpu(tiny_data: Path) -> None:
    model = DetectionModel("gfl-shufflenetv2.yaml", nc=2, verbose=False).train()
    # P7's convolution must see more than one pixel: torch 2.15 leaves part of the weight's gradient in bfloat16
    # uninitialised where padding surrounds a single one.
    batch = {"img": torch.rand(2, 3, 160, 160), "batch_idx": torch.tensor([0.0, 1.0]), "cls": torch.zeros(2, 1)}
    batch["bboxes"] = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.4, 0.6, 0.3, 0.3]])
    with torch.autocast("cpu", torch.bfloat16):
        loss, items = model.loss(batch)
    assert (
        loss.dtype == torch.float32 and loss.isfinite().all() and all(v.dtype == torch.float32 for v in items.values())
    )
    loss.sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in grads)


@pytest.mark.slow("trains, in processes")
def test_two_processes_stay_equal(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    settings = {**SHORT, "model": "gfl-shufflenetv2.yaml", "data": str(tiny_data), "teachers": [str(teacher)]}
    settings |= {"imgsz": 64, "batch": 4, "epochs": 2, "val": False, "project": str(tmp_path), "name": "run"}
    worker = Path(__file__).parent / "_ddp_worker.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(worker)]
    done = subprocess.run(
        [*command, json.dumps(settings), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["student"] == second["student"] and first["distiller"] == second["distiller"]
    assert first["losses"] != second["losses"]  # each has seen other images
