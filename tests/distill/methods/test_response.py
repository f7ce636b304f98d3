"""Response distillation against its formula in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.method import DetectorOutput
from meddet_yolo.distill.methods.response import Response, ResponseOptions
from tests.distill.methods._outputs import no_head, output, sides_of, spec


def ciou(one: list[float], other: list[float]) -> float:
    """Complete IoU of two boxes, given as distances from one anchor."""
    (l1, t1, r1, b1), (l2, t2, r2, b2) = one, other
    w1, h1, w2, h2 = l1 + r1, t1 + b1, l2 + r2, t2 + b2
    inter = max(min(l1, l2) + min(r1, r2), 0) * max(min(t1, t2) + min(b1, b2), 0)
    iou = inter / (w1 * h1 + w2 * h2 - inter)
    diagonal = (max(l1, l2) + max(r1, r2)) ** 2 + (max(t1, t2) + max(b1, b2)) ** 2
    centres = ((r1 - l1 - r2 + l2) ** 2 + (b1 - t1 - b2 + t2) ** 2) / 4
    v = 4 / math.pi**2 * (math.atan(w2 / h2) - math.atan(w1 / h1)) ** 2
    return iou - centres / diagonal - v * v / (1 - iou + v)


def by_the_formula(
    student: DetectorOutput, teacher: DetectorOutput, bins: int, threshold: float, top: float = 1.0
) -> float:
    assert student.logits is not None and student.boxes is not None
    assert teacher.logits is not None and teacher.boxes is not None
    loss, total = 0.0, 0.0
    batch, nc, anchors = student.logits.shape
    places = [(b, a) for b in range(batch) for a in range(anchors)]
    places.sort(key=lambda place: max(teacher.logits[place[0], :, place[1]].tolist()), reverse=True)
    sure = set(places[: max(1, round(top * len(places)))])
    for b in range(batch):
        for a in range(anchors):
            w = 0.0
            for c in range(nc):
                s = 1 / (1 + math.exp(-student.logits[b, c, a].item()))
                t = 1 / (1 + math.exp(-teacher.logits[b, c, a].item())) if (b, a) in sure else 0.0
                loss -= (t * math.log(s) + (1 - t) * math.log(1 - s)) * abs(s - t)
                w = max(w, t)
            total += w
            if w <= threshold:
                continue
            mine, p = sides_of(student.boxes, b, a, bins)
            theirs, q = sides_of(teacher.boxes, b, a, bins)
            loss += w * 7.5 * (1 - ciou(mine, theirs))
            if bins > 1:
                kl = sum(q[i][k] * math.log(q[i][k] / p[i][k]) for i in range(4) for k in range(bins))
                loss += w * 1.5 * kl / 4
            else:
                loss += w * 1.5 * sum(abs(x - y) for x, y in zip(mine, theirs, strict=True)) / sum(theirs)
    return loss / max(total, 1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1, 4]), st.sampled_from([0.05, 0.6]), st.sampled_from([1.0, 0.3, 0.01]))
def test_it_is_the_formula(seed, bins, threshold, top):
    method = Response(
        spec("student", [3, 2], reg_max=bins),
        [spec("a.pt", [4, 4], reg_max=bins)],
        ResponseOptions(response_threshold=threshold, response_top=top),
    )
    student, teacher = output([3, 2], seed, reg_max=bins), output([4, 4], seed + 1, reg_max=bins)
    loss = method(student, [teacher], {}, head_loss=no_head)["response"].loss
    assert loss.item() == pytest.approx(by_the_formula(student, teacher, bins, threshold, top), rel=1e-4)


def test_a_copy_costs_nothing_and_two_equal_teachers_teach_as_one():
    method = Response(spec("student", [3]), [spec("a.pt", [3])], ResponseOptions())
    pair = Response(spec("student", [3]), [spec("a.pt", [3]), spec("b.pt", [3])], ResponseOptions(response_weight=2))
    student, teacher = output([3], 0), output([3], 1)
    assert method(teacher, [teacher], {}, head_loss=no_head)["response"].loss.item() == pytest.approx(0, abs=1e-6)
    alone, both = (m(student, [teacher] * n, {}, head_loss=no_head)["response"] for m, n in ((method, 1), (pair, 2)))
    torch.testing.assert_close(alone.loss, both.loss)
    assert both.weight == 2 * alone.weight


@pytest.mark.parametrize(("bins", "theirs"), [(4, 1), (1, 4), (4, 9)])
def test_students_and_teachers_with_other_kinds_of_boxes(bins, theirs):
    method = Response(
        spec("student", [3], reg_max=bins), [spec("a.pt", [3], scale=0.5, reg_max=theirs)], ResponseOptions()
    )
    student = output([3], 0, reg_max=bins)
    student.boxes = student.boxes.requires_grad_() if student.boxes is not None else None
    loss = method(student, [output([3], 1, size=8, reg_max=theirs)], {}, head_loss=no_head)["response"].loss
    loss.backward()
    assert loss.isfinite() and student.boxes is not None and student.boxes.grad is not None
    assert student.boxes.grad.isfinite().all() and student.boxes.grad.abs().sum() > 0


def test_classes_that_no_teacher_knows_are_not_taught():
    method = Response(spec("student", [3]), [spec("a.pt", [3])], ResponseOptions())
    student, teacher = output([3], 0), output([3], 1)
    teacher.known = torch.tensor([True, False])
    assert student.logits is not None
    student.logits.requires_grad_()
    method(student, [teacher], {}, head_loss=no_head)["response"].loss.backward()
    assert student.logits.grad is not None
    assert student.logits.grad[:, 0].abs().sum() > 0 and student.logits.grad[:, 1].eq(0).all()
