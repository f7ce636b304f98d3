"""One of two gloo processes that train on the CPU; started by test_trainer_ddp.py through torch.distributed.run."""

from __future__ import annotations

import hashlib
import json
import sys
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


nn.parallel.DistributedDataParallel = CpuParallel  # type: ignore[misc]


class GlooTrainer(DistillTrainer):
    """The trainer in two CPU processes: only the process group differs from a run on several GPUs."""

    disc_steps = 0

    def _setup_ddp(self) -> None:
        dist.init_process_group("gloo", rank=RANK, world_size=self.world_size)

    def _do_train(self) -> None:
        self.world_size = 2
        super()._do_train()

    def _discriminator_step(self) -> None:
        """Let the first step's loss be NaN in one of the processes."""
        assert self.distiller is not None
        self.disc_steps += 1
        if RANK == 1 and self.disc_steps == 1:
            loss = self.distiller.discriminator_loss
            self.distiller.discriminator_loss = lambda: loss() * float("nan")  # type: ignore[method-assign]
            try:
                super()._discriminator_step()
            finally:
                self.distiller.discriminator_loss = loss  # type: ignore[method-assign]
        else:
            super()._discriminator_step()

    def final_eval(self) -> None:
        """The state is compared as training leaves it."""


def digest(tensors: Any) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().numpy().tobytes())
    return total.hexdigest()


def main() -> None:
    settings, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    trainer = GlooTrainer(overrides=settings)
    losses: list[dict[str, float]] = []
    trainer.add_callback("on_train_batch_end", lambda t: losses.append({k: float(v) for k, v in t.loss_items.items()}))
    trainer.train()
    model = trainer.model.module
    assert trainer.distiller is not None
    report = {
        "student": digest(model.parameters()),
        "distiller": digest(trainer.distiller.main_parameters()),
        "discriminator": digest(trainer.distiller.discriminator_parameters()),
        "losses": losses,
        "disc_steps": trainer.disc_steps,
    }
    (out / f"rank{RANK}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
