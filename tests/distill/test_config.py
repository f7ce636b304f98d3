"""Options: defaults, conversions, and every way to get them wrong."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

import meddet_yolo.cfg
from meddet_yolo.distill.config import DistillConfig, RunOptions
from meddet_yolo.distill.method import METHODS, DistillMethod, method_class

RECIPE = Path(meddet_yolo.cfg.__file__).parent / "distill" / "default.yaml"


def test_shipped_recipe_holds_what_the_default_method_reads_at_its_default():
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    default = DistillConfig.from_dict({})
    assert recipe.keys() == {*RunOptions.keys(), *(key for kind in default.methods.values() for key in kind.keys())}
    assert DistillConfig.from_dict(recipe) == default


def test_shipped_recipe_comments_every_option():
    for line in RECIPE.read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or " # " in line, line


@pytest.mark.parametrize("owner", DistillConfig.kinds())
def test_every_option_is_documented(owner):
    kind = DistillConfig.kinds()[owner]
    assert list(kind.meanings()) == list(kind.keys())
    assert all(text.endswith(".") for text in kind.meanings().values())


def test_no_two_methods_share_a_key():
    for (one, first), (other, second) in combinations(DistillConfig.kinds().items(), 2):
        assert not set(first.keys()) & set(second.keys()), (one, other)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_to_the_interface(name):
    kind = method_class(name)
    assert issubclass(kind, DistillMethod) and kind.Options().to_dict() == kind.Options.defaults()


def test_defaults_are_plain_yaml_and_come_back():
    defaults = DistillConfig.defaults()
    assert DistillConfig.from_dict(yaml.safe_load(yaml.safe_dump(defaults))) == DistillConfig.from_dict({})
    defaults["teachers"].append("x.pt")
    assert DistillConfig.defaults()["teachers"] == []


@pytest.mark.parametrize("owner", DistillConfig.kinds())
def test_fields_are_frozen(owner):
    options = DistillConfig.kinds()[owner]()
    with pytest.raises(FrozenInstanceError):
        setattr(options, options.keys()[0], 3)


def value_of(given: dict[str, Any], key: str) -> Any:
    config = DistillConfig.from_dict(given)
    return next(getattr(o, key) for o in (config.run, *config.methods.values()) if key in o.keys())


def test_several_methods_each_have_their_own_options():
    config = DistillConfig.from_dict({"distill": ["meddet", "l2"], "l2_weight": 2, "adv_weight": 0})
    assert list(config.methods) == ["meddet", "l2"]
    assert config.methods["l2"].l2_weight == 2 and config.methods["meddet"].adv_weight == 0


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({"teachers": "a.pt"}, "teachers", ["a.pt"]),
        ({"teachers": Path("a.pt")}, "teachers", ["a.pt"]),
        ({"teachers": ("a.pt", Path("b.pt"))}, "teachers", ["a.pt", "b.pt"]),
        ({"teachers": None}, "teachers", []),
        ({"dist_weight": 2}, "dist_weight", 2.0),
        ({"disc_lr": "1e-4"}, "disc_lr", 1e-4),  # what YAML 1.1 makes of 1e-4
        ({"guard": None}, "guard", "none"),  # what smart parsers make of none
        ({"fusion": "LWFF"}, "fusion", "lwff"),
        ({"teachers": ["a", "b"], "teacher_imgsz": (320, 640)}, "teacher_imgsz", [320, 640]),
        ({"teacher_imgsz": 320.0}, "teacher_imgsz", 320),
        ({"distill_warmup": 0}, "distill_warmup", 0.0),
        ({"distill_stop": 0}, "distill_stop", 0),
        ({"distill_stop": None}, "distill_stop", None),
        ({"adv_weight": 0}, "adv_weight", 0.0),
    ],
)
def test_conversions(given, field, expected):
    value = value_of(given, field)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dist_wieght": 1}, r"Unknown distillation option 'dist_wieght': did you mean 'dist_weight'\?"),
        ({"teacher": "a.pt"}, r"'teacher': did you mean 'teachers'\?"),
        ({"zzz": 1}, r"Unknown distillation option 'zzz': valid are .*dist_weight"),
        ({"dist_weight": -1}, r"dist_weight must be a number at least 0, got -1"),
        ({"dist_weight": "much"}, r"dist_weight must be a number at least 0, got 'much'"),
        ({"dist_weight": True}, r"dist_weight must be a number"),
        ({"dist_weight": float("nan")}, r"dist_weight must be a number"),
        ({"adv_weight": float("inf")}, r"adv_weight must be a number"),
        ({"disc_lr": 0}, r"disc_lr must be a number above 0, got 0"),
        ({"guard_weight": 0}, r"guard_weight must be a number above 0"),
        ({"drown_warning": 1.5}, r"drown_warning must be a number above 0 and at most 1, got 1.5"),
        ({"foreground_weight": 2}, r"foreground_weight must be a number at least 0 and at most 1, got 2"),
        ({"guard": "none", "dist_weight": 0}, r"guard none leaves .* dist_weight must be above 0"),
        ({"fusion": "lwf"}, r"fusion must be one of lwff, sum, concat, got 'lwf': did you mean 'lwff'\?"),
        ({"guard": "reconstruct"}, r"guard must be one of .* did you mean 'reconstruction'\?"),
        ({"distill": "meddett"}, r"distill must be one of .* did you mean 'meddet'\?"),
        ({"distill": ["meddet", "meddet"]}, r"distill names a method twice: meddet, meddet"),
        ({"distill": []}, r"distill must be a method or a list of them"),
        ({"distill": "l2", "fusion": "sum"}, r"fusion=sum is an option of distill=meddet, but this run has distill=l2"),
        ({"l2_weight": 2}, r"l2_weight=2 is an option of distill=l2, but this run has distill=meddet"),
        ({"distill_stop": -1}, r"distill_stop must be a whole number of 0 or more, or empty, got -1"),
        ({"distill_stop": False}, r"distill_stop must be a whole number .* got False"),
        ({"distill_schedule": "cos"}, r"distill_schedule must be one of constant, cosine, got 'cos'"),
        ({"trust": "yes"}, r"trust must be true or false, got 'yes'"),
        ({"teachers": 3}, r"teachers must be a checkpoint path or a list of them, .* got 3"),
        ({"teachers": ["a.pt", ""]}, r"teachers must be a checkpoint path"),
        ({"teachers": ["a.pt"], "teacher_imgsz": [320, 640]}, r"one for each of the 1 teachers, got \[320, 640\]"),
        ({"teacher_imgsz": 0}, r"teacher_imgsz must be a whole number of 1 or more, got 0"),
        ({"teacher_imgsz": "big"}, r"teacher_imgsz must be a whole number"),
        ({"disc_grid": 1.5}, r"disc_grid must be a whole number of 1 or more, got 1.5"),
    ],
)
def test_errors_name_what_was_given_and_what_is_valid(given, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig.from_dict(given)


@pytest.mark.parametrize(("given", "expected"), [(None, [None, None]), (320, [320, 320]), ([320, 640], [320, 640])])
def test_teacher_sizes(given, expected):
    assert RunOptions(teachers=["a", "b"], teacher_imgsz=given).teacher_sizes() == expected
