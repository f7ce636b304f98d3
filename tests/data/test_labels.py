from __future__ import annotations

from pathlib import Path

import pytest

from meddet_yolo.data.labels import label_problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("0 0.5 0.5 0.1 0.1\n1 0.2 0.2 0.1 0.1\n", None),
        ("\ufeff0 0.5 0.5 0.1 0.1", None),
        ("1 0.1 0.1 0.2 0.1 0.2 0.2", None),  # a polygon
        ("0 1.005 0.5 0.1 0.1", None),  # within the tolerance
        ("2 0.5 0.5 0.1 0.1", "row 1: class 2 is out of range, expected 0 to 1"),
        ("0 0.5 0.5 0.1 0.1\n-1 0.5 0.5 0.1 0.1", "row 2: class -1 is out of range, expected 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "row 1: class 0.5 is out of range"),
        ("0 120 0.5 0.1 0.1", "row 1: coordinate 120 is out of range"),
        ("0 nan 0.5 0.1 0.1", "row 1: coordinate nan is out of range"),
        ("0 0.5 0.5 0.1", "row 1: 4 columns"),
        ("disc 0.5 0.5 0.1 0.1", "row 1: 'disc 0.5 0.5 0.1 0.1' is not numeric"),
    ],
)
def test_a_row_is_judged(tmp_path: Path, text: str, expected: str | None) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    problem = label_problem([path], num_classes=2)
    if expected is None:
        assert problem is None
    else:
        assert problem is not None
        assert expected in problem
        assert str(path) in problem
        assert "\n" not in problem


def test_missing_files_are_images_without_boxes(tmp_path: Path) -> None:
    assert label_problem([tmp_path / "none.txt"], num_classes=1) is None


def test_further_bad_files_are_counted(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("9 0.5 0.5 0.1 0.1")
    problem = label_problem(sorted(tmp_path.iterdir()), num_classes=2)
    assert problem is not None
    assert "0.txt" in problem
    assert problem.endswith("(and 2 more files)")


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert "not a text file" in (label_problem([path], num_classes=1) or "")
