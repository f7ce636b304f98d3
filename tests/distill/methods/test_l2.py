"""Score-weighted L2 against the formula in plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.method import DetectorOutput, DetectorSpec
from meddet_yolo.distill.methods.l2 import ScoreWeightedL2, ScoreWeightedL2Options


def spec(name: str, channels: list[int]) -> DetectorSpec:
    return DetectorSpec(name, channels, [8.0, 16.0][: len(channels)], nc=2, reg_max=16)


def output(channels: list[int], seed: int, size: int = 4, logits: bool = True) -> DetectorOutput:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, c, size >> i, size >> i, generator=generator) for i, c in enumerate(channels)]
    anchors = sum(m.shape[2] * m.shape[3] for m in maps)
    return DetectorOutput(maps, torch.randn(2, 2, anchors, generator=generator) if logits else None)


def term(method: ScoreWeightedL2, student: DetectorOutput, teachers: list[DetectorOutput]) -> torch.Tensor:
    return method(student, teachers, {}, head_loss=lambda maps: maps[0].mean())["l2"].loss


def by_the_formula(method: ScoreWeightedL2, student: DetectorOutput, teachers: list[DetectorOutput]) -> float:
    """sum_x w(x) |P(S)(x) - T(x)|^2 / (C sum_x w(x)) over standardised channels, position by position."""
    total, parts = 0.0, 0
    for index, teacher in enumerate(teachers):
        assert teacher.logits is not None
        first = 0
        for level, (s, t) in enumerate(zip(student.feats, teacher.feats, strict=True)):
            weight = method.projections[index * len(student.feats) + level].weight[:, :, 0, 0].double()
            projected = torch.einsum("dc,bchw->bdhw", weight, s.double())
            given = t.double()
            height, width = t.shape[2:]
            error, scores = 0.0, 0.0
            for b in range(len(s)):
                for y in range(height):
                    for x in range(width):
                        w = teacher.logits[b, :, first + y * width + x].double().sigmoid().max().item()
                        difference = 0.0
                        for c in range(t.shape[1]):
                            p, q = projected[:, c], given[:, c]
                            p_z = (p[b, y, x] - p.mean()) / (p.var(correction=0) + 1e-6).sqrt()
                            q_z = (q[b, y, x] - q.mean()) / (q.var(correction=0) + 1e-6).sqrt()
                            difference += (p_z - q_z).item() ** 2
                        error, scores = error + w * difference / t.shape[1], scores + w
            first += height * width
            total, parts = total + error / scores, parts + 1
    return total / parts


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 2), st.integers(1, 2), st.integers(0, 99))
def test_it_is_the_formula(levels, number, seed):
    channels = [3, 2][:levels]
    theirs = [[4, 3][:levels], [2, 5][:levels]][:number]
    torch.manual_seed(seed)
    method = ScoreWeightedL2(
        spec("student", channels), [spec(str(i), c) for i, c in enumerate(theirs)], ScoreWeightedL2Options()
    )
    student, teachers = output(channels, seed), [output(c, seed + 1 + i) for i, c in enumerate(theirs)]
    assert term(method, student, teachers).item() == pytest.approx(by_the_formula(method, student, teachers), abs=1e-5)


def test_a_copy_costs_nothing_and_positions_without_score_do_not_count():
    method = ScoreWeightedL2(spec("student", [4]), [spec("a.pt", [4])], ScoreWeightedL2Options())
    with torch.no_grad():
        method.projections[0].weight.copy_(torch.eye(4)[:, :, None, None])
    teacher = output([4], seed=1)
    assert term(method, DetectorOutput(teacher.feats), [teacher]).item() == pytest.approx(0, abs=1e-9)
    assert teacher.logits is not None
    teacher.logits[:, :, :8] = -40.0  # the upper half of the map says nothing
    student = output([4], seed=2, logits=False).feats[0]
    silent, telling = student.clone(), student.clone()
    silent[:, :, :2] = student[:, :, :2].flip(3)  # statistics stay as they are
    telling[:, :, 2:] = student[:, :, 2:].flip(3)
    plain = term(method, DetectorOutput([student]), [teacher]).item()
    assert term(method, DetectorOutput([silent]), [teacher]).item() == pytest.approx(plain, abs=1e-6)
    assert term(method, DetectorOutput([telling]), [teacher]).item() != pytest.approx(plain, abs=1e-2)


def test_maps_of_another_size_are_resampled():
    method = ScoreWeightedL2(spec("student", [3]), [spec("a.pt", [4])], ScoreWeightedL2Options(l2_weight=2))
    terms = method(output([3], 0), [output([4], 1, size=8)], {}, head_loss=lambda maps: maps[0].mean())
    assert terms["l2"].weight == 2 and terms["l2"].loss.isfinite()


def test_levels_without_counterpart_name_the_teacher():
    with pytest.raises(ValueError, match=r"Teacher far\.pt: The student's level of stride 8 has no counterpart"):
        ScoreWeightedL2(spec("student", [4]), [DetectorSpec("far.pt", [8], [64.0], 2, 16)], ScoreWeightedL2Options())
