from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from meddet_yolo import MedDet

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("amp", [True, "bf16", False])
def test_a_run_on_a_gpu(tmp_path: Path, tiny_data: Path, tiny_teachers: list[Path], amp: bool | str) -> None:
    model = MedDet("meddet-n.yaml")
    model.train(
        data=str(tiny_data),
        teachers=[str(path) for path in tiny_teachers],
        imgsz=64,
        batch=4,
        epochs=3,
        device=0,
        amp=amp,
        workers=0,
        plots=False,
        project=str(tmp_path),
        name="run",
    )
    trainer = model.trainer
    assert all(p.is_cuda for p in trainer.session.methods.parameters())
    assert all(torch.isfinite(p).all() for p in trainer.session.methods.parameters())
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").open()))
    assert len(rows) == 3
    assert all(float(row["train/dist_loss"]) > 0 for row in rows[1:])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_a_run_on_two_gpus(tmp_path: Path, tiny_data: Path, tiny_teachers: list[Path]) -> None:
    model = MedDet("meddet-n.yaml")
    teachers = [str(path) for path in tiny_teachers]
    settings = {"imgsz": 64, "batch": 4, "epochs": 2, "workers": 0, "plots": False, "project": str(tmp_path)}
    model.train(data=str(tiny_data), teachers=teachers, device="0,1", name="run", **settings)
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").open()))
    assert float(rows[-1]["train/dist_loss"]) > 0
