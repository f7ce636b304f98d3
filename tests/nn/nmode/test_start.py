"""Where nmODE² starts: the moments against sampling, the flank against the function itself."""

import numpy as np
import pytest
import torch
from torch import nn

from meddet_yolo.nn.nmode.layers import NmODE2, NmODE2Activation, integrate_nmode2, nmode2
from meddet_yolo.nn.nmode.start import start_of, start_on_flank


@pytest.mark.parametrize("t_end", [0.5, 1.0, 2.0])
def test_moments_agree_with_sampling(t_end: float) -> None:
    start = start_of(t_end)
    g = torch.from_numpy(np.random.default_rng(0).normal(start.bias, start.weight, 400_000))
    y = integrate_nmode2(g, t_end, solver="rk4", steps=64)
    assert start.mean == pytest.approx(float(y.mean()), abs=2e-3)
    assert start.std == pytest.approx(float(y.std()), rel=5e-3)


@pytest.mark.parametrize("t_end", [0.5, 1.0, 2.0])
def test_two_deviations_stay_on_the_falling_flank(t_end: float) -> None:
    start = start_of(t_end)
    g = torch.linspace(start.bias - 2 * start.weight, start.bias + 2 * start.weight, 1001, dtype=torch.float64)
    y = nmode2(g, t_end)
    assert (y.diff() <= 1e-12).all()
    assert y[0] == pytest.approx(float(nmode2(torch.linspace(-2, 2, 9999), t_end).max()), abs=1e-5)
    assert y[-1] == pytest.approx(0, abs=1e-6)


def test_a_normalisation_starts_there() -> None:
    norm = nn.BatchNorm2d(8)
    start_on_flank(norm)
    x = torch.randn(16, 8, 32, 32)
    y = NmODE2Activation(standardise=True)(norm(x))
    assert y.mean().abs() < 0.02
    assert (y.std() - 1).abs() < 0.02
    assert torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1] > 0.9
    usual = NmODE2Activation()(nn.BatchNorm2d(8)(x))
    assert torch.corrcoef(torch.stack([x.flatten(), usual.flatten()]))[0, 1].abs() < 0.2  # what this is for


@pytest.mark.parametrize("standardise", [False, True])
def test_folding_keeps_what_the_next_convolution_computes(standardise: bool) -> None:
    block, conv = NmODE2(8, standardise=standardise).eval(), nn.Conv2d(8, 5, 1)
    x = torch.randn(2, 8, 6, 6)
    want = conv(block(x))
    for _ in range(2):  # a second time must change nothing
        block.act.fold_into(conv)
        torch.testing.assert_close(conv(block(x)), want)
    assert (block.act.shift, block.act.scale) == (0.0, 1.0)


def test_folding_refuses_what_it_cannot_do_exactly() -> None:
    for conv in (nn.Conv2d(8, 5, 3, padding=1), nn.Conv2d(8, 5, 1, bias=False)):
        with pytest.raises(ValueError, match="with bias and without padding"):
            NmODE2Activation(standardise=True).fold_into(conv)
