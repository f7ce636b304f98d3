"""Bridging cross-task distillation against its formula in plain loops."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.methods.bckd import BCKD, BCKDOptions
from tests.distill.methods._outputs import no_head, output, sides_of, spec


def giou(one: list[float], other: list[float]) -> float:
    """Generalised IoU of two boxes, given as distances from one anchor."""
    (l1, t1, r1, b1), (l2, t2, r2, b2) = one, other
    inter = max(min(l1, l2) + min(r1, r2), 0) * max(min(t1, t2) + min(b1, b2), 0)
    union = (l1 + r1) * (t1 + b1) + (l2 + r2) * (t2 + b2) - inter
    hull = (max(l1, l2) + max(r1, r2)) * (max(t1, t2) + max(b1, b2))
    return inter / union - (hull - union) / hull


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1, 4]))
def test_it_is_the_formula(seed, bins):
    method = BCKD(spec("student", [3], reg_max=bins), [spec("a.pt", [4], reg_max=bins)], BCKDOptions())
    student, teacher = output([3], seed, reg_max=bins), output([4], seed + 1, reg_max=bins)
    assert student.logits is not None and student.boxes is not None
    assert teacher.logits is not None and teacher.boxes is not None
    classes, boxes, total = 0.0, 0.0, 0.0
    for b in range(2):
        for a in range(16):
            s = [1 / (1 + math.exp(-z)) for z in student.logits[b, :, a].tolist()]
            t = [1 / (1 + math.exp(-z)) for z in teacher.logits[b, :, a].tolist()]
            for p, q in zip(s, t, strict=True):
                classes -= abs(p - q) * (q * math.log(p) + (1 - q) * math.log(1 - p))
            mine, theirs = sides_of(student.boxes, b, a, bins)[0], sides_of(teacher.boxes, b, a, bins)[0]
            boxes += max(abs(p - q) for p, q in zip(s, t, strict=True)) * (1 - giou(mine, theirs))
            total += max(t)
    terms = method(student, [teacher], {}, head_loss=no_head)
    assert terms["bckd_cls"].loss.item() == pytest.approx(classes / total, rel=1e-4)
    assert terms["bckd_box"].loss.item() == pytest.approx(boxes / total, rel=1e-4)
    assert (terms["bckd_cls"].weight, terms["bckd_box"].weight) == (1, 4)


def test_boxes_do_not_pull_at_scores_and_agreement_costs_nothing():
    method, student, teacher = BCKD(spec("s", [3]), [spec("t", [3])], BCKDOptions()), output([3], 0), output([3], 1)
    assert student.logits is not None
    student.logits.requires_grad_()
    loss = method(student, [teacher], {}, head_loss=no_head)["bckd_box"].loss
    assert not loss.requires_grad  # the boxes here have no gradient, and the weights carry none
    terms = method(teacher, [teacher], {}, head_loss=no_head)
    assert all(term.loss.item() == pytest.approx(0, abs=1e-6) for term in terms.values())
