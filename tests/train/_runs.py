"""Trainers before their first step, and what a run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meddet_yolo import DistillTrainer

STUDENT = "meddet11-n.yaml"
Settings = dict[str, Any]


def prepared(settings: Settings, **extra: Any) -> DistillTrainer:
    """Return a trainer just before its first step."""
    trainer = DistillTrainer(overrides={"model": STUDENT, **settings, **extra})
    trainer._setup_train()
    begin_epoch(trainer, 1)
    return trainer


def begin_epoch(trainer: DistillTrainer, epoch: int) -> None:
    """Do what Ultralytics does at the start of every epoch."""
    trainer.epoch = epoch
    trainer.run_callbacks("on_train_epoch_start")
    trainer._model_train()


def first_batch(trainer: DistillTrainer) -> dict[str, Any]:
    return trainer.preprocess_batch(next(iter(trainer.train_loader)))


def student_gradient(trainer: DistillTrainer, batch: dict[str, Any]) -> Tensor:
    """Return the gradient of one batch at the neck, where distillation acts, flat."""
    trainer.model.zero_grad()
    if trainer.session is not None:
        trainer.session.observe(batch["img"])
    loss, trainer.loss_items = trainer.model(dict(batch))
    loss.sum().backward()
    return torch.cat([p.grad.flatten() for n, p in trainer.model.named_parameters() if "model.16." in n])


def run_files(settings: Settings) -> Path:
    return Path(settings["project"]) / settings["name"]


def plain_modules(path: Path) -> set[str]:
    """Return the packages that a checkpoint's model is made of."""
    checkpoint = torch.load(path, weights_only=False)
    model = checkpoint["ema"] if checkpoint.get("ema") is not None else checkpoint["model"]
    assert not any(name.startswith(("teacher", "distiller", "discriminator")) for name in vars(model))
    return {type(module).__module__ for module in model.modules()}
