"""Error types against a plain retelling of TIDE's definitions, gains against pycocotools."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.measures.error_types import ERRORS, ErrorTypes
from meddet_yolo.evaluate.pool import Pool
from tests.evaluate.measures._scenes import scenes
from tests.evaluate.measures.test_average_precision import coco_evaluation


def _plain(found: Found, truth: Truth):
    """Return the kind and labelled box of every found box, best first, and the missed ones, of one image."""
    order = np.argsort(-found.scores, kind="stable")
    iou = box_iou(torch.from_numpy(found.boxes[order]), torch.from_numpy(truth.boxes)).numpy()
    classes = found.classes[order]
    used, kinds, near = {}, [], set()
    for d in range(len(order)):
        same = [g for g in range(len(truth)) if truth.classes[g] == classes[d] and g not in used]
        best = max(same, key=lambda g: (iou[d, g], g), default=None)
        if best is not None and iou[d, best] >= 0.5:
            used[best] = d
    taken = {d: g for g, d in used.items()}
    for d in range(len(order)):
        same = {g: iou[d, g] for g in range(len(truth)) if truth.classes[g] == classes[d]}
        other = {g: iou[d, g] for g in range(len(truth)) if truth.classes[g] != classes[d]}
        if d in taken:
            kinds.append(("hit", taken[d]))
        elif same and 0.1 <= max(same.values()) < 0.5:
            kinds.append(("localisation", max(same, key=same.get)))
        elif other and max(other.values()) >= 0.5:
            kinds.append(("classification", max(other, key=other.get)))
        elif any(same[g] >= 0.5 for g in same if g in used):
            kinds.append(("duplicate", None))
        elif not len(truth) or iou[d].max() <= 0.1:
            kinds.append(("background", None))
        else:
            kinds.append(("both", None))
        near.add(kinds[-1][1])
    return order, kinds, [g for g in range(len(truth)) if g not in near]


def _mended(found: Found, truth: Truth, error: str) -> tuple[Found, Truth]:
    """Return an image without one kind of error."""
    order, kinds, missed = _plain(found, truth)
    hits = {g for kind, g in kinds if kind == "hit"}
    about = [g for kind, g in kinds if kind in ("localisation", "classification")]
    first = {g: i for i, g in reversed([(i, g) for i, (k, g) in enumerate(kinds) if k in ERRORS[:2]])}
    assert set(first) == set(about)
    boxes, classes, scores = [], [], []
    for rank, (kind, g) in enumerate(kinds):
        box, cls = found.boxes[order[rank]], found.classes[order[rank]]
        if kind == error:
            if g is None or g in hits or first[g] != rank:
                continue
            box, cls = truth.boxes[g], truth.classes[g]
        boxes.append(box)
        classes.append(cls)
        scores.append(found.scores[order[rank]])
    keep = np.ones(len(truth), bool)
    if error == "missed":
        keep[missed] = False
    return (
        Found(found.name, boxes, classes, scores),
        Truth(truth.name, truth.boxes[keep], truth.classes[keep], truth.size),
    )


def _ap50(found, truth, classes) -> np.ndarray:
    precision = coco_evaluation(found, truth, classes).eval["precision"][0, :, :, 0, -1]
    return np.where(precision > -1, precision, np.nan).mean(0)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 5), classes=st.integers(1, 3))
def test_counts_and_gains_are_tides(seed, images, classes):
    found, truth = scenes(seed, images, classes)
    errors = ErrorTypes([f"c{i}" for i in range(classes)], threshold=0.3)
    errors.adopt(Pool(found, truth))
    scores = errors.compute()
    counts = dict.fromkeys(ERRORS, 0)
    for f, t in zip(found, truth, strict=True):
        _, kinds, missed = _plain(f.above(0.3), t)
        counts["missed"] += len(missed)
        for kind, _ in kinds:
            if kind != "hit":
                counts[kind] += 1
    assert {e: scores[f"errors/{e}"] * images for e in ERRORS} == pytest.approx(counts)
    before = _ap50(found, truth, classes)
    if np.isnan(before).all():
        assert all(np.isnan(scores[f"dAP/{e}"]) for e in ERRORS)
        return
    for error in ERRORS:
        pairs = [_mended(f, t, error) for f, t in zip(found, truth, strict=True)]
        after = _ap50([f for f, _ in pairs], [t for _, t in pairs], classes)
        after = np.where(np.isnan(after) & ~np.isnan(before), 1.0, after)
        assert scores[f"dAP/{error}"] == pytest.approx(np.nanmean(after) - np.nanmean(before), abs=1e-6), error


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_a_weight_is_as_many_copies_of_the_image(seed):
    found, truth = scenes(seed, 5, 2)
    weights = np.random.default_rng(seed).integers(0, 3, 5)
    once, copied = ErrorTypes(["c0", "c1"]), ErrorTypes(["c0", "c1"])
    for number, (f, t, times) in enumerate(zip(found, truth, weights, strict=True)):
        once.update(f, t)
        for copy in range(times):
            name = f"{number}-{copy}"
            copied.update(Found(name, f.boxes, f.classes, f.scores), Truth(name, t.boxes, t.classes, t.size))
    if weights.sum():
        ours, theirs = once.compute(weights), copied.compute()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1e-9)


def test_each_kind_by_example():
    truth = Truth("a", [[0, 0, 10, 10], [50, 50, 60, 60], [80, 0, 90, 10]], [0, 1, 0], (100, 100))
    boxes = {
        "hit": ([0, 0, 10, 10], 0),
        "duplicate": ([0, 0, 10, 9], 0),
        "localisation": ([0, 5, 10, 16], 0),
        "classification": ([50, 50, 60, 60], 0),
        "both": ([50, 54, 60, 64], 0),
        "background": ([20, 20, 30, 30], 1),
    }
    found = Found("a", [b for b, _ in boxes.values()], [c for _, c in boxes.values()], np.linspace(0.9, 0.5, 6))
    errors = ErrorTypes(["x", "y"])
    errors.update(found, truth)
    assert {e: errors.compute()[f"errors/{e}"] for e in ERRORS} == dict.fromkeys(ERRORS, 1.0)


def test_no_labelled_boxes_have_no_gain():
    errors = ErrorTypes(["x"])
    errors.update(Found("a", [[0, 0, 4, 4]], [0], [0.9]), Truth("a", [], [], (8, 8)))
    assert np.isnan(errors.compute()["dAP/background"]) and errors.reasons["dAP/background"] == "no labelled boxes"
    assert errors.compute()["errors/background"] == 1
