"""ATSS against a slow loop, and IoUs against torchvision's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou_loss

from meddet_yolo.nn.gfl.assign import assign_atss, paired_iou
from tests.nn.gfl._atss import atss_by_the_book, pyramid, random_boxes


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_algorithm_written_as_a_loop(seed: int) -> None:
    points, strides, sizes = pyramid(128, 192)
    counts = [0, 1, 3, 6]
    boxes = [random_boxes(n, seed * 10 + n) for n in counts]
    padded, valid = torch.zeros(4, 6, 4), torch.zeros(4, 6, dtype=torch.bool)
    for i, some in enumerate(boxes):
        padded[i, : len(some)], valid[i, : len(some)] = some, True
    foreground, owner = assign_atss(padded, valid, points, strides, sizes)
    for i, some in enumerate(boxes):
        want = atss_by_the_book(some, points, strides, sizes)
        assert {int(p): int(owner[i, p]) for p in foreground[i].nonzero()[:, 0]} == want
        assert bool(want) == bool(len(some))  # or the comparison would mean nothing


def test_overlapping_boxes_share_no_position_and_the_better_overlap_wins() -> None:
    points, strides, sizes = pyramid(128, 128)
    boxes = torch.tensor([[[32.0, 32.0, 96.0, 96.0], [36.0, 36.0, 92.0, 92.0]]])
    foreground, owner = assign_atss(boxes, torch.ones(1, 2, dtype=torch.bool), points, strides, sizes)
    level = strides[foreground[0]]
    anchors = points[foreground[0]].repeat(1, 2) + torch.tensor([-4.0, -4.0, 4.0, 4.0]) * level[:, None]
    overlaps = box_iou(anchors, boxes[0])
    mine = owner[0, foreground[0]]
    assert set(mine.tolist()) == {0}  # both are candidates everywhere; the larger one fits the anchors of 64 px exactly
    assert (overlaps.argmax(1) == mine).all()


def test_no_box_and_a_box_of_no_size_give_no_positive() -> None:
    points, strides, sizes = pyramid(64, 64)
    nothing = assign_atss(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), points, strides, sizes)
    assert not nothing[0].any() and nothing[1].shape == (2, len(points))
    point = torch.tensor([[[20.0, 20.0, 20.0, 20.0]]])
    assert not assign_atss(point, torch.ones(1, 1, dtype=torch.bool), points, strides, sizes)[0].any()


def test_a_padded_box_is_never_assigned() -> None:
    points, strides, sizes = pyramid(64, 64)
    boxes = torch.tensor([[[8.0, 8.0, 40.0, 40.0], [20.0, 20.0, 60.0, 60.0]]])
    foreground, owner = assign_atss(boxes, torch.tensor([[True, False]]), points, strides, sizes)
    assert foreground.any() and set(owner[foreground].tolist()) == {0}


coordinates = st.floats(-50, 50, width=32)
box = st.tuples(coordinates, coordinates, st.floats(0.125, 40, width=32), st.floats(0.125, 40, width=32))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(box, box), min_size=1, max_size=6))
def test_ious_equal_torchvisions(pairs: list) -> None:
    a, b = (torch.tensor([pair[k] for pair in pairs]) for k in (0, 1))
    a, b = (torch.cat([x[:, :2], x[:, :2] + x[:, 2:]], -1) for x in (a, b))
    torch.testing.assert_close(paired_iou(a, b), box_iou(a, b).diag(), atol=1e-5, rtol=1e-4)
    giou = paired_iou(a, b, generalized=True)
    torch.testing.assert_close(1 - giou, generalized_box_iou_loss(a, b), atol=1e-5, rtol=1e-4)


def test_the_gradient_of_the_generalized_iou_equals_torchvisions() -> None:
    a, b = random_boxes(8, 0), random_boxes(8, 1)
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    (1 - paired_iou(ours, b, generalized=True)).sum().backward()
    generalized_box_iou_loss(theirs, b, reduction="sum").backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)
