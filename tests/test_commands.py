import pytest
import yaml
from ultralytics.cfg import _handle_deprecation
from ultralytics.utils import DEFAULT_CFG_DICT

from meddet_yolo import commands
from meddet_yolo.model import OWN_KEYS


@pytest.mark.parametrize("mode", commands.MODES)
def test_our_keys_of_a_mode_are_those_that_it_takes(mode):
    assert commands.own_keys(mode).keys() == OWN_KEYS[mode]
    assert all(key.meaning for key in commands.own_keys(mode).values())


@pytest.mark.parametrize("command", commands.OWN_COMMANDS)
def test_every_key_of_our_commands_is_described(command):
    group = commands.groups_of(command)[0]
    assert group.title
    assert [key.name for key in group.keys if not key.meaning] == []
    assert all(key.ours for key in group.keys)


def test_keys_of_ultralytics_are_those_of_its_file_with_their_defaults():
    stock = {k: key for k, key in commands.keys_of("predict").items() if not key.ours}
    assert stock.keys() == DEFAULT_CFG_DICT.keys() | {"augmentations", "save_dir"}
    assert {k: stock[k].default for k in DEFAULT_CFG_DICT} == DEFAULT_CFG_DICT
    assert all(stock[key].meaning for key in DEFAULT_CFG_DICT)
    assert (stock["imgsz"].type, stock["model"].type) == ("int | list", "str")
    assert "onnx" in stock["format"].choices


@pytest.mark.parametrize("mode", [*commands.MODES, "track"])
def test_sections_of_ultralytics_are_found_by_their_names(mode):
    titles = [group.title for group in commands.groups_of(mode)]
    assert set(commands._SECTIONS[mode]) <= set(titles)


def test_everything_is_in_cfg():
    shown = {key.name for group in commands.groups_of("cfg") for key in group.keys}
    assert shown == DEFAULT_CFG_DICT.keys() | set().union(*OWN_KEYS.values())


@pytest.mark.parametrize(
    "key", ["half", "int8", "end2end", "boxes", "hide_labels", "hide_conf", "line_thickness", "save_hybrid", "keras"]
)
def test_former_keys_of_ultralytics_are_known(key):
    assert key in commands.renamed_keys()
    assert key not in _handle_deprecation({key: True})  # one that it still translates


def test_a_reproduction_takes_the_keys_of_a_comparison():
    keys = commands.keys_of("reproduce")
    assert {"what", "jobs", "folds", "epochs"} <= keys.keys()


def test_a_comparison_takes_the_keys_of_its_trainings():
    keys = commands.keys_of("compare")
    assert {"folds", "epochs", "dist_weight"} <= keys.keys()
    assert keys["epochs"].ours is False


def test_model_names_are_names_that_ultralytics_builds():
    from ultralytics.nn.tasks import yaml_model_load

    names = commands.model_names()
    assert set(commands.shipped("models")) <= set(names)
    assert len(names) == len(set(names)) > 50
    for name in names[:: len(names) // 8]:
        assert isinstance(yaml_model_load(name)["backbone"], list)


def test_recipes_that_are_shipped_hold_known_keys_only():
    from meddet_yolo.signatures import find_file

    for name in commands.shipped("distill"):
        recipe = yaml.safe_load((find_file("meddet_yolo.cfg").parent / "distill" / name).read_text())
        assert recipe.keys() <= commands.keys_of("train").keys()
