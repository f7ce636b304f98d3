"""The student's detection loss with the distillation terms appended."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from meddet_yolo.distill.session import DistillSession
from meddet_yolo.distill.teachers import head_output

__all__ = ["DistillCriterion"]


class DistillCriterion:
    """Stands in the place of a model's criterion: detection terms first, then those of the session.

    A plain object, so that it is no part of any state dict; a copy of the model (its EMA, a recovery after NaN) drops
    it and builds the stock criterion instead.

    Args:
        base: The model's own criterion.
        session: The distillation run, which has observed the batch's images.
        model: The student, an Ultralytics detection model.
    """

    def __init__(self, base: Any, session: DistillSession, model: Any) -> None:
        self.base = base
        self._session = session
        self._model = model

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss vector, summed over the batch as Ultralytics does, and its items for the log."""
        loss, items = self.base(preds, batch)
        loss = loss.reshape(-1)
        images = batch["img"].shape[0]
        terms, more = self._session.loss(
            head_output(preds), batch, loss.detach().sum() / images, head_loss=lambda maps: self._on_maps(maps, batch)
        )
        return torch.cat([loss, terms * images]), {**items, **more}

    def _on_maps(self, maps: list[Tensor], batch: dict[str, Any]) -> Tensor:
        """Return the mean detection loss of the student's head on other maps than the student's own.

        The head's running statistics stay those of the student's maps, which are what it reads in inference.
        """
        head = self._model.model[-1]
        norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            preds = head(maps)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        loss, _ = self.base(preds, batch)
        return loss.sum() / maps[0].shape[0]

    def update(self) -> None:
        """Advance the schedule of the end-to-end loss, where the base criterion has one."""
        if hasattr(self.base, "update"):
            self.base.update()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model gets no criterion: it builds its own when it needs one."""
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Nor does a pickled one."""
        return type(None), ()
