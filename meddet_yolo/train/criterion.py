"""The student's detection loss with the distillation terms appended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from meddet_yolo.distill.adapters.branches import run_stems
from meddet_yolo.distill.session import DistillSession
from meddet_yolo.distill.teachers import head_output

__all__ = ["DistillCriterion"]


def first(preds: Any, images: int) -> Any:
    """Return a head's training output, or any nest of batched tensors, for the first images of the batch.

    Examples:
        >>> import torch
        >>> first({"feats": [torch.zeros(3, 8, 4, 4)], "scores": torch.zeros(3, 2, 16)}, 2)["feats"][0].shape
        torch.Size([2, 8, 4, 4])
    """
    if isinstance(preds, Tensor):
        return preds[:images]
    if isinstance(preds, dict):
        return {key: first(part, images) for key, part in preds.items()}
    return type(preds)(first(part, images) for part in preds)


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
        """Return the loss vector, summed over the batch as Ultralytics does, and its items for the log.

        Images without labels count in the means that the distillation terms are, and in nothing else.
        """
        labelled = self._session.labelled
        loss, items = self.base(preds if labelled is None else first(preds, labelled), batch)
        loss = loss.reshape(-1)
        images = len(batch["img"]) if labelled is None else labelled
        student = head_output(preds)
        if self._session.reads_stems:
            with _kept_statistics(self._model.model[-1]) as head:
                student.stems = run_stems(head, student.feats)
        terms, more = self._session.loss(
            student, batch, loss.detach().sum() / images, head_loss=lambda maps: self._on_maps(maps, batch)
        )
        return torch.cat([loss, terms * images]), {**items, **more}

    def _on_maps(self, maps: list[Tensor], batch: dict[str, Any]) -> Tensor:
        """Return the mean detection loss of the student's head on other maps than the student's own."""
        maps = maps if self._session.labelled is None else first(maps, self._session.labelled)
        with _kept_statistics(self._model.model[-1]) as head:
            preds = head(maps)
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


@contextmanager
def _kept_statistics(head: Any) -> Iterator[Any]:
    """Run a head besides its own pass: its running statistics stay those of the student's pass, as in inference."""
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield head
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
