"""What tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train._runs import Settings


@pytest.fixture
def settings(tmp_path: Path, tiny_data: Path) -> Settings:
    return {
        "data": str(tiny_data),
        "imgsz": 64,
        "batch": 4,
        "epochs": 2,
        "nbs": 4,
        "device": "cpu",
        "optimizer": "AdamW",
        "lr0": 0.001,
        "warmup_epochs": 0,
        "plots": False,
        "project": str(tmp_path / "runs"),
        "name": "run",
        "exist_ok": True,
        "verbose": False,
    }


@pytest.fixture
def teachers(tiny_teachers: list[Path]) -> list[str]:
    return [str(path) for path in tiny_teachers]
