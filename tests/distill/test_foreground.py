"""Box masks against a loop over cells, and the weights made of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.foreground import box_mask, foreground_weights

GRID = 64  # corners on a fine dyadic grid: exact in float32, so that the oracle's comparisons are too
CORNERS = st.tuples(st.integers(-8, GRID + 8), st.integers(1, GRID), st.integers(-8, GRID + 8), st.integers(1, GRID))


def slow_mask(boxes: list[tuple[float, float, float, float]], images: list[int], shape: tuple[int, int, int]):
    """Mark a cell when the open box and the open cell overlap."""
    _, height, width = shape
    mask = torch.zeros(shape, dtype=torch.bool)
    for (x, y, w, h), b in zip(boxes, images, strict=True):
        for i in range(height):
            for j in range(width):
                across = (x - w / 2) * width < j + 1 and (x + w / 2) * width > j
                down = (y - h / 2) * height < i + 1 and (y + h / 2) * height > i
                mask[b, i, j] |= across and down
    return mask


@settings(max_examples=60, deadline=None)
@given(
    corners=st.lists(CORNERS, max_size=6),
    size=st.sampled_from([(1, 1), (4, 8), (8, 4), (16, 16)]),
    data=st.data(),
)
def test_agrees_with_a_loop_over_cells(corners, size, data):
    boxes, inside = [], []
    for x0, w, y0, h in corners:
        boxes.append(((x0 + w / 2) / GRID, (y0 + h / 2) / GRID, w / GRID, h / GRID))
        inside.append(x0 + w > 0 and x0 < GRID and y0 + h > 0 and y0 < GRID)  # Ultralytics clips boxes to the image
    boxes = [box for box, keep in zip(boxes, inside, strict=True) if keep]
    images = [data.draw(st.integers(0, 2)) for _ in boxes]
    shape = (3, *size)
    got = box_mask(torch.tensor(boxes).reshape(-1, 4), torch.tensor(images, dtype=torch.float).view(-1, 1), shape)
    assert torch.equal(got, slow_mask(boxes, images, shape))


def test_no_boxes_and_a_box_smaller_than_a_cell():
    assert not box_mask(torch.zeros(0, 4), torch.zeros(0), (2, 4, 4)).any()
    tiny = box_mask(torch.tensor([[0.99, 0.6, 1e-4, 0.0]]), torch.tensor([1]), (2, 4, 4))
    assert tiny.nonzero().tolist() == [[1, 2, 3]]


def test_many_overlapping_boxes_do_not_cancel():
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(500, 1)
    assert box_mask(boxes, torch.zeros(500), (1, 8, 8)).all()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_boxes_get_their_share(share):
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True
    weights = foreground_weights(mask, share)
    assert weights[mask].sum().item() == pytest.approx(share)
    assert weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("fill", [False, True])
def test_all_alike_when_there_is_nothing_to_tell_apart(fill):
    weights = foreground_weights(torch.full((2, 4, 4), fill), 0.9)
    assert torch.allclose(weights, torch.full((2, 4, 4), 1 / 32))
