"""The nmODE² block that a model YAML can place anywhere."""

import pytest
import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel

from meddet_yolo.nn.blocks import NmODE2Block
from meddet_yolo.nn.nmode import NmODE2Activation, nmode2
from meddet_yolo.nn.nmode.start import start_of


def with_block(row: list, after: int = 10) -> dict:
    """The layout of meddet-n with a row put in behind row `after`; later references move by one."""
    config = tasks.yaml_model_load("meddet-n.yaml")
    rows = config["backbone"] + config["head"]
    rows.insert(after + 1, row)
    for moved in rows[after + 2 :]:
        source = moved[0] if isinstance(moved[0], list) else [moved[0]]
        source = [s + 1 if s >= after else s for s in source]
        moved[0] = source if isinstance(moved[0], list) else source[0]
    n = len(config["backbone"])
    return {**config, "backbone": rows[:n], "head": rows[n:]}


def test_computes_nmode_of_the_normalised_convolution() -> None:
    block = NmODE2Block(8, 16, 3, 2).eval()
    block.bn.running_mean.uniform_(-1, 1)
    x = torch.randn(2, 8, 9, 9)
    assert isinstance(block, Conv)
    assert block(x).shape == (2, 16, 5, 5)
    start = start_of(1.0)
    torch.testing.assert_close(block(x), (nmode2(block.bn(block.conv(x))) - start.mean) / start.std)
    plain = NmODE2Block(8, 16, 3, 2, standardise=False).eval()
    torch.testing.assert_close(plain(x), nmode2(plain.bn(plain.conv(x))))


def test_yaml_scales_the_width_and_passes_the_options() -> None:
    net = DetectionModel(with_block([-1, 1, "NmODE2Block", [1024, 3, 1, {"t_end": 0.5}]]), nc=3, verbose=False)
    block = net.model[11]
    assert isinstance(block, NmODE2Block) and (block.i, block.f) == (11, -1)
    assert block.conv.weight.shape == (256, 256, 3, 3)
    assert block.act.t_end == 0.5
    assert block.np == sum(p.numel() for p in block.parameters())


def test_survives_fusion_of_the_model() -> None:
    net = DetectionModel(with_block([-1, 1, "NmODE2Block", [1024]]), nc=3, verbose=False).eval()
    nn.init.uniform_(net.model[11].bn.running_mean, -1, 1)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = net(x)[0]
        net.fuse(verbose=False)
        torch.testing.assert_close(net(x)[0], want, atol=1e-3, rtol=1e-4)
    assert not hasattr(net.model[11], "bn") and isinstance(net.model[11].act, NmODE2Activation)


def test_repeats_where_the_width_stays() -> None:
    net = DetectionModel(with_block([-1, 4, "NmODE2Block", [1024]]), nc=3, verbose=False)
    assert isinstance(net.model[11], nn.Sequential)  # the depth factor makes two of the four
    assert [type(m) for m in net.model[11]] == [NmODE2Block, NmODE2Block]
    assert net.eval()(torch.zeros(1, 3, 64, 64))[0].shape[1] == 7


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 4, "NmODE2Block", [512]], "input as output channels, got 256 and 128"),
        ([-1, 1, "NmODE2Block", [512, {"tend": 1.0}]], "unknown option 'tend', did you mean 't_end'"),
        ([-1, 1, "NmODE2Block", []], "not of the form"),
        ([-1, 1, "NmODE2Block", [{"t_end": 1.0}, 512]], "not of the form"),
    ],
)
def test_bad_rows_are_named(row: list, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        DetectionModel(with_block(row), nc=3, verbose=False)
    assert "row 11" in str(error.value)
