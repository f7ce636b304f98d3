import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.utils import nms

from meddet_yolo.trt.decode import Detections, decode, non_max_suppression
from meddet_yolo.trt.preprocess import fit_letterbox

SAME = fit_letterbox((64, 64), (64, 64))


def _head(rng, classes, anchors, batch=1):
    """A raw head with many overlaps."""
    centres = rng.choice([10.0, 20.0, 30.0, 40.0], (batch, 2, anchors)) + rng.normal(0, 3, (batch, 2, anchors))
    sizes = rng.uniform(4, 24, (batch, 2, anchors))
    scores = rng.random((batch, classes, anchors)) ** 3
    return np.concatenate((centres, sizes, scores), axis=1).astype(np.float32)


def _rows(found: Detections) -> np.ndarray:
    return np.concatenate((found.xyxy, found.confidence[:, None], found.class_id[:, None]), axis=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(1, 5),
    anchors=st.integers(7, 400),
    conf=st.sampled_from([0.001, 0.25, 0.9]),
    iou=st.sampled_from([0.1, 0.45, 0.7]),
    agnostic=st.booleans(),
    max_det=st.sampled_from([3, 300]),
    only=st.sampled_from([None, [0], [0, 2]]),
)
def test_raw_heads_as_ultralytics(seed, classes, anchors, conf, iou, agnostic, max_det, only):
    output = _head(np.random.default_rng(seed), classes, anchors, batch=2)
    expected = nms.non_max_suppression(
        torch.from_numpy(output.copy()), conf, iou, classes=only, agnostic=agnostic, max_det=max_det
    )
    found = decode(output, [SAME] * 2, conf=conf, iou=iou, classes=only, agnostic=agnostic, max_det=max_det)
    for mine, theirs in zip(found, expected, strict=True):
        theirs[:, :4].clamp_(0, 64)
        np.testing.assert_allclose(_rows(mine), theirs.numpy(), atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), conf=st.sampled_from([0.0, 0.25, 0.9]), only=st.sampled_from([None, [1], [0, 2]]))
def test_end_to_end_rows_as_ultralytics(seed, conf, only):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (2, 50, 4))
    scores = -np.sort(-rng.random((2, 50, 1)), axis=1)
    output = np.concatenate((corners, scores, rng.integers(0, 4, (2, 50, 1))), axis=2).astype(np.float32)
    expected = nms.non_max_suppression(torch.from_numpy(output.copy()), conf, classes=only, max_det=9, end2end=True)
    found = decode(output, [SAME] * 2, conf=conf, classes=only, max_det=9)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(_rows(mine), theirs.numpy(), atol=1e-3)


@pytest.mark.parametrize("count", [1, 10, 3000])
@pytest.mark.parametrize("iou", [0.0, 0.5, 1.0])
def test_nms_as_torchvision(count, iou):
    rng = np.random.default_rng(count)
    corner = rng.uniform(0, 300, (count, 2))
    size = rng.uniform(1, 200, (count, 2))
    columns = (corner, corner + size, rng.random((count, 1)), np.zeros((count, 1)))
    rows = np.concatenate(columns, axis=1).astype(np.float32)
    expected = torchvision.ops.nms(torch.from_numpy(rows[:, :4]), torch.from_numpy(rows[:, 4]), iou)
    assert non_max_suppression(rows, iou).tolist() == expected.tolist()


def test_half_precision_is_decoded_in_single():
    output = _head(np.random.default_rng(0), 2, 50)
    found = decode(output.astype(np.float16), [SAME])[0]
    assert found.xyxy.dtype == found.confidence.dtype == np.float32
    np.testing.assert_allclose(found.xyxy[0], decode(output, [SAME])[0].xyxy[0], atol=0.1)


def test_a_padded_batch_gives_results_for_its_images_only():
    assert len(decode(_head(np.random.default_rng(0), 2, 50, batch=4), [SAME] * 3)) == 3


def test_nothing_found():
    for output in (np.zeros((1, 6, 40), np.float32), np.zeros((1, 300, 6), np.float32)):
        found = decode(output, [SAME])[0]
        assert len(found) == 0 and list(found) == []
        assert found.xyxy.shape == (0, 4) and found.class_id.dtype == np.int64


def test_names_and_plain_values():
    rows = np.array([[[0, 0, 8, 8, 0.5, 1], [0, 0, 8, 8, 0.4, 7]]], np.float32)
    assert list(decode(rows, [SAME], names={1: "disc"})[0]) == [
        {"class": "disc", "class_id": 1, "confidence": 0.5, "xyxy": [0, 0, 8, 8]},
        {"class": "7", "class_id": 7, "confidence": pytest.approx(0.4), "xyxy": [0, 0, 8, 8]},
    ]


def test_a_head_of_six_anchors_can_be_told_apart():
    head = _head(np.random.default_rng(0), 2, 6)  # (1, 6, 6) is both
    assert len(decode(head, [SAME], end2end=False, conf=0.0, iou=1.0)[0]) == 6


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        (np.zeros((1, 300, 6)), {"conf": 1.5}, "conf must lie in 0..1, got 1.5"),
        (np.zeros((1, 300, 6)), {"iou": -1}, "iou must lie in 0..1"),
        (np.zeros((300, 6)), {}, r"got \(300, 6\)"),
        (np.zeros((0, 300, 6)), {}, "for 1 images"),
        (np.zeros((1, 300, 7)), {"end2end": True}, r"\(B, N, 6\)"),
        (np.zeros((1, 4, 100)), {}, r"\(B, 4 \+ classes, anchors\)"),
    ],
)
def test_wrong_outputs(output, options, message):
    with pytest.raises(ValueError, match=message):
        decode(output, [SAME], **options)
