from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from tests.train._ddp_worker import digest

PARTS = ("student", "ema", "distiller", "discriminator", "optimizers")


def ddp_settings(tmp_path: Path, tiny_data: Path, tiny_teachers: list[Path]) -> dict[str, Any]:
    return {
        "model": "meddet11-n.yaml",
        "data": str(tiny_data),
        "teachers": [str(path) for path in tiny_teachers],
        "imgsz": 64,
        "batch": 4,
        "epochs": 2,
        "nbs": 8,
        "device": "cpu",
        "optimizer": "AdamW",
        "plots": False,
        "val": False,
        "project": str(tmp_path),
        "name": "run",
        "exist_ok": True,
    }


def train_in_two_processes(settings: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Train in two gloo processes and return what each reports."""
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone",
         str(Path(__file__).parent / "_ddp_worker.py"), json.dumps(settings), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow("trains, in processes")
def test_two_processes_distil_and_stay_equal(tmp_path: Path, tiny_data: Path, tiny_teachers: list[Path]) -> None:
    settings = ddp_settings(tmp_path, tiny_data, tiny_teachers)
    first, second = train_in_two_processes(settings, tmp_path)
    for part in PARTS:
        assert first[part] == second[part], f"the {part}'s parameters differ between ranks"
    assert first["losses"] != second["losses"], "both ranks saw the same batches"
    for losses in (first["losses"], second["losses"]):
        assert all(step["dist_loss"] > 0 and step["adv_loss"] > 0 for step in losses[1:])
    assert first["disc_steps"] == second["disc_steps"] > 1  # one of them with a loss that is NaN in one process
    assert (tmp_path / "run" / "weights" / "last.pt").exists()


@pytest.mark.slow("trains, in processes")
def test_two_processes_share_images_without_labels(tmp_path: Path, tiny_data: Path, tiny_teachers: list[Path]) -> None:
    (tmp_path / "more").mkdir()
    for file in (tiny_data.parent / "images" / "train").iterdir():
        cv2.imwrite(str(tmp_path / "more" / file.name), cv2.flip(cv2.imread(str(file)), 0))
    settings = ddp_settings(tmp_path, tiny_data, tiny_teachers) | {"unlabelled": str(tmp_path / "more")}
    first, second = train_in_two_processes(settings, tmp_path)
    for part in PARTS:
        assert first[part] == second[part], f"the {part}'s parameters differ between ranks"
    seen = [set(report["unlabelled_seen"]) for report in (first, second)]
    assert len(seen[0]) == len(seen[1]) == 2 and not seen[0] & seen[1]


@pytest.mark.slow
def test_two_processes_resume_alike(tmp_path: Path, tiny_data: Path, tiny_teachers: list[Path]) -> None:
    settings = {**ddp_settings(tmp_path, tiny_data, tiny_teachers), "epochs": 3, "interrupt": True}
    for report in train_in_two_processes(settings, tmp_path):
        assert report["start_epoch"] == 0
    new = tmp_path / "moved"
    (tmp_path / "run").rename(new)
    last = new / "weights" / "last.pt"
    state = torch.load(new / "weights" / "distill-epoch0.pt", weights_only=True)

    first, second = train_in_two_processes({"model": str(last), "resume": str(last), "device": "cpu"}, tmp_path)
    assert first["start_epoch"] == second["start_epoch"] == 1
    assert first["restored"] == second["restored"]
    opponents = {k: v for k, v in state["distiller"].items() if ".discriminators." in k}
    assert first["restored"]["discriminator"] == digest(opponents.values())
    assert first["restored"]["distiller"] == digest(v for k, v in state["distiller"].items() if k not in opponents)
    moments = [v for o in ("optimizer", "disc_optimizer") for s in state[o]["state"].values() for v in s.values()]
    assert first["restored"]["optimizers"] == digest(moments)
    for part in PARTS:
        assert first[part] == second[part] != first["restored"][part], part
    assert first["losses"] != second["losses"], "both ranks saw the same batches"
    assert not (tmp_path / "run").exists()
    assert len((new / "results.csv").read_text().splitlines()) == 4  # the header and three epochs


@pytest.mark.slow("trains, in processes")
@pytest.mark.parametrize("distill", ["meddet", "l2"])
def test_two_processes_resumed_are_two_that_were_not_interrupted(
    tmp_path: Path, tiny_data: Path, tiny_teachers: list[Path], distill: str
) -> None:
    settings = ddp_settings(tmp_path, tiny_data, tiny_teachers)
    # Gradients of three batches, of which an epoch has two: some wait when it ends.
    settings |= {"distill": distill, "epochs": 4, "nbs": 12, "warmup_epochs": 0, "close_mosaic": 1}
    whole = train_in_two_processes({**settings, "name": "whole"}, tmp_path)
    train_in_two_processes({**settings, "name": "parted", "interrupt": True}, tmp_path)
    last = tmp_path / "parted" / "weights" / "last.pt"
    resumed = train_in_two_processes({"model": str(last), "resume": str(last), "device": "cpu"}, tmp_path)
    for one, other in zip(whole, resumed, strict=True):
        assert other["start_epoch"] == 1
        assert one["losses"][-len(other["losses"]) :] == other["losses"]
        assert {part: one[part] for part in PARTS} == {part: other[part] for part in PARTS}
