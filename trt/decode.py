"""A network's output to boxes in an image's pixels: end-to-end rows, or a raw head with NMS, in numpy and OpenCV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from meddet_yolo.trt.preprocess import Letterbox

__all__ = ["Detections", "decode", "non_max_suppression"]

_CLASS_OFFSET = np.float32(7680)  # pixels between the classes in NMS, which then never meet; Ultralytics' value
_MAX_CANDIDATES = 30_000


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        xyxy: Boxes (N, 4), `x1 y1 x2 y2` in pixels of the image.
        confidence: (N,), 0..1.
        class_id: (N,) integers.
        names: Class names by number.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]
    names: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.xyxy)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Go through the boxes as dictionaries of plain values, ready for JSON."""
        for box, confidence, number in zip(self.xyxy, self.confidence, self.class_id, strict=True):
            name = self.names.get(int(number), str(int(number)))
            yield {"class": name, "class_id": int(number), "confidence": float(confidence), "xyxy": box.tolist()}


def decode(
    output: NDArray[np.floating],
    boxes: Sequence[Letterbox],
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    max_det: int = 300,
    end2end: bool | None = None,
    names: dict[int, str] | None = None,
) -> list[Detections]:
    """Turn a network's output into boxes in pixels of the images, as Ultralytics' predictor does.

    Args:
        output: (B, 4 + classes, anchors) of a raw head, boxes as centre and size in pixels of the input; or
            (B, N, 6) of an end-to-end head, rows `x1 y1 x2 y2 confidence class`.
        boxes: Where each of the B images lies in the input, from `preprocess`.
        conf: Only boxes of more than this confidence, 0..1.
        iou: Boxes of a class that overlap a better one by more than this are dropped, 0..1; raw heads only.
        classes: Only these classes.
        agnostic: Whether boxes of different classes suppress each other, too.
        max_det: Most boxes an image.
        end2end: Which of the two; found from the shape where None.
        names: Class names.

    Raises:
        ValueError: If the output has another shape, or a threshold lies outside 0..1.

    Examples:
        >>> from meddet_yolo.trt.preprocess import fit_letterbox
        >>> rows = np.array([[[16, 16, 48, 48, 0.9, 1], [0, 0, 8, 8, 0.1, 0]]], np.float32)
        >>> list(decode(rows, [fit_letterbox((32, 32), (64, 64))], names={1: "disc"})[0])
        [{'class': 'disc', 'class_id': 1, 'confidence': 0.8999999761581421, 'xyxy': [8.0, 8.0, 24.0, 24.0]}]
    """
    for name, value in (("conf", conf), ("iou", iou)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in 0..1, got {value}")
    if output.ndim != 3 or len(output) < len(boxes):
        raise ValueError(f"expected an output of shape (B, ..., ...) for {len(boxes)} images, got {output.shape}")
    if end2end is None:
        end2end = output.shape[2] == 6
    if end2end and output.shape[2] != 6:
        raise ValueError(f"expected end-to-end rows of shape (B, N, 6), got {output.shape}")
    if not end2end and output.shape[1] < 5:
        raise ValueError(f"expected a raw head of shape (B, 4 + classes, anchors), got {output.shape}")
    results = []
    for one, box in zip(output, boxes, strict=False):
        if end2end:
            rows = _filter(one.astype(np.float32, copy=False), conf, classes)[:max_det]
        else:
            rows = _filter(_best_class(one, conf), conf, classes)
            rows = rows[non_max_suppression(rows, iou, agnostic=agnostic)[:max_det]]
        results.append(Detections(box.to_image(rows[:, :4]), rows[:, 4], rows[:, 5].astype(np.int64), names or {}))
    return results


def non_max_suppression(rows: NDArray[np.float32], iou: float, *, agnostic: bool = False) -> NDArray[np.intp]:
    """Return the indices of the rows (N, 6) that no better row of the same class overlaps by more than `iou`.

    Best first; of more than 30,000 rows the best are taken.

    Examples:
        >>> rows = np.array([[0, 0, 10, 10, 0.5, 0], [1, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.4, 1]], np.float32)
        >>> non_max_suppression(rows, 0.5).tolist()
        [1, 2]
    """
    if not len(rows):
        return np.zeros(0, np.intp)
    order = np.argsort(-rows[:, 4], kind="stable")[:_MAX_CANDIDATES]
    best = rows[order]
    corners = best[:, :4] if agnostic else best[:, :4] + best[:, 5:] * _CLASS_OFFSET
    sized = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1, dtype=np.float64)
    nms: Any = cv2.dnn.NMSBoxes  # takes arrays, which its annotations do not say
    kept = nms(sized, best[:, 4], score_threshold=0.0, nms_threshold=iou)
    return order[np.asarray(kept, np.intp).reshape(-1)]


def _best_class(head: NDArray[np.floating], conf: float) -> NDArray[np.float32]:
    """Return rows `x1 y1 x2 y2 confidence class` of a raw head (4 + classes, anchors), one an anchor above `conf`."""
    scores = head[4:]
    candidates = np.flatnonzero(scores.max(0) > conf)  # few: the rest of the work is on these alone
    head = head[:, candidates].astype(np.float32, copy=False)
    number = head[4:].argmax(0)
    half = head[2:4] / 2
    confidence = head[4 + number, np.arange(len(candidates))]
    return np.stack((*(head[:2] - half), *(head[:2] + half), confidence, number.astype(np.float32)), axis=1)


def _filter(rows: NDArray[np.float32], conf: float, classes: Sequence[int] | None) -> NDArray[np.float32]:
    """Return the rows above a confidence and of some classes."""
    keep = rows[:, 4] > conf
    if classes is not None:
        keep &= np.isin(rows[:, 5], np.asarray(classes))
    return rows[keep]
