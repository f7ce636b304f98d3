"""Masked generative distillation against its formula in plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.methods.mgd import MGD, MGDOptions
from tests.distill.methods._outputs import channel, no_head, output, projected, spec


def convolved(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """A 3x3 convolution with zeros around, position by position."""
    weight, bias = (layer.get_parameter(name).detach().double() for name in ("weight", "bias"))
    batch, _, height, width = x.shape
    result = torch.zeros(batch, len(weight), height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            result[:, :, i, j] = bias
            for di in range(-1, 2):
                for dj in range(-1, 2):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        result[:, :, i, j] += x[:, :, i + di, j + dj] @ weight[:, :, di + 1, dj + 1].T
    return result


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.5, 0.65]))
def test_it_is_the_formula(seed, masked):
    torch.manual_seed(seed)
    method = MGD(spec("student", [3]), [spec("a.pt", [4])], MGDOptions(mgd_masked=masked))
    student, teacher = output([3], seed), output([4], seed + 1)
    torch.manual_seed(3)
    loss = method(student, [teacher], {}, head_loss=no_head)["mgd"].loss
    torch.manual_seed(3)
    kept = torch.rand(2, 1, 4, 4) >= masked
    first, _, second = method.generators[0].children()
    made = convolved(convolved(projected(method, 0, student.feats[0]) * kept, first).clamp(min=0), second)
    target = torch.tensor([channel(teacher.feats[0].double(), c) for c in range(4)]).transpose(0, 1).flatten()
    total = sum((a - b) ** 2 for a, b in zip(made.flatten().tolist(), target.tolist(), strict=True))
    assert loss.item() == pytest.approx(total / (2 * 4 * 16), rel=1e-4)


def test_with_everything_masked_nothing_reaches_the_student():
    method = MGD(spec("student", [3]), [spec("a.pt", [4])], MGDOptions(mgd_masked=1))
    student = output([3], 0)
    student.feats[0].requires_grad_()
    method(student, [output([4], 1)], {}, head_loss=no_head)["mgd"].loss.backward()
    assert student.feats[0].grad is not None and student.feats[0].grad.eq(0).all()
