"""Localisation distillation against its formula and its regions in plain loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.methods.ld import LD, LDOptions
from meddet_yolo.distill.regions import main_and_valuable
from tests.distill.methods._outputs import no_head, output, sides_of, spec

Box = tuple[float, float, float, float]


def overlaps(a: Box, b: Box) -> tuple[float, float]:
    """IoU and DIoU."""
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    iou = inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    return iou, iou - ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4 / diagonal


def regions_by_the_book(sizes: list[int], boxes: list[Box], gamma: float) -> tuple[set[int], set[int]]:
    """The regions of one image; boxes with corners in fractions of the image."""
    anchors = [[((j + 0.5) / n, (i + 0.5) / n, n) for i in range(n) for j in range(n)] for n in sizes]
    flat = [anchor for level in anchors for anchor in level]
    main, valuable = set(), set()
    for box in boxes:
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        values = [overlaps(box, (x - 4 / n, y - 4 / n, x + 4 / n, y + 4 / n)) for x, y, n in flat]
        candidates, start = [], 0
        for level in anchors:
            order = sorted(range(len(level)), key=lambda a, level=level: math.dist(level[a][:2], centre))
            candidates += [start + a for a in order[:9]]
            start += len(level)
        ious = [values[a][0] for a in candidates]
        threshold = statistics.mean(ious) + statistics.stdev(ious) - 1e-5
        for a, (x, y, _) in enumerate(flat):
            if a in candidates and values[a][0] >= threshold and box[0] < x < box[2] and box[1] < y < box[3]:
                main.add(a)
            if gamma * threshold <= values[a][1] < threshold:
                valuable.add(a)
    return main, valuable - main


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0.2, 0.8)] * 2, *[st.floats(0.05, 0.39)] * 2), max_size=3), st.floats(0.1, 0.9))
def test_regions_are_those_of_the_book(rows, gamma):
    labels = {"bboxes": torch.tensor(rows, dtype=torch.float64).view(-1, 4), "batch_idx": torch.ones(len(rows))}
    labels["bboxes"] = labels["bboxes"].float()
    main, valuable = main_and_valuable([(16, 16), (8, 8)], labels, 2, gamma)
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in rows]
    expected = regions_by_the_book([16, 8], boxes, gamma)
    assert not main[0].any() and not valuable[0].any()
    for region, wanted in zip((main, valuable), expected, strict=True):  # ties in distance may fall either way
        assert len(set(region[1].nonzero().flatten().tolist()) ^ wanted) <= 2 * len(rows)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1.0, 10.0]))
def test_it_is_the_formula(seed, temperature):
    labels = {"bboxes": torch.tensor([[0.48, 0.53, 0.55, 0.6]]), "batch_idx": torch.zeros(1)}
    method = LD(spec("student", [3]), [spec("a.pt", [4])], LDOptions(ld_temperature=temperature))
    student, teacher = output([3], seed, size=16), output([4], seed + 1, size=16)
    assert student.boxes is not None and teacher.boxes is not None
    terms = method(student, [teacher], labels, head_loss=no_head)
    for name, region in zip(("ld", "ld_valuable"), main_and_valuable([(16, 16)], labels, 2, 0.25), strict=True):
        losses = []
        for b, a in region.nonzero().tolist():
            shares = (sides_of(o.boxes / temperature, b, a, 4)[1] for o in (student, teacher) if o.boxes is not None)
            for p, q in zip(*shares, strict=True):
                losses.append(temperature**2 * sum(y * math.log(y / x) for x, y in zip(p, q, strict=True)))
        assert losses and terms[name].loss.item() == pytest.approx(statistics.mean(losses), rel=1e-3)


def test_without_objects_there_is_nothing_to_learn():
    none = {"bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}
    terms = LD(spec("s", [3]), [spec("t", [4])], LDOptions())(output([3], 0), [output([4], 1)], none, head_loss=no_head)
    assert all(term.loss == 0 for term in terms.values())


@pytest.mark.parametrize(("mine", "theirs", "name"), [(1, 4, "student"), (4, 1, r"yolo26s\.pt")])
def test_detectors_without_distributions_are_refused_by_name(mine, theirs, name):
    with pytest.raises(ValueError, match=rf"distill=ld compares distributions of box sides, and {name} has none"):
        LD(spec("student", [3], reg_max=mine), [spec("yolo26s.pt", [4], reg_max=theirs)], LDOptions())
