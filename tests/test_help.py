import re

import pytest

from meddet_yolo.commands import MODES, OWN_COMMANDS, groups_of
from meddet_yolo.help import HELP, help_of
from meddet_yolo.model import OWN_KEYS


def keys_in(text: str, mark: str) -> set[str]:
    return set(re.findall(rf"^{re.escape(mark)}(\w+)=", text, re.MULTILINE))


def test_help_names_only_keys_that_exist():
    keys = set(re.findall(r"\b(\w+)=", HELP.split("Distillation adds")[1]))
    assert keys - {"cfg"} <= OWN_KEYS["train"]


@pytest.mark.parametrize("mode", MODES)
def test_ours_are_marked_against_those_of_ultralytics(mode):
    text = help_of(mode, 100)
    assert keys_in(text, "* ") == OWN_KEYS[mode]
    assert {"model", "imgsz", "device"} <= keys_in(text, "  ")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", OWN_COMMANDS)
def test_every_key_of_a_command_of_ours_is_shown(command):
    assert keys_in(help_of(command, 80), "") == {key.name for key in groups_of(command)[0].keys}


def test_defaults_types_and_meanings_are_shown():
    text = help_of("train", 110)
    assert re.search(r"^\* distill_warmup=3\.0 +\(float\) Epochs over which", text, re.MULTILINE)
    assert re.search(r"^  epochs=100 +\(int\) number of epochs to train for", text, re.MULTILINE)
    assert "Options of `distill=cwd`." in text
    assert text.startswith("meddet train model=... data=... key=value")
    assert re.search(r"^seeds=1 +Number of seeds", help_of("compare", 110), re.MULTILINE)  # which the docstring tells
    assert re.search(r"^backends= ", help_of("benchmark", 110), re.MULTILINE)  # computed


@pytest.mark.parametrize("width", [20, 60, 500])
def test_terminals_of_any_width_are_served(width):
    text = help_of("evaluate", width)
    assert len(keys_in(text, "")) == len(groups_of("evaluate")[0].keys)
    assert max(map(len, text.splitlines())) <= max(min(width, 120), 60)
