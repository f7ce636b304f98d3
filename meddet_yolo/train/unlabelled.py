"""Images without labels beside the labelled ones of a training: a data loader of their own, joined batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from ultralytics.data import build_dataloader
from ultralytics.utils import LOGGER, RANK, TQDM, colorstr

from meddet_yolo.data.dataset import build_dataset
from meddet_yolo.data.unlabelled import Source, Unlabelled, UnlabelledDataset, find_source, gather
from meddet_yolo.distill.config import RunOptions
from meddet_yolo.distill.session import DistillSession

__all__ = ["UnlabelledBatches", "check_learners", "check_taught", "find_unlabelled"]


def check_taught(run: RunOptions) -> None:
    """Refuse images without labels that are not there, or that nobody teaches, before anything is loaded.

    Raises:
        FileNotFoundError: If they are not there.
        ValueError: If there are no teachers, or what is named is no folder, list or YAML.
    """
    if not run.unlabelled:
        return
    if not run.teachers:
        raise ValueError(
            f"unlabelled={run.unlabelled} is learnt from by what teachers say of it, and there are none: pass "
            "teachers=[...] too"
        )
    find_source(run.unlabelled)


def find_unlabelled(source: Source, data: dict[str, Any]) -> Unlabelled:
    """Name and read the images, see `gather`, and say what was left out."""
    first = RANK in {-1, 0}
    found = gather(
        source,
        data,
        lambda results, total: (
            TQDM(results, desc=f"{colorstr('unlabelled: ')}Reading images...", total=total) if first else results
        ),
    )
    if first:
        for item in found.skipped:
            LOGGER.warning(f"unlabelled: skipped {item}")
        (LOGGER.warning if found.skipped else LOGGER.info)(f"{colorstr('unlabelled:')} {found.summary}")
    return found


def check_learners(session: DistillSession, source: str) -> None:
    """Refuse images without labels where no method can use them; say which do where others cannot.

    Raises:
        ValueError: If every method of the run reads labels.
    """
    learning = [name for name, method in session.methods.items() if not method.reads_labels]
    others = [name for name in session.methods if name not in learning]
    if not learning:
        raise ValueError(
            f"unlabelled={source} is of no use: distill={','.join(others)} reads labels with these options; choose "
            "another method, or add one"
        )
    if others and RANK in {-1, 0}:
        LOGGER.warning(f"unlabelled: {', '.join(others)} reads labels and learns from labelled images only")


class UnlabelledBatches:
    """Gives images without labels to batches of labelled ones, as many epochs as it takes.

    The images go through the same augmentations as labelled ones, with mosaics among themselves. An epoch of the
    training takes what it needs of a random order of the images; where they run out, they begin anew.

    Args:
        found: The images.
        args: The run's arguments.
        data: The checked contents of the data set's YAML.
        batch: Labelled images a batch of this process; with `ratio` it gives the number of those without labels.
        ratio: How many go with each labelled image.
        rank: Number of this process in a distributed training, otherwise -1.
        stride: The model's largest stride in pixels.
        device: Where the batches are used.

    Raises:
        ValueError: With `rect`, where batches of different shapes could not be joined.
    """

    def __init__(
        self,
        found: Unlabelled,
        *,
        args: Any,
        data: dict[str, Any],
        batch: int,
        ratio: float,
        rank: int,
        stride: int,
        device: torch.device,
    ) -> None:
        if args.rect:
            raise ValueError("rect=True gives batches shapes of their own, to which unlabelled= cannot be joined")
        self.size = max(1, round(batch * ratio))
        dataset = build_dataset(
            args, found.images, self.size, data, mode="train", stride=stride, fraction=1.0, kind=UnlabelledDataset
        )
        self.loader = build_dataloader(
            dataset, self.size, args.workers, shuffle=True, rank=rank, drop_last=True, device=device
        )
        self._device = device
        self._batches = self._endless()

    def _endless(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.loader

    def start_epoch(self, epoch: int) -> None:
        """Begin an epoch of the training, or begin it again."""
        if hasattr(self.loader.sampler, "set_epoch"):
            self.loader.sampler.set_epoch(epoch)
        self._batches = self._endless()

    def join(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a collated batch with images without labels behind its own.

        Args:
            batch: As Ultralytics collates it, `img` of shape (B, C, H, W). Boxes say by their index which image they
                are of, and so stay as they are.
        """
        more = next(self._batches)
        images = [part["img"].to(self._device, non_blocking=self._device.type == "cuda") for part in (batch, more)]
        about = {key: (*value, *more[key]) for key, value in batch.items() if isinstance(value, (list, tuple))}
        return {**batch, **about, "img": torch.cat(images)}

    def close_mosaic(self, args: Any) -> None:
        """Make no more mosaics."""
        dataset: Any = self.loader.dataset
        dataset.mosaic = False
        dataset.close_mosaic(hyp=copy(args))
        self.loader.reset()
        self._batches = self._endless()

    def close(self) -> None:
        """End the loader's worker processes."""
        self.loader.close()
