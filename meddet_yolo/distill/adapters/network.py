"""What a teacher runs, whatever kind of network it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from meddet_yolo.distill.method import DetectorOutput

__all__ = ["Network"]


class Network(nn.Module, ABC):
    """A frozen network cut down to what a method may read: maps, and dense predictions where it has them.

    Attributes:
        names: The classes it knows by index; none for a backbone.
        image_channels: Image channels that it expects.
        channels: Channels of its maps, shallow to deep.
        strides: Their strides in pixels of its input.
        multiple: What the sides of its input must be multiples of.
        predictions: Number of classes and of bins of a box side in its dense predictions; no bins where it gives none.
        stems: Channels behind the first block of the class and of the box branch of its head, for each map; none where
            the head is no such.
        pyramid: Whether its maps are the pyramid that a detection head reads, to be matched with the student's level by
            level; otherwise they are resampled to the student's strides.
    """

    names: dict[int, str]
    image_channels: int = 3
    channels: list[int]
    strides: list[float]
    multiple: int
    predictions: tuple[int, int] = (0, 0)
    stems: Sequence[tuple[int, int]] = ()
    pyramid: bool = True

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """Return maps (B, C_l, H_l, W_l) of images (B, C, H, W) with values in [0, 1]."""

    def drop_head(self) -> None:
        """Give up what only `predict` needs; nothing unless a network has such a part."""
        return None

    def predict(self, maps: Sequence[Tensor]) -> DetectorOutput:
        """Return the maps with dense predictions.

        Raises:
            NotImplementedError: If the network gives none, as `predictions` says.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no dense predictions")

    def finish(self, stems: Sequence[tuple[Tensor, Tensor]]) -> DetectorOutput:
        """Return dense predictions from other maps behind the first block of each branch of its head.

        Args:
            stems: A map of the class and one of the box branch, (B, K, H_l, W_l), for each level.

        Raises:
            NotImplementedError: If its head cannot be cut there, as `stems` says.
        """
        raise NotImplementedError(f"the head of {type(self).__name__} cannot be cut in two")
