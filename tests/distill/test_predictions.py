"""Teachers' predictions on the student's grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.method import DetectorSpec
from meddet_yolo.distill.predictions import PredictionReader, corners, distances, rebin, spread
from tests.distill.methods._outputs import output, spec


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 9), min_size=1, max_size=5), st.integers(2, 10))
def test_spread_distances_have_their_mean_and_two_neighbouring_bins(values, reg_max):
    given_values = torch.tensor(values).clamp(max=reg_max - 1)
    bins = spread(given_values.view(1, 1, -1), reg_max)[0, 0]  # (reg_max, N)
    torch.testing.assert_close(bins.sum(0), torch.ones(len(values)))
    torch.testing.assert_close((bins * torch.arange(reg_max)[:, None]).sum(0), given_values, atol=1e-5, rtol=1e-5)
    for column, value in zip(bins.T, given_values, strict=True):
        assert set(column.nonzero().flatten().tolist()) <= {int(value), int(value) + 1}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.5, 1.0, 1.25, 2.0]))
def test_rebinned_distributions_keep_their_mean_where_it_fits(seed, ratio):
    bins = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(seed)).softmax(2)
    result = rebin(bins, ratio, 9)  # 4 * 2 fits
    places = torch.arange(9.0).view(-1, 1)
    torch.testing.assert_close((result * places).sum(2), (bins * places[:5]).sum(2) * ratio)
    torch.testing.assert_close(result.sum(2), torch.ones(2, 4, 3))


def test_the_same_grid_and_bins_give_the_teacher_as_it_is():
    teacher = output([3, 2], 1)
    guidance = PredictionReader("x", spec("s", [4, 4]), [spec("t", [3, 2])]).together(output([4, 4], 0), [teacher])
    assert teacher.logits is not None and teacher.boxes is not None and guidance.bins is not None
    torch.testing.assert_close(guidance.scores, teacher.logits.sigmoid())
    torch.testing.assert_close(guidance.bins, teacher.boxes.unflatten(1, (4, 4)).softmax(2))
    torch.testing.assert_close(guidance.distances, distances(teacher.boxes, 4))


def test_a_teacher_of_other_strides_says_the_same_box_in_the_students_cells():
    student, teacher = spec("s", [4]), DetectorSpec("t", [3], [4.0], nc=2, reg_max=1)
    given_output = output([3], 1, size=8, reg_max=1)
    given_output.boxes = torch.tensor([2.0, 4.0, 6.0, 1.0]).view(1, 4, 1).expand(2, 4, 64)  # cells of 4 pixels
    guidance = PredictionReader("x", student, [teacher]).together(output([4], 0), [given_output])
    assert guidance.distances.shape == (2, 4, 16) and guidance.bins is not None
    torch.testing.assert_close(guidance.distances[0, :, 0], torch.tensor([1.0, 2.0, 3.0, 0.5]))
    means = (guidance.bins * torch.arange(4.0).view(-1, 1)).sum(2)
    torch.testing.assert_close(means, guidance.distances)


def test_classes_are_averaged_over_the_teachers_that_know_them_and_boxes_by_score():
    one, other = output([3], 1), output([3], 2)
    assert one.logits is not None and other.logits is not None
    one.known = torch.tensor([True, False])
    other.known = torch.tensor([True, False])
    specs = [spec("a", [3]), spec("b", [3])]
    reader = PredictionReader("x", spec("s", [4]), specs)
    guidance = reader.together(output([4], 0), [one, other])
    assert guidance.known.tolist() == [True, False]
    torch.testing.assert_close(guidance.scores[:, 0], (one.logits.sigmoid() + other.logits.sigmoid())[:, 0] / 2)
    assert guidance.scores[:, 1].eq(0).all()
    a, b = reader.each(output([4], 0), [one, other])
    share = a.scores[0, 0, 5] / (a.scores[0, 0, 5] + b.scores[0, 0, 5])
    expected = share * a.distances[0, :, 5] + (1 - share) * b.distances[0, :, 5]
    torch.testing.assert_close(guidance.distances[0, :, 5], expected)
    other.known = None
    guidance = reader.together(output([4], 0), [one, other])
    torch.testing.assert_close(guidance.scores[:, 1], other.logits.sigmoid()[:, 1])  # the one that knows it


def test_boxes_of_no_size_get_one():
    boxes = corners(torch.tensor([[-1.0, 0.5, 0.2, 0.5]]))
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_student_without_dense_predictions_is_refused():
    with pytest.raises(ValueError, match=r"distill=ld teaches a student's dense predictions, and student has none"):
        PredictionReader("ld", spec("student", [4], reg_max=0), [spec("t", [4])])
