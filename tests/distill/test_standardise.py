"""Standardisation against scikit-learn, and its behaviour at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from meddet_yolo.distill.standardise import EPS, standardise


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    scale=st.floats(0.1, 100),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 1000),
)
def test_agrees_with_sklearn(shape, scale, offset, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + offset
    rows = x.movedim(1, -1).reshape(-1, shape[1]).double().numpy()
    scaler = StandardScaler().fit(rows)
    expected = scaler.transform(rows) * np.sqrt(scaler.var_ / (scaler.var_ + EPS))
    got = standardise(x).movedim(1, -1).reshape(-1, shape[1]).double().numpy()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32_statistics(dtype):
    x = torch.randn(2, 4, 64, 64) * 100 + 300  # the sum over a channel is far beyond float16's 65504
    z = standardise(x.to(dtype))
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (z.var(dim=(0, 2, 3), unbiased=False) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 4, 4)])
def test_constant_channels_become_zeros_with_finite_gradient(shape):
    x = torch.full(shape, 7.0, requires_grad=True)
    z = standardise(x)
    z.square().sum().backward()
    assert torch.equal(z, torch.zeros(shape))
    assert x.grad is not None and x.grad.isfinite().all()


def test_scale_and_offset_of_a_network_do_not_matter():
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(standardise(x), standardise(x * 50 - 20), atol=1e-4)


def test_no_state_between_calls_or_modes():
    x, other = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4) * 9
    first = standardise(x)
    standardise(other)
    assert torch.equal(first, standardise(x))
