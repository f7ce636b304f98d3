"""What makes a resumed run equal to one that was not interrupted, to the last bit.

A run draws from many streams of random numbers: Python's, NumPy's and torch's in the main process and in each worker of
the data loader, the sampler's, and the images that mosaics are made of. Workers run ahead of the training, so their
states at the end of an epoch cannot be known, let alone be saved. Instead, from the second epoch on, each epoch begins
all streams anew, from a number made of the run's seed, the epoch and the process: what an epoch draws depends on
nothing that came before. (Our own decision; the first epoch draws what Ultralytics draws.)

The rest is saved beside the checkpoint: gradients that wait for their step when an epoch ends, and since when. They are
alike in all processes of a training, so that those of the first serve all of them: Ultralytics averages the student's
after each batch, `DistillSession` its modules' when an epoch ends.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ultralytics.utils import RANK

__all__ = ["StepClock", "begin_epoch"]


def begin_epoch(trainer: Any, loaders: Sequence[Any]) -> None:
    """Begin an epoch's streams of random numbers, its data loaders and the images that mosaics are made of.

    An epoch that is repeated after a loss that was not finite draws other numbers.

    Args:
        trainer: A trainer of Ultralytics whose `epoch` is about to begin.
        loaders: The data loaders that it trains on.
    """
    if trainer.epoch == 0 and not trainer.nan_recovery_attempts:
        return
    about = [int(trainer.args.seed) % 2**32, trainer.epoch, RANK + 1, trainer.nan_recovery_attempts]
    ours, *seeds = (int(n) for n in np.random.SeedSequence(about).generate_state(1 + len(loaders)))
    random.seed(ours)
    np.random.seed(ours)
    torch.manual_seed(ours)  # of all devices
    for loader, seed in zip(loaders, seeds, strict=True):
        loader.reset()  # its workers are started anew, with seeds from its generator
        if loader.generator is not None:
            loader.generator.manual_seed(seed)
        _fill_mosaic_buffer(loader.dataset)


def _fill_mosaic_buffer(dataset: Any) -> None:
    """Let mosaics be made of random images from the first batch on; they are read when they are drawn.

    Ultralytics makes them of the images read last, which a worker that has just been started has none of.
    """
    if dataset.cache == "ram" or dataset.max_buffer_length < 2:
        return
    for index in dataset.buffer:
        dataset.ims[index] = dataset.im_hw0[index] = dataset.im_hw[index] = None
    dataset.buffer[:] = random.sample(range(dataset.ni), dataset.max_buffer_length - 1)


class StepClock:
    """Counts batches since the optimizer's last step, so that a resumed run takes its first step when it is due.

    Ultralytics adds up the gradients of `accumulate` batches, across the end of an epoch, and counts in a local
    variable: a run that it resumes steps after one batch, and without the gradients that were waiting.
    """

    def __init__(self) -> None:
        self._since = 0
        self._restored: list[torch.Tensor | None] | None = None
        self._catching_up = False  # from a resume to the first step
        self._accumulate: int | None = None

    def batch(self, trainer: Any) -> None:
        """Count a batch, before its forward pass."""
        self._since += 1
        if not self._catching_up:
            return
        if self._restored is not None:
            for parameter, gradient in zip(_parameters(trainer.optimizer), self._restored, strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
            self._restored = None
        self._accumulate, trainer.accumulate = trainer.accumulate, 0  # the loop asks for a step after every batch

    def due(self, trainer: Any) -> bool:
        """Return whether the step that the loop asks for is due."""
        if self._accumulate is not None:
            trainer.accumulate, self._accumulate = self._accumulate, None
            if self._since < trainer.accumulate:
                return False
        self._since, self._catching_up = 0, False
        return True

    @property
    def waiting(self) -> bool:
        """Whether gradients wait for their step."""
        return self._since > 0

    def state_dict(self, trainer: Any) -> dict[str, Any]:
        """Return what a resumed run needs."""
        waiting = [p.grad for p in _parameters(trainer.optimizer)] if self.waiting else None
        return {"batches": self._since, "gradients": waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave in the run that was interrupted."""
        self._since, self._restored, self._catching_up = state["batches"], state["gradients"], True


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
