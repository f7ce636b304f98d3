"""Which level of a teacher's pyramid each level of the student's learns from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from meddet_yolo.distill.method import DetectorSpec

__all__ = ["choose_stages", "match_levels", "match_teacher", "unmatched_levels"]


def match_teacher(student: DetectorSpec, teacher: DetectorSpec) -> list[int]:
    """Match the levels of a teacher to the student's, see `match_levels`.

    Raises:
        ValueError: A student's level has no counterpart; the message names the teacher.
    """
    try:
        return match_levels(student.strides, teacher.strides)
    except ValueError as error:
        raise ValueError(f"Teacher {teacher.name}: {error}") from error


def match_levels(student_strides: Sequence[float], teacher_strides: Sequence[float]) -> list[int]:
    """Find, for every pyramid level of the student, the level of the teacher that it learns from.

    The level of the same stride is taken where there is one; otherwise the nearest within a factor of 2, the finer of
    two that are equally near (our own decision: pooling loses less than repetition invents).

    Args:
        student_strides: Strides of the student's maps, as pixels of the student's input for each cell.
        teacher_strides: Strides of the teacher's maps in the same unit: a teacher with an input of its own size has its
            strides multiplied by student size over teacher size.

    Returns:
        One index into `teacher_strides` for each of `student_strides`.

    Raises:
        ValueError: A student's level has no teacher's level within a factor of 2.

    Examples:
        >>> match_levels([8, 16, 32], [4, 8, 16, 32, 64])
        [1, 2, 3]
        >>> match_levels([8, 16, 32, 64], [8, 16, 32])
        [0, 1, 2, 2]
    """
    student, teacher = [float(s) for s in student_strides], [float(s) for s in teacher_strides]
    if not teacher or not student or min(student + teacher) <= 0:
        raise ValueError(f"Expected lists of positive strides, got student {student} and teacher {teacher}.")
    indices = []
    for stride in student:
        # sort key: how far in ratio (1 is exact), then the finer stride
        ratio, _, index = min((max(stride / t, t / stride), t, i) for i, t in enumerate(teacher))
        if ratio > 2 + 1e-6:
            raise ValueError(
                f"The student's level of stride {stride:g} has no counterpart in the teacher: student strides "
                f"{[f'{s:g}' for s in student]}, teacher strides {[f'{t:g}' for t in teacher]}, and the nearest may "
                "differ by a factor of 2 at most. Use a teacher with that level (for example a P2 or P6 variant), a "
                "student without it, or change the teacher's input size with teacher_imgsz."
            )
        indices.append(index)
    return indices


def unmatched_levels(student_strides: Sequence[float], teacher_strides: Sequence[float]) -> list[int]:
    """Find the levels of the teacher that no level of the student learns from.

    Args:
        student_strides: As in `match_levels`.
        teacher_strides: As in `match_levels`.

    Returns:
        Indices into `teacher_strides`, rising.

    Examples:
        >>> unmatched_levels([8, 16, 32], [4, 8, 16, 32, 64])
        [0, 4]
        >>> unmatched_levels([8, 128], [8, 16])
        [1]
    """
    matched: set[int] = set()
    for stride in student_strides:
        with suppress(ValueError):  # without a counterpart, it matches nothing
            matched.update(match_levels([stride], teacher_strides))
    return [index for index in range(len(teacher_strides)) if index not in matched]


def choose_stages(strides: Sequence[float], stages: Sequence[float]) -> list[int]:
    """Choose for every stride the stage of a network whose maps are resampled to it.

    It is of the nearest stride, the finer of two. Where several stages have that stride, as all of a vision transformer
    have, the levels that read it take stages evenly from shallow to deep, the coarsest level the deepest (our own
    decision: a coarse level speaks of whole objects).

    Args:
        strides: Strides wanted, fine to coarse.
        stages: Strides of the stages, shallow to deep, in the same unit.

    Returns:
        One index into `stages` for each of `strides`.

    Examples:
        >>> choose_stages([8, 16, 32], [4, 8, 16, 32])
        [1, 2, 3]
        >>> choose_stages([8, 16, 32], [16] * 12)
        [3, 7, 11]
    """
    nearest = [min(stages, key=lambda s: (max(s / stride, stride / s), s)) for stride in strides]
    chosen = []
    for i, stride in enumerate(nearest):
        group = [k for k, s in enumerate(stages) if s == stride]
        place, levels = nearest[: i + 1].count(stride), nearest.count(stride)
        chosen.append(group[-(-place * len(group) // levels) - 1])
    return chosen
