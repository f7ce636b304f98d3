import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ultralytics.data.augment import LetterBox
from ultralytics.utils import ops

from meddet_yolo.trt.preprocess import as_model_image, fit_letterbox, letterbox, preprocess, smallest_shape

sides = st.integers(1, 700)
edges = st.sampled_from([32, 64, 160, 320, 512])


def _theirs(images, size, auto=False):
    """Ultralytics' predictor: letterbox, stack, to RGB, to 0..1."""
    box = LetterBox(size, auto=auto, stride=32)
    batch = torch.from_numpy(np.stack([box(image=image) for image in images]))
    return (batch.permute(0, 3, 1, 2).flip(1).float() / 255).numpy()


@settings(max_examples=60, deadline=None)
@given(sides, sides, edges, edges, st.integers(0, 99))
def test_any_size_becomes_ultralytics_input(height, width, rows, columns, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    batch, _ = preprocess([image], (rows, columns))
    np.testing.assert_array_equal(batch, _theirs([image], (rows, columns)))


def test_real_images_become_ultralytics_input(spider):
    files = sorted((spider.parent / "images" / "val").glob("*.jpg"))[::6]
    images = [cv2.imread(str(file)) for file in files]
    assert len({image.shape for image in images}) > 2
    for size in ((512, 512), (320, 640)):
        batch, _ = preprocess(images, size)
        np.testing.assert_array_equal(batch, _theirs(images, size))


@settings(max_examples=60, deadline=None)
@given(sides, sides, edges)
@example(133, 330, 160)  # the rounded height would ask for another scale than the width
def test_the_smallest_shape_is_ultralytics_rectangle(height, width, edge):
    image = np.zeros((height, width, 3), np.uint8)
    expected = LetterBox((edge, edge), auto=True, stride=32)(image=image).shape[:2]
    found = smallest_shape((height, width), (edge, edge), 32)
    assert found == expected
    batch, _ = preprocess([image], found, limit=(edge, edge))
    np.testing.assert_array_equal(batch, _theirs([image], edge, auto=True))


@settings(max_examples=60, deadline=None)
@given(sides, sides, edges, edges, st.integers(0, 99))
def test_boxes_come_back_as_ultralytics_scales_them(height, width, rows, columns, seed):
    boxes = np.random.default_rng(seed).uniform(-20, 600, (7, 4)).astype(np.float32)
    expected = ops.scale_boxes((rows, columns), torch.from_numpy(boxes.copy()), (height, width)).numpy()
    found = fit_letterbox((height, width), (rows, columns)).to_image(boxes)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 700), st.integers(8, 700), edges)
def test_there_and_back(height, width, edge):
    """Points of the image, taken to the input by hand, come back."""
    box = fit_letterbox((height, width), (edge, edge))
    corner = np.array([[box.left, box.top, box.left + box.inner_shape[1], box.top + box.inner_shape[0]]], np.float32)
    np.testing.assert_allclose(box.to_image(corner), [[0, 0, width, height]], rtol=1e-5, atol=1e-3)


def test_no_boxes_come_back_as_none():
    assert fit_letterbox((10, 20), (32, 32)).to_image(np.zeros((0, 4))).shape == (0, 4)


def test_out_is_filled_in_place():
    out = np.full((4, 3, 64, 64), 9, np.float16)
    batch, boxes = preprocess([np.full((10, 20, 3), 255, np.uint8)] * 2, (64, 64), out=out)
    assert np.shares_memory(batch, out)
    assert batch.shape == (2, 3, 64, 64) and len(boxes) == 2
    assert batch.max() == 1
    assert (out[2:] == 9).all()


@pytest.mark.parametrize(
    ("shape", "channels"), [((9, 8), 3), ((9, 8, 1), 3), ((9, 8, 4), 3), ((9, 8, 3), 1), ((9, 8, 4), 1), ((9, 8, 5), 5)]
)
def test_channels_are_made_to_fit(shape, channels):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert as_model_image(image, channels).shape == (9, 8, channels)
    assert preprocess([image], (32, 32), channels=channels)[0].shape == (1, channels, 32, 32)


def test_grey_is_repeated_and_colour_weighted():
    grey = np.arange(72, dtype=np.uint8).reshape(9, 8)
    assert (as_model_image(grey) == grey[..., None]).all()
    blue = np.zeros((4, 4, 3), np.uint8)
    blue[..., 0] = 255
    assert as_model_image(blue, 1).max() == round(0.114 * 255)


def test_one_channel_is_letterboxed_as_ultralytics_does():
    image = np.random.default_rng(0).integers(0, 256, (37, 61, 1), np.uint8)
    expected = LetterBox((64, 64))(image=image)
    np.testing.assert_array_equal(letterbox(image, fit_letterbox((37, 61), (64, 64))), expected)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "uint8 array .* got dtype float32; window other data"),
        ("a.png", TypeError, "got str"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "not empty"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, r"\(H, W, C\)"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "3 channels, got one of shape"),
    ],
)
def test_what_is_no_image(image, error, message):
    with pytest.raises(error, match=message):
        preprocess([image], (32, 32))


def test_no_images_and_a_wrong_out():
    with pytest.raises(ValueError, match="no images given"):
        preprocess([], (32, 32))
    with pytest.raises(ValueError, match=r"out must hold \(1, 3, 32, 32\), got \(1, 3, 64, 64\)"):
        preprocess([np.zeros((4, 4), np.uint8)], (32, 32), out=np.zeros((1, 3, 64, 64), np.float32))
