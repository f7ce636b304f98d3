"""The table of our layers."""

from __future__ import annotations

from importlib import import_module

import pytest
from torch import nn
from ultralytics.nn import tasks

import meddet_yolo
from meddet_yolo.registry.layers import LAYERS


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_stands_where_its_row_says(name: str) -> None:
    layer = LAYERS[name]
    assert issubclass(getattr(import_module(layer.module), name), nn.Module)
    home = nn if layer.stand_in.startswith("nn.") else tasks
    assert issubclass(getattr(home, layer.stand_in.removeprefix("nn.")), nn.Module)
    assert layer.options()


def test_no_layer_of_ours_hides_one_of_ultralytics() -> None:
    assert not LAYERS.keys() & vars(tasks).keys()


def test_the_public_layers_are_of_the_table() -> None:
    public = {name for name in meddet_yolo.__all__ if name.endswith(("Detect", "Block"))}
    assert public == {"NmODE2Detect", "NmODE2Block", "GFLDetect"}
    assert public <= LAYERS.keys()
