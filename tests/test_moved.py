"""Names of earlier versions: modules that have moved, and checkpoints that were pickled under old names."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from meddet_yolo._moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_gives_the_module_of_the_new_one(old: str, new: str) -> None:
    if old.endswith(("triton", "rtx_backend")):
        pytest.importorskip("triton")
    module = import_module(f"meddet_yolo.{old}")
    assert module is import_module(f"meddet_yolo.{new}")
    assert module.__name__ == f"meddet_yolo.{new}" and module.__spec__.name == module.__name__


def test_an_old_name_may_be_the_first_import() -> None:
    code = """
from meddet_yolo.trainer import DistillTrainer as old
from meddet_yolo import DistillTrainer as new
print(old is new)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("True")


@pytest.mark.parametrize(
    ("name", "home"), [("calibration_images", "calibration"), ("EXPORT_KEYS", "request"), ("FORMATS", "formats")]
)
def test_what_has_left_the_exporter_is_found_there_still(name: str, home: str) -> None:
    old, new = import_module("meddet_yolo.exporter"), import_module(f"meddet_yolo.export.{home}")
    assert getattr(old, name) is getattr(new, name)


def test_a_name_that_never_was_is_no_module() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("meddet_yolo.trainers")


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("NmODE2", "meddet_yolo.nn.nmode"),
        ("NmODE2Activation", "meddet_yolo.nn.nmode"),
        ("GFLDetect", "meddet_yolo.nn.gfl"),
        ("FPN", "meddet_yolo.nn.gfl"),
        ("ConvGN", "meddet_yolo.nn.gfl"),
        ("Integral", "meddet_yolo.nn.gfl"),
        ("NmODE2Detect", "meddet_yolo.nn.heads"),
        ("NmODE2Block", "meddet_yolo.nn.blocks"),
        ("Backbone", "meddet_yolo.nn.backbones"),
        ("ShuffleNet", "meddet_yolo.nn.shufflenet"),
    ],
)
def test_checkpoints_refer_to_layers_by_the_names_they_always_had(name: str, home: str) -> None:
    layer = getattr(import_module(home), name)
    assert (layer.__module__, layer.__qualname__) == (home, name)
