"""The branches of a dense head, and the head cut in two behind their first blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["detection_branches", "run_from_stems", "run_stems", "stem_widths"]

_BRANCHES = ("cls_head", "box_head")
_OF_DETECTION = (*_BRANCHES, "cls_nmode", "box_nmode")


def detection_branches(head: Any) -> dict[str, Any]:
    """Return a head's one-to-many branches as keywords of its `forward_head`; those of masks and keypoints are None.

    Args:
        head: A head; one that is not made of branches has none.
    """
    parts = getattr(head, "one2many", {})
    return {name: part if name in _OF_DETECTION else None for name, part in parts.items()}


def stem_widths(head: Any) -> list[tuple[int, int]]:
    """Return the channels behind the first block of the class and of the box branch, for each level.

    Args:
        head: A head; one whose branches are not a first block, further ones and a prediction layer has none.

    Examples:
        >>> from ultralytics.nn.modules import Detect
        >>> stem_widths(Detect(nc=2, ch=(32, 64)))
        [(32, 64), (32, 64)]
    """
    classes, boxes = (_levels(head, name) for name in _BRANCHES)
    if not classes or not boxes or any(getattr(level[-1], "out_channels", 0) != head.nc for level in classes):
        return []  # the last is an open vocabulary's, which compares with words
    return [(_width(c[0]), _width(b[0])) for c, b in zip(classes, boxes, strict=True)]


def run_stems(head: Any, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Run the first blocks of a head on its maps (B, C_l, H_l, W_l).

    Returns:
        What the first block of the class branch and that of the box branch give, (B, K, H_l, W_l), for each level.
    """
    classes, boxes = (_levels(head, name) for name in _BRANCHES)
    return [(c[0](x), b[0](x)) for x, c, b in zip(maps, classes, boxes, strict=True)]


def run_from_stems(head: Any, stems: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """Run the rest of a head, all of it but the first blocks.

    Both maps of a level are handed to the head as one; what stands in the place of a branch's first block takes its
    part of it. So each head goes on in its own way.

    Args:
        head: A head that has `stem_widths`.
        stems: As `run_stems` gives them.

    Returns:
        What `forward_head` returns, with these maps in "feats".
    """
    width = stems[0][0].shape[1]
    parts = detection_branches(head)
    for name, taken in zip(_BRANCHES, (slice(None, width), slice(width, None)), strict=True):
        parts[name] = nn.ModuleList(nn.Sequential(_Channels(taken), *level[1:]) for level in parts[name])
    return head.forward_head([torch.cat(pair, dim=1) for pair in stems], **parts)


class _Channels(nn.Module):
    """Takes some channels of a map."""

    def __init__(self, taken: slice) -> None:
        super().__init__()
        self._taken = taken

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self._taken]


def _levels(head: Any, name: str) -> list[nn.Sequential]:
    """Return the layers of a branch at each level, of GFL's tower the same; none where a head is built otherwise."""
    branch = detection_branches(head).get(name)
    if not isinstance(branch, nn.ModuleList):
        return []
    levels = [level for level in branch if isinstance(level, nn.Sequential) and len(level) > 2 and _width(level[0])]
    if len(levels) < len(branch):
        return []
    return levels * int(head.nl) if len(levels) == 1 else levels


def _width(block: nn.Module) -> int:
    """Return the channels that a block gives, which are those of its last convolution; 0 where it has none."""
    return next((m.out_channels for m in reversed(list(block.modules())) if isinstance(m, nn.Conv2d)), 0)
