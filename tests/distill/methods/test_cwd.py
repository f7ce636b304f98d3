"""Channel-wise distillation against its formula in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.methods.cwd import CWD, CWDOptions
from tests.distill.methods._outputs import channel, no_head, output, projected, spec


def shares(values: list[float], tau: float) -> list[float]:
    total = sum(math.exp(v / tau) for v in values)
    return [math.exp(v / tau) / total for v in values]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1.0, 4.0]), st.integers(1, 2))
def test_it_is_the_formula(seed, tau, number):
    torch.manual_seed(seed)
    teachers = [output([4, 2], seed + 1 + i) for i in range(number)]
    specs = [spec(f"{i}.pt", [4, 2]) for i in range(number)]
    method, student = CWD(spec("student", [3, 2]), specs, CWDOptions(cwd_temperature=tau)), output([3, 2], seed)
    losses = []
    for pair, (teacher, level) in enumerate((t, i) for t in teachers for i in range(2)):
        s, t = projected(method, pair, student.feats[level]), teacher.feats[level].double()
        loss = 0.0
        for c in range(t.shape[1]):
            mine, theirs = channel(s, c), channel(t, c)
            for b in range(len(t)):
                p, q = shares(mine[b], tau), shares(theirs[b], tau)
                loss += tau**2 * sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
        losses.append(loss / t.shape[1] / len(t))
    loss = method(student, teachers, {}, head_loss=no_head)["cwd"].loss
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="cwd_temperature must be a number above 0, got 0"):
        CWDOptions(cwd_temperature=0)
