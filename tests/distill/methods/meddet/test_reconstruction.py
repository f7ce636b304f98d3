"""The reconstruction guard's measure against scikit-learn, and its optimum against principal components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import explained_variance_score, r2_score

from meddet_yolo.distill.methods.meddet.reconstruction import (
    ReconstructionGuard,
    linear_explained_variance,
    unexplained_variance,
)
from meddet_yolo.distill.standardise import standardise


def rows(x: torch.Tensor) -> np.ndarray:
    return x.detach().movedim(1, -1).reshape(-1, x.shape[1]).double().numpy()


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 6), teachers=st.lists(st.integers(1, 8), min_size=1, max_size=3), seed=st.integers(0, 99)
)
def test_explained_variance_agrees_with_sklearn(channels, teachers, seed):
    torch.manual_seed(seed)
    guard = ReconstructionGuard(channels, teachers)
    fused = standardise(torch.randn(2, channels, 4, 5))
    targets = [standardise(torch.randn(2, c, 4, 5) + fused[:, :1]) for c in teachers]
    loss, explained = guard(fused, targets)
    for decoder, target, got in zip(guard.decoders, targets, explained, strict=True):
        truth, prediction = rows(target), rows(decoder(fused))
        # the guard's R² weighs by variance; both sides have zero mean, so R² and explained variance are the same
        assert got.item() == pytest.approx(r2_score(truth, prediction, multioutput="variance_weighted"), abs=1e-4)
        assert got.item() == pytest.approx(
            explained_variance_score(truth, prediction, multioutput="variance_weighted"), abs=1e-4
        )
    assert loss.item() == pytest.approx(1 - explained.mean().item(), abs=1e-5)
    assert not explained.requires_grad


def test_targets_get_no_gradient_and_decoders_do():
    guard = ReconstructionGuard(3, [4, 5])
    fused = torch.randn(2, 3, 4, 4, requires_grad=True)
    guard(fused, [torch.randn(2, 4, 4, 4), torch.randn(2, 5, 4, 4)])[0].backward()
    assert fused.grad is not None and fused.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in guard.parameters())


@pytest.mark.parametrize("alive", [0.0, 1e-9, 1e-7, 1e-5])
def test_a_dead_teacher_has_nothing_to_explain_and_teaches_nothing(alive):
    torch.manual_seed(0)
    guard = ReconstructionGuard(3, [4, 4])
    fused = torch.randn(2, 3, 4, 4, requires_grad=True)
    dead, living = standardise(alive * torch.randn(2, 4, 4, 4)), standardise(torch.randn(2, 4, 4, 4))
    loss, explained = guard(fused, [dead, living])
    assert explained[0] == 1
    assert loss.item() == pytest.approx((1 - explained[1].item()) / 2)
    loss.backward()
    assert not guard.decoders[0].weight.grad.any()
    assert guard.decoders[1].weight.grad.any() and fused.grad.isfinite().all()


def test_a_teacher_with_one_living_channel_of_many_is_still_to_be_explained():
    target = torch.zeros(2, 512, 4, 4)
    target[:, 7] = torch.randn(2, 4, 4)
    target = standardise(target)
    assert unexplained_variance(torch.zeros_like(target), target).item() == pytest.approx(1, abs=1e-5)


def test_linear_explained_variance_is_that_of_a_regression_on_unseen_cells():
    torch.manual_seed(0)
    source = torch.randn(8, 4, 16, 16)
    target = torch.einsum("dc,bchw->bdhw", torch.randn(6, 4), source) + torch.randn(8, 6, 16, 16)
    source, target = standardise(source), standardise(target)
    x, y = rows(source), rows(target)
    fit = LinearRegression(fit_intercept=False).fit(x[::2], y[::2])
    expected = r2_score(y[1::2], fit.predict(x[1::2]), multioutput="variance_weighted")
    assert linear_explained_variance(source, target).item() == pytest.approx(expected, abs=2e-3)


def test_linear_explained_variance_of_unrelated_constant_and_tiny_maps():
    x, y = torch.randn(8, 4, 16, 16), torch.randn(8, 6, 16, 16)
    assert abs(linear_explained_variance(x, y).item()) < 0.02
    assert linear_explained_variance(torch.zeros_like(x), y).item() == pytest.approx(0, abs=1e-4)
    assert linear_explained_variance(x[:1, :, :1, :1], y[:1, :, :1, :1]).isfinite()
