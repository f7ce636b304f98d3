"""What tests of training share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from ultralytics.utils import LOGGER

from tests.train._runs import Settings


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What Ultralytics' logger says; it does not propagate to pytest's own collector."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


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
