"""When distillation ends: with mosaic, or where the run says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.train.trainer import DistillTrainer


def distilled(epochs: int = 30, mosaic: float = 1.0, close_mosaic: int = 10, stop: int | None = None) -> int:
    trainer = SimpleNamespace(
        epochs=epochs,
        args=SimpleNamespace(mosaic=mosaic, close_mosaic=close_mosaic),
        distill_config=DistillConfig.from_dict({"distill_stop": stop}),
    )
    return DistillTrainer._distilled_epochs(trainer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 20),
        ({"close_mosaic": 0}, 30),
        ({"mosaic": 0.0}, 30),
        ({"epochs": 10}, 10),  # mosaic never opens in a run as short as that: a student would learn nothing
        ({"epochs": 11}, 1),
        ({"stop": 0}, 30),
        ({"stop": 3, "mosaic": 0.0}, 27),
    ],
)
def test_it_ends_with_mosaic_unless_the_run_says(given, expected):
    assert distilled(**given) == expected


def test_a_stop_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="distill_stop=30 leaves none of the 30 epochs to distillation"):
        distilled(stop=30)
