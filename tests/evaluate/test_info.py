"""`meddet info`: counts against hand-made ones, conventions, and what it says of wrong input."""

from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from meddet_yolo import cli
from meddet_yolo.evaluate import info as module
from meddet_yolo.evaluate.info import PAPER_MODELS, build_model, info, measure_size


class Small(nn.Module):
    """One convolution, one normalisation, one activation: counted by hand below."""

    def __init__(self) -> None:
        super().__init__()
        self.yaml = {"channels": 2}
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.act = nn.ReLU()
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.act(self.norm(self.conv(x))))


def test_counts_what_can_be_counted_by_hand() -> None:
    size = measure_size(Small(), (32, 64))
    cells = 32 * 64
    assert size.parameters == 2 * 5 * 9 + 5 + 10
    assert size.multiply_adds == cells * 2 * 5 * 9
    assert size.elementwise == cells * 5 * (1 + 2 + 1 + 1)  # bias, normalisation, activation, pooling
    assert size.gflops == pytest.approx(2 * size.multiply_adds / 1e9)


def test_the_model_stays_as_it_was() -> None:
    model = Small().train()
    measure_size(model, 32)
    assert model.training and model.norm.training and int(model.norm.num_batches_tracked) == 0
    assert not model._forward_hooks and not model.conv._forward_hooks


def test_gflops_are_ultralytics_for_its_own_models() -> None:
    from ultralytics.utils.torch_utils import get_flops

    model = DetectionModel("yolo11n.yaml", verbose=False)
    assert measure_size(model, 320).gflops == pytest.approx(get_flops(model, 320), rel=0.03)


def test_operations_grow_with_the_image() -> None:
    model = build_model("gfl-shufflenetv2", nc=2)
    small, large = measure_size(model, 128), measure_size(model, 256)
    assert large.multiply_adds == 4 * small.multiply_adds  # all levels double exactly from 128 on
    assert large.parameters == small.parameters


def test_one_line_a_model_with_the_papers_figures() -> None:
    header, rule, *rows, note = info("gfl-shufflenetv2,yolo11n.yaml,meddet-gfl-mobilenetv2.yaml", imgsz=64, nc=2).split(
        "\n"
    )
    assert [row.split()[0] for row in rows] == ["gfl-shufflenetv2", "yolo11n", "meddet-gfl-mobilenetv2"]
    assert ["10.42 M, 31.69 G" in row for row in rows] == [False, False, True]
    assert "64x64" in note and "counted once" in note and "counted twice" in note
    assert len(header) <= 120 and set(rule) == {"-", " "}


def test_without_a_model_all_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, int | None]] = []
    monkeypatch.setattr(module, "build_model", lambda name, nc: built.append((name, nc)) or Small())
    assert len(info(imgsz=32).splitlines()) == len(PAPER_MODELS) + 3
    assert built == [(name, 2) for name in PAPER_MODELS]


def test_no_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    from meddet_yolo.nn import backbones

    monkeypatch.setattr(backbones, "_imagenet_file", lambda *a: pytest.fail("asked for weights"))
    build_model("gfl-shufflenetv2", nc=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "gfl-nothing"}, "neither a local file nor shipped"),
        ({"model": "nothing.pt"}, "no such file"),
        ({"model": ""}, "names no model"),
        ({"model": "yolo11n-seg.yaml"}, "task 'segment'; expected a detector"),
        ({"model": "gfl-shufflenetv2", "imgsz": 100}, "multiple of 32, or two .* got 100"),
        ({"model": "gfl-shufflenetv2", "imgsz": "abc"}, "got 'abc'"),
        ({"model": "gfl-shufflenetv2", "imgsz": [64, 64, 64]}, "two for height and width"),
        ({"model": "gfl-shufflenetv2", "nc": 0}, "nc must be a whole number"),
    ],
)
def test_wrong_input_is_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        info(**arguments)


def test_a_checkpoint_has_its_own_classes(tmp_path: Path) -> None:
    model = build_model("gfl-shufflenetv2", nc=3)
    torch.save({"model": model.half(), "ema": None, "train_args": {"task": "detect"}}, tmp_path / "a.pt")
    assert "8.82 M" in info(str(tmp_path / "a.pt"), imgsz=64)
    with pytest.raises(ValueError, match="has 3 classes"):
        info(str(tmp_path / "a.pt"), nc=2)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "model=gfl-shufflenetv2.yaml", "imgsz=[64,96]", "nc=2"]) == 0
    assert "64x96" in capsys.readouterr().out
    assert cli.main(["info", "model=meddet-n.yaml,yolo11n.yaml", "imgsz=64"]) == 0
    assert capsys.readouterr().err.splitlines() == ["[1/2] measuring meddet-n.yaml", "[2/2] measuring yolo11n.yaml"]
    assert cli.main(["info", "model=gfl-nothing.yaml"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
