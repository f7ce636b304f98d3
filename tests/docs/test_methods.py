"""The page on methods has a row for each, with all of its options."""

from __future__ import annotations

import re
from pathlib import Path

from meddet_yolo.distill.method import METHODS, method_class

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def test_every_method_has_a_row_with_its_options():
    rows = {cells[1].strip(" `"): cells for cells in (line.split("|") for line in PAGE.splitlines()) if len(cells) == 7}
    rows = {name: cells for name, cells in rows.items() if name not in {"method", "---"}}
    assert list(rows) == list(METHODS)
    for name, cells in rows.items():
        assert re.findall(r"`(\w+)`", cells[5]) == list(method_class(name).Options.keys())
