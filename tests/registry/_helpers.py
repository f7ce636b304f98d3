"""A Python process of its own, configurations, and checkpoints as Ultralytics saves them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel


def python(code: str, **env: str) -> str:
    """Run code in a fresh process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def save(model: torch.nn.Module, path: Path, **extra: object) -> Path:
    args = {"imgsz": 64, "task": "detect", "model": "x.yaml"}
    torch.save({"model": model.half(), "ema": None, "train_args": args, **extra}, path)
    return path


def shipped_config() -> dict:
    return tasks.yaml_model_load("meddet-n.yaml")


# ---------------------------------------------------------------------------------------------------- weights


def stock_weights(name: str, nc: int, names: list[str] | None = None) -> DetectionModel:
    model = DetectionModel(name, nc=nc, verbose=False)
    if names:
        model.names = dict(enumerate(names))
    return model
