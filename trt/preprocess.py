"""Images to a network's input and boxes back: Ultralytics' letterbox in numpy and OpenCV alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Letterbox", "as_model_image", "fit_letterbox", "letterbox", "preprocess", "smallest_shape"]

PADDING = 114  # the grey that Ultralytics trains and predicts with


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies in a network's input.

    Attributes:
        image_shape: (H, W) of the image.
        input_shape: (H, W) of the network's input.
        inner_shape: (H, W) of the resized image inside it.
        top: Rows of padding above.
        left: Columns of padding on the left.
    """

    image_shape: tuple[int, int]
    input_shape: tuple[int, int]
    inner_shape: tuple[int, int]
    top: int
    left: int

    def to_image(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return boxes (N, 4) `x1 y1 x2 y2` of the input in pixels of the image, clipped to it.

        Examples:
            >>> fit_letterbox((50, 100), (64, 64)).to_image(np.array([[0.0, 16.0, 64.0, 48.0]])).tolist()
            [[0.0, 0.0, 100.0, 50.0]]
        """
        height, width = self.image_shape
        # The rounded sides of the resized image set the scale, one a direction, not the common factor before rounding.
        scale_y, scale_x = self.inner_shape[0] / height, self.inner_shape[1] / width
        shift = np.array([self.left, self.top] * 2, np.float32)
        result = (boxes.astype(np.float32) - shift) / np.array([scale_x, scale_y] * 2, np.float32)
        return np.clip(result, 0, np.array([width, height] * 2, np.float32))


def fit_letterbox(
    image_shape: tuple[int, int], input_shape: tuple[int, int], limit: tuple[int, int] | None = None
) -> Letterbox:
    """Return how an image of (H, W) is centred in an input of (H, W) with its aspect ratio kept.

    Args:
        image_shape: (H, W) of the image.
        input_shape: (H, W) of the network's input.
        limit: What the image is resized to fit, if that is not the input itself. The input must hold the resized image,
            as that of `smallest_shape` does; its sides are rounded, so that fitting the input could be another size.

    Examples:
        >>> fit_letterbox((481, 641), (512, 512))
        Letterbox(image_shape=(481, 641), input_shape=(512, 512), inner_shape=(384, 512), top=64, left=0)
        >>> [fit_letterbox((133, 330), (64, 160), limit).inner_shape for limit in (None, (160, 160))]
        [(64, 159), (64, 160)]
    """
    (height, width), (rows, columns) = image_shape, input_shape
    gain = min(edge / side for edge, side in zip(limit or input_shape, image_shape, strict=True))
    inner = max(round(height * gain), 1), max(round(width * gain), 1)
    # Half a pixel of padding goes to the bottom and the right.
    top, left = round((rows - inner[0]) / 2 - 0.1), round((columns - inner[1]) / 2 - 0.1)
    return Letterbox((height, width), (rows, columns), inner, top, left)


def smallest_shape(image_shape: tuple[int, int], limit: tuple[int, int], stride: int = 32) -> tuple[int, int]:
    """Return the smallest input (H, W), a multiple of `stride`, that holds an image resized to fit `limit`.

    Engines of dynamic shape need no more padding than that.

    Examples:
        >>> smallest_shape((300, 640), (512, 512))
        (256, 512)
    """
    inner = fit_letterbox(image_shape, limit).inner_shape
    rows, columns = (side + (edge - side) % stride for edge, side in zip(limit, inner, strict=True))
    return rows, columns


def letterbox(image: NDArray[np.uint8], box: Letterbox) -> NDArray[np.uint8]:
    """Resize an image (H, W, C) bilinearly and pad it with grey to `box.input_shape`."""
    rows, columns = box.inner_shape
    if image.shape[:2] != box.inner_shape:
        resized: NDArray[Any] = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
        image = resized.reshape(rows, columns, image.shape[2])  # OpenCV drops a last dimension of 1
    if box.inner_shape == box.input_shape:
        return image
    result = np.full((*box.input_shape, image.shape[2]), PADDING, np.uint8)
    result[box.top : box.top + rows, box.left : box.left + columns] = image
    return result


def as_model_image(image: NDArray[np.uint8], channels: int = 3) -> NDArray[np.uint8]:
    """Return an image as (H, W, channels): grey is repeated for a colour network, colour becomes grey for a grey one.

    Raises:
        TypeError: If it is no uint8 array.
        ValueError: If its shape fits no image of that many channels, or it is empty.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = f"dtype {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(
            f"an image must be a uint8 array (H, W) or (H, W, C) as cv2.imread returns it, got {kind}; "
            "window other data to 0..255 first"
        )
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"an image must have shape (H, W) or (H, W, C) and be not empty, got {image.shape}")
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 4 and channels in (1, 3):
        return as_model_image(np.ascontiguousarray(image[..., :3]), channels)  # without its transparency
    if image.shape[2] == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 3 and channels == 1:
        grey: NDArray[Any] = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return grey[..., None]
    raise ValueError(f"the network takes images of {channels} channels, got one of shape {image.shape}")


def preprocess(
    images: Sequence[NDArray[np.uint8]],
    input_shape: tuple[int, int],
    *,
    limit: tuple[int, int] | None = None,
    channels: int = 3,
    out: NDArray[np.floating] | None = None,
    dtype: type[np.floating] = np.float32,
) -> tuple[NDArray[np.floating], list[Letterbox]]:
    """Turn images into a network's input, as Ultralytics' predictor does.

    Args:
        images: B arrays (H, W), (H, W, 1) or (H, W, 3) of uint8, colours in OpenCV's order BGR; sizes may differ.
        input_shape: (H, W) of the network's input.
        limit: As in `fit_letterbox`.
        channels: What the network takes.
        out: Where to write, (B, channels, H, W) or more images; page-locked memory saves a copy.
        dtype: Of the result where `out` is not given.

    Returns:
        Input (B, channels, H, W), RGB, 0..1, and where each image lies in it.

    Raises:
        TypeError: If an image is no uint8 array.
        ValueError: If there is no image, or a shape is wrong.

    Examples:
        >>> batch, boxes = preprocess([np.full((50, 100, 3), 255, np.uint8)], (64, 64))
        >>> batch.shape, float(batch[0, 0, 32, 32]), round(float(batch[0, 0, 0, 0]), 3), boxes[0].top
        ((1, 3, 64, 64), 1.0, 0.447, 16)
    """
    if not len(images):
        raise ValueError("no images given: expected at least one")
    shape = (len(images), channels, *input_shape)
    if out is None:
        out = np.empty(shape, dtype)
    elif out.shape[1:] != shape[1:] or out.shape[0] < shape[0]:
        raise ValueError(f"out must hold {shape}, got {out.shape}")
    boxes = []
    for slot, image in zip(out, images, strict=False):
        image = as_model_image(image, channels)
        box = fit_letterbox(image.shape[:2], input_shape, limit)
        planes = cv2.split(letterbox(image, box))
        # Plane by plane, contiguous to contiguous: several times faster than one transposed assignment.
        for target, plane in zip(slot, reversed(planes) if channels == 3 else planes, strict=True):
            np.divide(plane, np.float32(255), out=target, dtype=np.float32, casting="same_kind")
        boxes.append(box)
    return out[: len(images)], boxes
