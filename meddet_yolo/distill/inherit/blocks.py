"""Rules for the blocks of YOLO's backbones and necks, and for nmODE² as a block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meddet_yolo.distill.inherit.spaces import Axis, Part
from meddet_yolo.distill.inherit.walk import Rule, Walk, kind_of

__all__ = ["BLOCKS"]


def _bottleneck(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    out = walk.conv(s.cv2, t.cv2, walk.conv(s.cv1, t.cv1, read))
    return _added(walk, s, read, out)


def _c3(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    inner = walk.sequence(s.m, t.m, walk.conv(s.cv1, t.cv1, read))
    return walk.conv(s.cv3, t.cv3, Axis.cat([inner, walk.conv(s.cv2, t.cv2, read)]))


def _unlike(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    """A plain bottleneck that is a C3k in the teacher, or the reverse: left out, but its map keeps its channels."""
    walk.leave(s, f"{kind_of(s)}, {kind_of(t)} in the teacher")
    last_s, last_t = ((x.cv3 if hasattr(x, "cv3") else x.cv2).conv for x in (s, t))
    return _added(walk, s, read, walk.new(last_s.out_channels, last_t.out_channels))


def _c2f(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    """C2f and C3k2: the halves of `cv1` and the map of every block, side by side, make the input of `cv2`."""
    cv1 = walk.conv(s.cv1, t.cv1, read, halves=2)
    size_s, size_t = cv1.student // 2, cv1.teacher // 2
    kept = walk.pick(len(s.m), len(t.m))
    maps = [Axis.of(part.space) for part in cv1.parts]
    for mine, i in zip(s.m, kept, strict=True):
        maps.append(walk.block(mine, t.m[i], maps[-1]))
    sources = [0, 1, *(2 + i for i in kept)]  # where the maps stand in the teacher's concatenation
    pairs = list(zip(range(len(maps)), sources, strict=True))
    for i in range(len(t.m)):
        if i not in kept and _is_residual(t.m[i]):  # without the block, its map is the one that it reads
            pairs.append((sum(source < 2 + i for source in sources) - 1, 2 + i))
    parts = [
        Part(part.space, part.student + place * size_s, part.teacher + source * size_t)
        for place, source in pairs
        for part in maps[place].parts
    ]
    return walk.conv(s.cv2, t.cv2, Axis(tuple(parts), len(maps) * size_s, (2 + len(t.m)) * size_t))


def _c2psa(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    cv1 = walk.conv(s.cv1, t.cv1, read, halves=2)
    first, second = (Axis.of(part.space) for part in cv1.parts)
    return walk.conv(s.cv2, t.cv2, Axis.cat([first, walk.sequence(s.m, t.m, second)]))


def _psa_block(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    read = _added(walk, s, read, walk.block(s.attn, t.attn, read))
    return _added(walk, s, read, walk.sequence(s.ffn, t.ffn, read))


def _attention(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    """Whole heads are chosen; of a wider head, the same places in query and key, and as many of its values."""
    if s.num_heads > t.num_heads or s.key_dim > t.key_dim or s.head_dim > t.head_dim:
        walk.leave(
            s, f"attention of {s.num_heads} x {s.head_dim} channels, {t.num_heads} x {t.head_dim} in the teacher"
        )
        return walk.new(s.proj.conv.out_channels, t.proj.conv.out_channels)
    heads = walk.space(s.num_heads, t.num_heads)
    key = walk.space(s.num_heads * s.key_dim, t.num_heads * t.key_dim, heads)
    value = walk.space(s.num_heads * s.head_dim, t.num_heads * t.head_dim, heads)
    parts = tuple(Part(space, a, b) for space, a, b in zip((key, key, value), _rows(s), _rows(t), strict=True))
    qkv = Axis(parts, s.qkv.conv.out_channels, t.qkv.conv.out_channels)
    gain = torch.ones(qkv.student)
    gain[parts[0].student] = (t.key_dim / s.key_dim) ** 0.5  # logits are sums of products over the root of their number
    walk.conv(s.qkv, t.qkv, read, qkv, gain=gain)
    walk.conv(s.pe, t.pe, Axis.of(value))
    return walk.conv(s.proj, t.proj, Axis.of(value))


def _sppf(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    pooled = walk.conv(s.cv1, t.cv1, read)
    maps = s.cv2.conv.in_channels // s.cv1.conv.out_channels
    return _added(walk, s, read, walk.conv(s.cv2, t.cv2, Axis.cat([pooled] * maps)))


def _nmode2(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    return walk.block(s.bn, t.bn, walk.conv2d(s.conv, t.conv, read))


def _nmode2_gate(walk: Walk, s: Any, t: Any, read: Axis) -> Axis:
    """Gate x + W3((W2 x) * f(W1 x)): the two maps that are multiplied have the same channels."""
    gate = walk.block(s.bn, t.bn, walk.conv2d(s.conv, t.conv, read))
    walk.conv2d(s.linear, t.linear, read, gate)
    return walk.conv2d(s.out, t.out, gate, read)


def _added(walk: Walk, s: Any, read: Axis, out: Axis) -> Axis:
    """Return a block's output, which is added to its input where the student's block says so."""
    if getattr(s, "add", False):
        walk.join(out, read)
    return out


def _is_residual(block: nn.Module) -> bool:
    inner = list(block) if isinstance(block, nn.Sequential) else [block]
    return all(bool(getattr(m, "add", False)) for m in inner)


def _rows(attention: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of query, key and value in the output of an attention's `qkv`, where heads stand side by side."""
    key, heads = attention.key_dim, attention.num_heads
    rows = torch.arange(heads * (2 * key + attention.head_dim)).view(heads, -1)
    return rows[:, :key].flatten(), rows[:, key : 2 * key].flatten(), rows[:, 2 * key :].flatten()


BLOCKS: Mapping[str, Rule] = {
    "Conv": Walk.conv,
    "ConvGN": Walk.conv,
    "Conv2d": Walk.conv2d,
    "BatchNorm2d": Walk.norm,
    "GroupNorm": Walk.norm,
    "Sequential": Walk.sequence,
    "Bottleneck": _bottleneck,
    "C3": _c3,
    "C3k": _c3,
    "Bottleneck from C3k": _unlike,
    "C3k from Bottleneck": _unlike,
    "C2f": _c2f,
    "C3k2": _c2f,
    "C2PSA": _c2psa,
    "PSABlock": _psa_block,
    "Attention": _attention,
    "SPPF": _sppf,
    "NmODE2": _nmode2,
    "NmODE2Gate": _nmode2_gate,
}
