"""Data YAMLs whose classes are not numbered are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from ultralytics.data import utils

import meddet_yolo.registry


@pytest.mark.parametrize(("keys", "named"), [("{0: a, x: b}", "'x'"), ("{0: a, null: b}", "None")])
def test_classes_without_numbers(tmp_path: Path, keys: str, named: str) -> None:
    meddet_yolo.registry.register()
    file = tmp_path / "d.yaml"
    file.write_text(f"path: {tmp_path}\ntrain: .\nval: .\nnames: {keys}\n")
    with pytest.raises(ValueError, match=f"`names` has the key {named}, expected a number"):
        utils.check_det_dataset(str(file))


def test_classes_with_numbers_as_text(tmp_path: Path) -> None:
    meddet_yolo.registry.register()
    file = tmp_path / "d.yaml"
    file.write_text(f"path: {tmp_path}\ntrain: .\nval: .\nnames: {{'0': a, '1': b}}\n")
    assert utils.check_det_dataset(str(file))["names"] == {0: "a", 1: "b"}
