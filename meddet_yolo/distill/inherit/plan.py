"""Which tensors of a student and a teacher belong together: both models' rows walked through side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeAlias

from torch import nn

from meddet_yolo.distill.inherit.backbones import BACKBONE_BLOCKS, backbone
from meddet_yolo.distill.inherit.blocks import BLOCKS
from meddet_yolo.distill.inherit.heads import detect, fpn, gfl_detect
from meddet_yolo.distill.inherit.spaces import Axis, Space
from meddet_yolo.distill.inherit.walk import InheritError, Walk, kind_of

__all__ = ["name_of", "plan"]

Maps: TypeAlias = list[Axis]  # of a row's output: mostly one


def plan(student: nn.Module, teacher: nn.Module) -> Walk:
    """Find out what a student takes over from a teacher.

    Args:
        student: Detector whose `model` is a sequence of layers with their sources in `f`.
        teacher: A wider or deeper one of the same layout.

    Returns:
        The links between the networks' layers, and what is left out.

    Raises:
        InheritError: If the layouts differ, or the teacher is narrower or has fewer blocks anywhere, or is fused.
    """
    walk = Walk(name_of(student, "the student"), name_of(teacher, "the teacher"), {**BLOCKS, **BACKBONE_BLOCKS})
    ours, theirs = _rows(student, walk.student), _rows(teacher, walk.teacher)
    _check_family(walk, ours, theirs)
    outputs: list[Maps] = []
    for i, (s, t) in enumerate(zip(ours, theirs, strict=True)):
        walk.where = f"layer {i} ({type(s).__name__})"
        sources = [s.f] if isinstance(s.f, int) else s.f
        reads = [outputs[f if f >= 0 else i + f] for f in sources] if i else [[_image(s, t)]]
        outputs.append(_row(walk, s, t, reads))
    return walk


def name_of(model: nn.Module, default: str) -> str:
    """Return a name of a detector for messages, with that of its YAML where it has one.

    Examples:
        >>> name_of(nn.Identity(), "the student")
        'the student'
    """
    config = getattr(model, "yaml", None)
    file = config.get("yaml_file") if isinstance(config, Mapping) else None
    return f"{default} {PurePath(str(file)).stem}" if file else default


def _row(walk: Walk, s: Any, t: Any, reads: Sequence[Maps]) -> Maps:
    """Walk through one row of the model YAML."""
    kind = kind_of(s)
    if kind == "Concat":
        return [Axis.cat([maps[0] for maps in reads])]
    if kind == "Index":
        return [reads[0][s.index]]
    if kind == "Backbone":
        return backbone(walk, s, t, reads[0][0])
    if kind == "FPN":
        return fpn(walk, s, t, reads[0])
    if kind in ("Detect", "GFLDetect"):
        (detect if kind == "Detect" else gfl_detect)(walk, s, t, [maps[0] for maps in reads])
        return []
    return [walk.block(s, t, reads[0][0])]


def _rows(model: nn.Module, name: str) -> list[Any]:
    layers = getattr(model, "model", None)
    if not isinstance(layers, nn.Sequential) or not all(hasattr(layer, "f") for layer in layers):
        raise InheritError(f"{name}: expected a detector built from a model YAML, got {type(model).__name__}")
    convs = [m for m in layers.modules() if kind_of(m) == "Conv"]
    if not all(hasattr(m, "bn") for m in convs):
        raise InheritError(
            f"{name} is fused for inference and has lost its normalisations; give the checkpoint of its training "
            "(best.pt or last.pt)"
        )
    return list(layers)


def _check_family(walk: Walk, ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    one, two = ([_signature(layer) for layer in rows] for rows in (ours, theirs))
    for i, ((kind, f), (other, g)) in enumerate(zip(one, two, strict=False)):
        if kind != other:
            raise walk.other_family(f"layer {i} is {kind} in the student and {other} in the teacher")
        if f != g:
            raise walk.other_family(f"layer {i} reads {f} in the student and {g} in the teacher")
    if len(one) != len(two):
        raise walk.other_family(f"{len(one)} layers in the student and {len(two)} in the teacher")


def _signature(layer: Any) -> tuple[str, Any]:
    """Return what a layer is and reads; of two networks of a family, these are equal layer by layer."""
    kind = kind_of(layer)
    if kind == "C3k2" and kind_of(layer.m[0]) == "Sequential":
        kind = "C3k2 with attention"
    elif kind == "SPPF" and getattr(layer, "add", False):
        kind = "SPPF with a short cut"
    elif kind == "Detect" and kind_of(layer.cv3[0][0]) == "Conv":
        kind = "Detect with full convolutions"
    return kind, layer.f


def _image(s: Any, t: Any) -> Axis:
    """Return the image's channels; without parts where they differ in number, so that no weight reads them."""
    ours, theirs = (next(m for m in x.modules() if isinstance(m, nn.Conv2d)).in_channels for x in (s, t))
    return Axis.of(Space(ours, theirs)) if ours == theirs else Axis((), ours, theirs)
