"""Which of a teacher's channels a student's channels stand for, kept consistent through the whole network.

A `Space` is a set of channels that can only be chosen together: what a convolution puts out, what is added to it, and
what later layers read of it. An `Axis` is one dimension of a layer's tensors in both networks: one space, several side
by side (a concatenation, the halves of a C2f), or several interleaved (query, key and value of every attention head).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Axis", "Part", "Space", "evenly"]


def evenly(student: int, teacher: int) -> Tensor:
    """Return the teacher's channels that a narrower student takes when they are spaced evenly: floor(i C_t / C_s).

    Args:
        student: Number of the student's channels C_s.
        teacher: Number of the teacher's channels C_t, at least C_s.

    Examples:
        >>> evenly(3, 7).tolist()
        [0, 2, 4]
    """
    return torch.arange(student) * teacher // student


class Space:
    """Channels that are chosen together, in the student and in the teacher.

    Args:
        student: Number of channels in the student, >= 1.
        teacher: Number of channels in the teacher, at least `student`.
        parts: The equal parts that the channels fall into, themselves a space: attention heads, groups of a group
            normalisation. Whole parts are chosen first, then as many channels in each. None: one part.

    Examples:
        >>> heads = Space(2, 4)
        >>> Space(4, 8, parts=heads).choose("even").tolist()  # heads 0 and 2 of four, two channels each
        [0, 1, 4, 5]
    """

    def __init__(self, student: int, teacher: int, parts: Space | None = None) -> None:
        self.student = student
        self.teacher = teacher
        self.parts = parts
        self._joined: Space | None = None
        self._scores: list[Tensor] = []
        self._chosen: dict[str, Tensor] = {}

    def root(self) -> Space:
        """Return the space that speaks for all that were joined."""
        space = self
        while space._joined is not None:
            space = space._joined
        return space

    def join(self, other: Space) -> None:
        """Choose the channels of both spaces alike from now on, as an addition of the two demands.

        Raises:
            ValueError: If they differ in size.
        """
        one, two = self.root(), other.root()
        if one is two:
            return
        if (one.student, one.teacher) != (two.student, two.teacher):
            raise ValueError(
                f"channels that are added differ in number: {one.student} and {two.student} in the student, "
                f"{one.teacher} and {two.teacher} in the teacher"
            )
        one.parts = one.parts or two.parts
        two._joined = one

    def part_into(self, parts: Space) -> None:
        """Choose as many channels in every one of these equal parts, if there are none yet."""
        root = self.root()
        root.parts = root.parts or parts

    def add_score(self, score: Tensor) -> None:
        """Note how important the teacher's channels are to one tensor.

        Args:
            score: Norms (teacher,), of any scale: they are divided by their mean, so that every tensor counts alike.
        """
        root = self.root()
        score = score / score.mean().clamp_min(1e-12)
        root._scores.append(score)
        if root.parts is not None:
            root.parts.add_score(score.view(root.parts.teacher, -1).mean(1))

    def choose(self, by: str) -> Tensor:
        """Return the teacher's channels (student,), ascending, that the student's stand for.

        Args:
            by: "even" or "importance"; without scores, importance is the same as even.
        """
        root = self.root()
        if root is not self:
            return root.choose(by)
        if by not in self._chosen:
            score = torch.stack(self._scores).mean(0) if by == "importance" and self._scores else None
            parts = self.parts.choose(by) if self.parts else torch.zeros(1, dtype=torch.long)
            size = self.teacher // (self.parts.teacher if self.parts else 1)
            wanted = self.student // len(parts)
            chosen = []
            for part in parts.tolist():
                start = part * size
                if score is None:
                    inner = evenly(wanted, size)
                else:
                    inner = score[start : start + size].argsort(descending=True, stable=True)[:wanted].sort().values
                chosen.append(start + inner)
            self._chosen[by] = torch.cat(chosen)
        return self._chosen[by]


@dataclass(frozen=True)
class Part:
    """A space and where its channels stand in a dimension.

    Attributes:
        space: The channels.
        student: Places (space.student,) in the student's dimension.
        teacher: Places (space.teacher,) in the teacher's.
    """

    space: Space
    student: Tensor
    teacher: Tensor


@dataclass(frozen=True)
class Axis:
    """One dimension of a layer's tensors, in both networks.

    Attributes:
        parts: What stands in it. Two parts may have the same places in the student: what reads them then gets the
            sum of the teacher's weights.
        student: Size in the student.
        teacher: Size in the teacher.

    Examples:
        >>> axis = Axis.cat([Axis.of(Space(2, 4)), Axis.of(Space(1, 3))])
        >>> axis.index("even").tolist()
        [0, 2, 4]
    """

    parts: tuple[Part, ...]
    student: int
    teacher: int

    @classmethod
    def of(cls, space: Space) -> Axis:
        """Return a dimension that holds one space."""
        part = Part(space, torch.arange(space.student), torch.arange(space.teacher))
        return cls((part,), space.student, space.teacher)

    @classmethod
    def cat(cls, axes: Sequence[Axis]) -> Axis:
        """Return the dimension that holds several, one after the other."""
        parts: list[Part] = []
        student = teacher = 0
        for axis in axes:
            parts += [Part(p.space, p.student + student, p.teacher + teacher) for p in axis.parts]
            student, teacher = student + axis.student, teacher + axis.teacher
        return cls(tuple(parts), student, teacher)

    def join(self, other: Axis) -> None:
        """Choose both dimensions' channels alike, as an addition of the two demands.

        Raises:
            ValueError: If their parts differ in number or size.
        """
        if len(self.parts) != len(other.parts):
            raise ValueError(f"maps that are added consist of {len(self.parts)} and {len(other.parts)} parts")
        for one, two in zip(self.parts, other.parts, strict=True):
            one.space.join(two.space)

    def places(self, by: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, for every part, places in the student and the teacher's places that they stand for."""
        for part in self.parts:
            yield part.student, part.teacher[part.space.choose(by)]

    def index(self, by: str) -> Tensor:
        """Return the teacher's places (student,) that the student's stand for."""
        index = torch.zeros(self.student, dtype=torch.long)
        for student, teacher in self.places(by):
            index[student] = teacher
        return index

    def add_score(self, score: Tensor) -> None:
        """Note norms (teacher,) of one tensor along this dimension."""
        for part in self.parts:
            part.space.add_score(score[part.teacher])
