"""Two networks of one layout side by side: what the rules of all blocks are made of.

Blocks are known by the name of their class and by their attributes, so that Ultralytics and torchvision need not be
imported. A rule takes a block of the student, the teacher's, and the dimension of the map that they read; it notes
which layers belong together and returns the dimension of the map that they put out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from meddet_yolo.distill.inherit.spaces import Axis, Space

__all__ = ["InheritError", "Link", "Rule", "Walk", "kind_of"]

_REPLACES_ACTIVATION = "NmODE2Activation"  # in place of a SiLU or ReLU, behind a normalisation that suits it alone
# Classes that are alike in what they hold, by the name of their rule.
_ALIASES = {
    "DWConv": "Conv",
    "NmODE2Block": "Conv",
    "NmODE2Detect": "Detect",
    "BackboneNorm": "BatchNorm2d",
    "Conv2dNormActivation": "Sequential",
}


class InheritError(ValueError):
    """The student cannot inherit from this teacher; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Link:
    """A layer of the student and the teacher's layer that it takes over from.

    Attributes:
        student: The student's layer; of one with children, its own tensors are meant.
        teacher: The teacher's.
        out: Dimension 0 of their tensors; None copies everything as it is.
        read: Dimension 1 of a convolution's weight; None for depthwise convolutions and everything else.
        skip: Names of tensors that are left as they are.
        gain: Factor on the rows (out.student,) of weight and bias when scales are corrected; None is 1.
    """

    student: nn.Module
    teacher: nn.Module
    out: Axis | None
    read: Axis | None = None
    skip: frozenset[str] = frozenset()
    gain: Tensor | None = None


Rule: TypeAlias = "Callable[[Walk, Any, Any, Axis], Axis]"


class Walk:
    """What has been found on the way through two networks, and the steps that rules are made of.

    Args:
        student: Name of the student, for messages.
        teacher: Name of the teacher.
        rules: How to walk through a block, by its kind.

    Attributes:
        links: Layers that belong together.
        left: Modules of the student that are left out, each with the name of the tensor that is meant ("" for those
            that no link covers) and the reason.
        where: The layer that is being walked through, for messages.
    """

    def __init__(self, student: str, teacher: str, rules: Mapping[str, Rule]) -> None:
        self.student = student
        self.teacher = teacher
        self.rules = rules
        self.links: list[Link] = []
        self.left: list[tuple[nn.Module, str, str]] = []
        self.where = ""

    # Errors

    def error(self, reason: str, remedy: str) -> InheritError:
        """Return the error that says why the student cannot inherit, and what to do."""
        return InheritError(f"{self.student} cannot inherit from {self.teacher}, {reason}; {remedy}")

    def other_family(self, difference: str) -> InheritError:
        """Return the error for a teacher of another layout."""
        return self.error(f"which is of another family ({difference})", "name a teacher of the student's own layout")

    def _too_small(self, what: str, noun: str, student: int, teacher: int) -> InheritError:
        return self.error(
            f"which is {what}: {self.where} has {student} {noun} in the student and {teacher} in the teacher",
            "name a teacher at least as wide and deep",
        )

    def unknown(self, what: str) -> InheritError:
        """Return the error for a block without a rule."""
        return InheritError(
            f"{self.student} cannot inherit from any teacher: {self.where} holds {what}, which inheritance does not "
            "know; train it from scratch or from pretrained weights"
        )

    # Dimensions

    def space(self, student: int, teacher: int, parts: Space | None = None) -> Space:
        """Return a new space; see `Space`.

        Raises:
            InheritError: If the teacher has fewer channels.
        """
        if student > teacher:
            raise self._too_small("narrower", "channels", student, teacher)
        return Space(student, teacher, parts)

    def new(self, student: int, teacher: int, halves: int = 1) -> Axis:
        """Return the dimension of a convolution's output, in as many equal parts as later layers part it into."""
        return Axis.cat([Axis.of(self.space(student // halves, teacher // halves)) for _ in range(halves)])

    def join(self, one: Axis, two: Axis) -> None:
        """Choose the channels of two maps that are added alike."""
        try:
            one.join(two)
        except ValueError as error:
            raise self.other_family(f"{self.where}: {error}") from error

    # Steps

    def pick(self, student: int, teacher: int) -> list[int]:
        """Return the teacher's blocks that the student's stand for: evenly, the first and the last among them."""
        if student > teacher:
            raise self._too_small("shallower", "blocks", student, teacher)
        if student == 1:
            return [0]  # the one whose input is as the teacher's
        return [(2 * i * (teacher - 1) + student - 1) // (2 * (student - 1)) for i in range(student)]

    def leave(self, module: nn.Module, reason: str, tensor: str = "") -> None:
        """Note that a module of the student stays as it is, or what no link covers of it, or one tensor."""
        self.left.append((module, tensor, reason))

    def block(self, s: Any, t: Any, read: Axis) -> Axis:
        """Walk through one block; returns the dimension of its output."""
        kind, other = kind_of(s), kind_of(t)
        rule = self.rules.get(kind if kind == other else f"{kind} from {other}")
        if rule is not None:
            return rule(self, s, t, read)
        if kind != other:
            raise self.other_family(f"{self.where}: {kind} in the student and {other} in the teacher")
        if not s.state_dict():  # activations, pooling, resizing
            return read
        raise self.unknown(kind)

    def sequence(self, s: Sequence[Any] | nn.Sequential, t: Sequence[Any] | nn.Sequential, read: Axis) -> Axis:
        """Walk through blocks that follow one another; repeats of one kind may differ in number."""
        if len(s) != len(t) and len({kind_of(m) for m in [*s, *t]}) > 1:
            raise self.other_family(f"{self.where}: {len(s)} unlike blocks in the student and {len(t)} in the teacher")
        for mine, i in zip(s, self.pick(len(s), len(t)), strict=True):
            read = self.block(mine, t[i], read)
        return read

    def conv2d(self, s: Any, t: Any, read: Axis, out: Axis | None = None, halves: int = 1) -> Axis:
        """Convolution without what follows it; depthwise ones keep their input's channels."""
        depthwise = s.groups == s.in_channels == s.out_channels and t.groups == t.in_channels == t.out_channels
        if s.kernel_size != t.kernel_size or (s.groups == 1) != (t.groups == 1):
            raise self.other_family(f"{self.where}: {_form(s)} in the student and {_form(t)} in the teacher")
        if s.groups > 1 and depthwise:
            self.links.append(Link(s, t, read))
            return read
        if s.groups > 1:
            raise self.unknown(_form(s))
        out = out or self.new(s.out_channels, t.out_channels, halves)
        if read.parts:
            self.links.append(Link(s, t, out, read))
        else:
            self.leave(s, f"{s.in_channels} input channels, {t.in_channels} in the teacher")
        return out

    def norm(self, s: Any, t: Any, read: Axis) -> Axis:
        """Batch or group normalisation; of a map in groups, as many channels are chosen in every group."""
        if kind_of(s) == "GroupNorm" and s.num_groups == t.num_groups:
            groups = Space(s.num_groups, t.num_groups)
            for part in read.parts:
                part.space.part_into(groups)
        self.links.append(Link(s, t, read))
        return read

    def conv(
        self, s: Any, t: Any, read: Axis, out: Axis | None = None, halves: int = 1, gain: Tensor | None = None
    ) -> Axis:
        """Convolution, normalisation, activation (`conv`, `bn` or `norm`, `act`).

        A normalisation before nmODE² in place of an activation has a start of its own: where only one of the networks
        has nmODE² there, its weight and bias stay as they are.
        """
        out = self.conv2d(s.conv, t.conv, read, out, halves)
        name = "bn" if hasattr(s, "bn") else "norm"
        mine, other = getattr(s, name), getattr(t, name)
        self.norm(mine, other, out)
        acts = [type(x.act).__name__ for x in (s, t)]
        replaced = (acts[0] == _REPLACES_ACTIVATION) != (acts[1] == _REPLACES_ACTIVATION)
        if replaced:
            self.leave(mine, f"weight and bias before {acts[0]}, {acts[1]} in the teacher")
        skip = frozenset({"weight", "bias"}) if replaced else frozenset()
        self.links[-1] = replace(self.links[-1], skip=skip, gain=gain)
        if acts[0] == acts[1] and s.act.state_dict():
            self.links.append(Link(s.act, t.act, out))
        return out

    def predict(self, s: Any, t: Any, read: Axis) -> None:
        """Prediction layer: its outputs, classes or bins of the four sides, are nothing to choose from."""
        if s.out_channels == t.out_channels:
            self.conv2d(s, t, read, Axis.of(Space(s.out_channels, s.out_channels)))
        else:
            self.leave(s, f"{s.out_channels} outputs, {t.out_channels} in the teacher")

    def copy(self, s: nn.Module, t: nn.Module, *, skip: Iterable[str] = ()) -> None:
        """Take over a module's own tensors as they are."""
        self.links.append(Link(s, t, out=None, skip=frozenset(skip)))


def kind_of(module: nn.Module) -> str:
    """Return the name by which rules know a block.

    Examples:
        >>> kind_of(nn.Conv2d(1, 1, 1))
        'Conv2d'
    """
    name = type(module).__name__
    if name == "Bottleneck" and hasattr(module, "conv3"):
        return "ResNetBottleneck"
    if name == "InvertedResidual" and hasattr(module, "branch2"):
        return "ShuffleNetV2 unit"
    return _ALIASES.get(name, name)


def _form(conv: Any) -> str:
    groups = f" of {conv.groups} groups" if conv.groups > 1 else ""
    return f"a {'x'.join(map(str, conv.kernel_size))} convolution{groups}"
