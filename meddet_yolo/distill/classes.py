"""Which of a teacher's classes speak for which class of the data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

__all__ = ["ClassMap", "match_classes", "read_class_maps"]

ABSENT = -30.0  # logit of a class that a teacher does not know; finite, so that losses on it are


@dataclass(frozen=True)
class ClassMap:
    """For every class of the data set, the teacher's classes that speak for it.

    Attributes:
        sources: For each class of the data set the teacher's indices, none where it does not know the class. Of
            several, the one with the highest score speaks (our own decision).
        size: The teacher's number of classes.

    Examples:
        >>> classes = ClassMap(((1,), ()), size=3)
        >>> classes(torch.tensor([[[0.1], [0.2], [0.3]]])).flatten()
        tensor([  0.2000, -30.0000])
        >>> classes.known
        (True, False)
    """

    sources: tuple[tuple[int, ...], ...]
    size: int

    @property
    def known(self) -> tuple[bool, ...]:
        """Whether the teacher knows each class of the data set."""
        return tuple(bool(source) for source in self.sources)

    @property
    def same(self) -> bool:
        """Whether the teacher's classes are the data set's."""
        return self.sources == tuple((i,) for i in range(self.size))

    def __call__(self, logits: Tensor) -> Tensor:
        """Turn logits of the teacher's classes, (B, size, A), into ones of the data set's, (B, nc, A).

        A class that the teacher does not know gets one that stands for never.
        """
        if self.same:
            return logits
        unknown = torch.full_like(logits[:, 0], ABSENT)
        columns = [logits[:, list(source)].amax(1) if source else unknown for source in self.sources]
        return torch.stack(columns, dim=1)

    def describe(self, teacher: Mapping[int, str], data: Mapping[int, str]) -> str:
        """Return which class speaks for which, in words.

        Examples:
            >>> ClassMap(((1,), ()), size=2).describe({0: "cat", 1: "disc"}, {0: "herniation", 1: "normal"})
            'disc for herniation, nothing for normal'
        """
        indices = sorted(data)
        return ", ".join(
            f"{' or '.join(str(teacher.get(s, s)) for s in source) or 'nothing'} for {data[indices[i]]}"
            for i, source in enumerate(self.sources)
        )


def match_classes(
    teacher: Mapping[int, str], data: Mapping[int, str], name: str, mapping: Mapping[Any, Any] | None = None
) -> ClassMap:
    """Find out which of a teacher's classes speak for those of the data set.

    Without a mapping, a teacher of the same classes speaks for all, and one of another number of classes for none: it
    serves with its features alone. One of the same number and other names, or another order of them, is more likely a
    mistake than meant, and refused.

    Args:
        teacher: The teacher's class names by index. Placeholder names ("0", "1", ...), as an untrained model has them,
            are compared by count alone. Empty for a network that knows no classes.
        data: The data set's class names by index.
        name: What to call the teacher in messages.
        mapping: The teacher's classes with the data set's that they stand for, names or indices on both sides; empty
            says that none corresponds.

    Returns:
        The map, for classes of the data set in the order of their indices.

    Raises:
        ValueError: If the same number of classes has other names and no mapping is given, or the mapping names a class
            that there is not.

    Examples:
        >>> match_classes({0: "Normal", 1: "herniation"}, {0: "normal", 1: "herniation"}, "a.pt").same
        True
        >>> match_classes({0: "person", 1: "disc"}, {0: "herniation"}, "a.pt", {"disc": 0}).sources
        ((1,),)
        >>> match_classes({0: "person", 1: "disc"}, {0: "herniation"}, "a.pt").known
        (False,)
    """
    if mapping is not None:
        sources: list[list[int]] = [[] for _ in data]
        indices = sorted(data)
        for theirs, ours in mapping.items():
            source = _index(theirs, teacher, f"teacher {name}")
            sources[indices.index(_index(ours, data, "the data set"))].append(source)
        return ClassMap(tuple(tuple(sorted(set(source))) for source in sources), len(teacher))
    if len(teacher) != len(data):
        return ClassMap(((),) * len(data), len(teacher))
    if not all(str(index) == str(label) for index, label in teacher.items()):
        given, expected = ([_plain(names[i]) for i in sorted(names)] for names in (teacher, data))
        if given != expected:
            raise ValueError(
                f"Teacher {name} was trained on the classes {list(teacher.values())}, but the data set has "
                f"{list(data.values())} (same names in the same order are expected); say which of its classes stand "
                f"for which with teacher_classes, for example {{{teacher[min(teacher)]}: {data[min(data)]}}}, or with "
                "teacher_classes={} that none does"
            )
    return ClassMap(tuple((i,) for i in range(len(data))), len(teacher))


def _plain(name: Any) -> str:
    return str(name).strip().lower()


def _index(given: Any, names: Mapping[int, str], whose: str) -> int:
    """Return the index of a class that is given by name or index; a name goes before an index."""
    for index, name in names.items():
        if _plain(name) == _plain(given):
            return index
    if re.fullmatch(r"\d+", str(given)) and int(given) in names:
        return int(given)
    listed = ", ".join(f"{index}: {name}" for index, name in list(names.items())[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    raise ValueError(f"teacher_classes: {whose} has no class {given!r}; it has {listed or 'none'}{more}")


def read_class_maps(value: Any, num_teachers: int) -> dict[Any, Any] | list[dict[Any, Any] | None] | None:
    """Check `teacher_classes`: a mapping, a list of one for each teacher, or either as text of the command line.

    Args:
        value: What was given; None says nothing about any teacher.
        num_teachers: How many teachers there are.

    Raises:
        ValueError: If it is neither, or does not say which of several teachers it is about.

    Examples:
        >>> read_class_maps("{disc:0,person:1}", 1)
        {'disc': 0, 'person': 1}
        >>> read_class_maps([{"disc": 0}, None], 2)
        [{'disc': 0}, None]
    """
    given = _parsed(value) if isinstance(value, str) else value
    if given is None:
        return None
    if isinstance(given, Mapping):
        if num_teachers > 1:
            raise ValueError(
                f"teacher_classes={value} does not say which of the {num_teachers} teachers it is about; give a list "
                "of one for each, with null where nothing is to be said"
            )
        return _checked(given, value)
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != num_teachers:
            raise ValueError(f"teacher_classes has {len(given)} entries for {num_teachers} teachers; give one for each")
        return [None if entry is None else _checked(entry, value) for entry in given]
    raise _malformed(value)


def _parsed(text: str) -> Any:
    """Read text such as `{disc:0}`: YAML, but that no space need follow a colon and braces may be missing."""
    spaced = re.sub(r":(?=\S)", ": ", text.strip())
    try:
        return yaml.safe_load(spaced if spaced[:1] in ("{", "[") or ":" not in spaced else f"{{{spaced}}}")
    except yaml.YAMLError as error:
        raise _malformed(text) from error


def _checked(mapping: Any, value: Any) -> dict[Any, Any]:
    """Return one teacher's mapping with plain keys and values."""
    scalars = isinstance(mapping, Mapping) and all(
        isinstance(part, str | int) and not isinstance(part, bool) for pair in mapping.items() for part in pair
    )
    if not scalars:
        raise _malformed(value)
    return dict(mapping)


def _malformed(value: Any) -> ValueError:
    return ValueError(
        f"teacher_classes must map a teacher's classes to the data set's, such as {{disc: 0}}, or be a list of one "
        f"mapping for each teacher, got {value!r}"
    )
