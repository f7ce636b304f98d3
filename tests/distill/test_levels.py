"""Levels of a teacher's pyramid matched to the student's."""

from __future__ import annotations

import pytest

from meddet_yolo.distill.levels import match_levels, unmatched_levels


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([8, 16, 32], [8, 16, 32], [0, 1, 2]),
        ([8, 16, 32], [4, 8, 16, 32], [1, 2, 3]),
        ([8, 16, 32], [4, 8, 16], [1, 2, 2]),
        ([16], [8, 32], [0]),
        ([8], [32, 16], [1]),
        ([8, 16, 32], [12.0, 24.0, 48.0], [0, 0, 1]),  # ratios 1.5; 1.33 and 1.5; 1.33 and 1.5
    ],
)
def test_match_levels(student, teacher, expected):
    assert match_levels(student, teacher) == expected


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            [8, 16, 64],
            [4, 8, 16],
            r"stride 64 .*student strides \['8', '16', '64'\], teacher strides \['4', '8', '16'\]",
        ),
        ([8], [], "lists of positive strides"),
        ([8], [0, 8], "lists of positive strides"),
    ],
)
def test_levels_that_cannot_be_matched(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        match_levels(student, teacher)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([8, 16, 32], [8, 16, 32], []),
        ([8, 16, 32], [8, 16, 32, 64, 128], [3, 4]),
        ([8, 16, 32, 64], [8, 16, 32], []),  # the coarsest teaches two
        ([64], [8], [0]),
    ],
)
def test_levels_that_teach_nothing(student, teacher, expected):
    assert unmatched_levels(student, teacher) == expected
