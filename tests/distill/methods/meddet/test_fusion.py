"""LWFF, sum and concatenation: one interface, and the meaning of each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.methods.meddet.fusion import FUSIONS, ConcatFusion, LearnableWeightedFeatureFusion, SumFusion
from meddet_yolo.distill.methods.meddet.options import FUSION_NAMES

ALL = pytest.mark.parametrize("fusion", FUSIONS.values())


def maps(teachers: int, channels: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, 5, 3, generator=generator, requires_grad=True) for _ in range(teachers)]


def test_configuration_knows_the_same_names():
    assert set(FUSIONS) == set(FUSION_NAMES)


@ALL
@settings(max_examples=20, deadline=None)
@given(teachers=st.integers(1, 5), channels=st.integers(1, 9))
def test_shape_shares_and_gradient_to_every_map(fusion, teachers, channels):
    torch.manual_seed(teachers + 10 * channels)
    module, given_maps = fusion(teachers, channels), maps(teachers, channels)
    fused = module(given_maps)
    assert fused.shape == given_maps[0].shape
    fused.square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in given_maps)
    shares = module.weights()
    assert shares.shape == (teachers,) and not shares.requires_grad
    assert shares.sum().item() == pytest.approx(1, abs=1e-5)


def test_lwff_is_weighting_then_concatenation_then_convolution():
    module = LearnableWeightedFeatureFusion(3, 4)
    with torch.no_grad():
        module.scale.uniform_(-2, 2)
    given_maps = maps(3, 4)
    weighted = [x * w.view(1, -1, 1, 1) for x, w in zip(given_maps, module.scale, strict=True)]
    torch.testing.assert_close(module(given_maps), module.conv(torch.cat(weighted, dim=1)))


def test_lwff_weights_learn_and_show_in_the_shares():
    module = LearnableWeightedFeatureFusion(2, 4)
    module(maps(2, 4)).sum().backward()
    assert module.scale.grad is not None and (module.scale.grad != 0).all()
    with torch.no_grad():
        module.scale[0] = -3
    torch.testing.assert_close(module.weights(), torch.tensor([0.75, 0.25]))


def test_lwff_ignores_a_teacher_of_weight_zero():
    module = LearnableWeightedFeatureFusion(2, 4)
    with torch.no_grad():
        module.scale[1] = 0
    first, second = maps(2, 4)
    torch.testing.assert_close(module([first, second]), module([first, second * 100]))


def test_concat_shares_follow_the_convolution():
    module = ConcatFusion(2, 4)
    with torch.no_grad():
        module.conv.weight[:, 4:] = 0
    torch.testing.assert_close(module.weights(), torch.tensor([1.0, 0.0]))


def test_sum_adds():
    first, second, third = maps(3, 4)
    torch.testing.assert_close(SumFusion(3, 4)([first, second, third]), first + second + third)
    assert list(SumFusion(3, 4).parameters()) == []


@ALL
def test_wrong_number_of_maps_or_teachers(fusion):
    with pytest.raises(ValueError, match=r"Expected 2 maps.*got 3"):
        fusion(2, 4)(maps(3, 4))
    with pytest.raises(ValueError, match="at least 1 teacher"):
        fusion(0, 4)
