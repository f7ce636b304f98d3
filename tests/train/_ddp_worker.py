"""One of two gloo processes that train on the CPU; started by test_trainer_ddp.py through torch.distributed.run."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from ultralytics.utils import RANK

from meddet_yolo import DistillTrainer


class CpuParallel(nn.parallel.DistributedDataParallel):
    """DDP without device indices, which CPU modules must not have."""

    def __init__(self, module: nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)


class GlooTrainer(DistillTrainer):
    """The trainer in two CPU processes: only the process group differs from a run on several GPUs."""

    disc_steps = 0
    unlabelled_seen: tuple[str, ...] = ()  # of the first batch

    def _setup_ddp(self) -> None:
        dist.init_process_group("gloo", rank=RANK, world_size=self.world_size)

    def _do_train(self) -> None:
        self.world_size = 2
        super()._do_train()

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Note which images without labels a process sees first."""
        labelled = len(batch["img"])
        batch = super().preprocess_batch(batch)
        self.unlabelled_seen = self.unlabelled_seen or tuple(batch["im_file"][labelled:])
        return batch

    def optimizer_step(self) -> None:
        """Let the discriminator's loss in the first step be NaN in one of the processes."""
        assert self.session is not None
        self.disc_steps += 1
        opponents = self.session._opponents
        if RANK == 1 and self.disc_steps == 1 and self.epoch == 0:
            self.session._opponents = [replace(o, loss=lambda o=o: o.loss() * float("nan")) for o in opponents]  # type: ignore[misc]
        try:
            super().optimizer_step()
        finally:
            self.session._opponents = opponents

    def final_eval(self) -> None:
        """The state is compared as training leaves it."""


class Interrupted(Exception):
    """What ends the first part of a run that is to be resumed."""


def interrupt(trainer: GlooTrainer) -> None:
    if trainer.epoch == 1:
        raise Interrupted


def digest(tensors: Any) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().numpy().tobytes())
    return total.hexdigest()


def parts(trainer: GlooTrainer) -> dict[str, str]:
    """Return a digest of what every process must have alike."""
    assert trainer.session is not None
    optimizers = [trainer.optimizer, *trainer.session._optimizers.values()]
    moments = [v for optimizer in optimizers for s in optimizer.state.values() for v in s.values()]
    return {
        "student": digest(trainer.model.module.parameters()),
        "ema": digest(trainer.ema.ema.parameters()),
        "distiller": digest(trainer.session.parameters()),
        "discriminator": digest(p for opponent in trainer.session._opponents for p in opponent.parameters),
        "optimizers": digest(moments),
    }


def main() -> None:
    nn.parallel.DistributedDataParallel = CpuParallel  # type: ignore[misc]
    settings, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    interrupted = settings.pop("interrupt", False)
    trainer = GlooTrainer(overrides=settings)
    losses: list[dict[str, float]] = []
    restored: dict[str, str] = {}
    if interrupted:
        trainer.add_callback("on_train_batch_end", interrupt)
    trainer.add_callback("on_train_start", lambda t: restored.update(parts(t)))
    trainer.add_callback("on_train_batch_end", lambda t: losses.append({k: float(v) for k, v in t.loss_items.items()}))
    with suppress(Interrupted):
        trainer.train()
    report = {
        **parts(trainer),
        "start_epoch": trainer.start_epoch,
        "restored": restored,
        "losses": losses,
        "disc_steps": trainer.disc_steps,
        "unlabelled_seen": trainer.unlabelled_seen,
    }
    (out / f"rank{RANK}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
