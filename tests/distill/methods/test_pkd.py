"""Pearson distillation against SciPy's correlation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from meddet_yolo.distill.methods.pkd import PKD, PKDOptions
from tests.distill.methods._outputs import no_head, output, projected, spec


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.integers(1, 2))
def test_it_is_one_less_the_correlation(seed, number):
    torch.manual_seed(seed)
    teachers = [output([4, 2], seed + 1 + i) for i in range(number)]
    specs = [spec(f"{i}.pt", [4, 2]) for i in range(number)]
    method, student = PKD(spec("student", [3, 2]), specs, PKDOptions()), output([3, 2], seed)
    losses = []
    for pair, (teacher, level) in enumerate((t, i) for t in teachers for i in range(2)):
        s, t = projected(method, pair, student.feats[level]), teacher.feats[level].double()
        apart = [1 - pearsonr(s[:, c].flatten(), t[:, c].flatten()).statistic for c in range(t.shape[1])]
        losses.append(sum(apart) / len(apart))
    loss = method(student, teachers, {}, head_loss=no_head)["pkd"].loss
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_scale_and_offset_of_a_teachers_channel_do_not_matter():
    torch.manual_seed(0)
    method, teacher, student = PKD(spec("s", [3]), [spec("t", [4])], PKDOptions()), output([4], 1), output([3], 0)
    plain = method(student, [teacher], {}, head_loss=no_head)["pkd"].loss
    teacher.feats[0] = 3 * teacher.feats[0] - torch.arange(4.0).view(1, 4, 1, 1)
    torch.testing.assert_close(method(student, [teacher], {}, head_loss=no_head)["pkd"].loss, plain)
