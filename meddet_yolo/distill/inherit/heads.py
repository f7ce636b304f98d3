"""Rules for detection heads and for GFL's neck."""

from __future__ import annotations

from typing import Any

from meddet_yolo.distill.inherit.spaces import Axis
from meddet_yolo.distill.inherit.walk import Walk, kind_of

__all__ = ["detect", "fpn", "gfl_detect"]


def detect(walk: Walk, s: Any, t: Any, reads: list[Axis]) -> None:
    """Walk through a `Detect`. A one-to-one branch that the teacher lacks starts from its one-to-many branch."""
    for prefix in ("", "one2one_"):
        if getattr(s, f"{prefix}cv2", None) is None:
            continue
        source = prefix if getattr(t, f"{prefix}cv2", None) is not None else ""
        for branch, extra in (("cv2", "nmode_reg"), ("cv3", "nmode_cls")):
            levels_s, levels_t = getattr(s, prefix + branch), getattr(t, source + branch)
            blocks_s, blocks_t = getattr(s, prefix + extra, None), getattr(t, source + extra, None)
            for k, read in enumerate(reads):
                read = walk.sequence(levels_s[k][:-1], levels_t[k][:-1], read)
                if blocks_s is not None and blocks_t is not None and kind_of(blocks_s[k]) == kind_of(blocks_t[k]):
                    read = walk.block(blocks_s[k], blocks_t[k], read)
                walk.predict(levels_s[k][-1], levels_t[k][-1], read)
    if s.reg_max == t.reg_max and s.dfl.state_dict():
        walk.copy(s.dfl.conv, t.dfl.conv)


def fpn(walk: Walk, s: Any, t: Any, reads: list[Axis]) -> list[Axis]:
    """Walk through an `FPN`; returns the dimensions of its levels."""
    if len(s.lateral) != len(t.lateral) or len(s.extra) != len(t.extra):
        raise walk.other_family(f"{walk.where}: pyramids of other levels")
    merged = [walk.conv2d(a, b, read) for a, b, read in zip(s.lateral, t.lateral, reads, strict=True)]
    for axis in merged[1:]:  # coarse is added to fine
        walk.join(merged[0], axis)
    levels = [walk.conv2d(a, b, read) for a, b, read in zip(s.output, t.output, merged, strict=True)]
    for a, b in zip(s.extra, t.extra, strict=True):
        levels.append(walk.conv2d(a, b, levels[-1]))
    return levels


def gfl_detect(walk: Walk, s: Any, t: Any, reads: list[Axis]) -> None:
    """Walk through a `GFLDetect`, whose towers read all levels."""
    for axis in reads[1:]:
        walk.join(reads[0], axis)
    for branch in ("cv2", "cv3"):
        mine, other = getattr(s, branch)[0], getattr(t, branch)[0]
        read = walk.block(mine[0], other[0], reads[0])
        (plain_s, nmode_s), (plain_t, nmode_t) = _tower(mine[1]), _tower(other[1])
        read = walk.sequence(plain_s, plain_t, read)
        if [*map(kind_of, nmode_s)] == [*map(kind_of, nmode_t)]:
            read = walk.sequence(nmode_s, nmode_t, read)
        walk.predict(mine[2], other[2], read)
    walk.copy(s, t)  # the levels' scales


def _tower(blocks: Any) -> tuple[list[Any], list[Any]]:
    """Part a tower into its convolutions and the block of nmODE², with a 1x1 one, that may stand behind them."""
    small = [block for block in blocks if block.conv.kernel_size == (1, 1)]
    return [block for block in blocks if block not in small], small
