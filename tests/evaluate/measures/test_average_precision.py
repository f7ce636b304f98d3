"""COCO's mAP family against pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.measures import MEASURES, measure
from meddet_yolo.evaluate.measures.average_precision import AveragePrecision
from meddet_yolo.evaluate.pool import Pool
from tests.evaluate.measures._scenes import scenes

KEYS = ("mAP50-95", "mAP50", "mAP75", "mAP50-95/small", "mAP50-95/medium", "mAP50-95/large", "recall")
STATS = (0, 1, 2, 3, 4, 5, 8)


def coco_evaluation(found, truth, classes: int, weights=None, max_det: int = 100):
    """Return pycocotools' evaluation; an image of weight n is there n times."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, labels, results = [], [], []
    for f, t, times in zip(found, truth, [1] * len(found) if weights is None else weights, strict=True):
        for _ in range(times):
            images.append({"id": len(images) + 1})
            here = {"image_id": len(images)}
            for (x1, y1, x2, y2), c in zip(t.boxes.tolist(), t.classes.tolist(), strict=True):
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                labels.append({"id": len(labels) + 1, "category_id": c, "iscrowd": 0, **box, **here})
            for (x1, y1, x2, y2), c, s in zip(f.boxes.tolist(), f.classes.tolist(), f.scores.tolist(), strict=True):
                results.append({"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": c, "score": s, **here})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "annotations": labels, "categories": [{"id": c} for c in range(classes)]}
        coco.createIndex()
        theirs = COCO()
        theirs.dataset = {"images": images, "categories": coco.dataset["categories"], "annotations": []}
        theirs.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results) if results else theirs, "bbox")
        evaluation.params.maxDets = [max_det]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def coco_numbers(evaluation) -> list[float]:
    """Return the numbers of `KEYS`, NaN for pycocotools' -1."""

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else float("nan")

    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]  # (T, R, K, A, M), (T, K, A, M)
    everything = precision[:, :, :, 0, -1]
    return [
        *(mean(everything), mean(everything[:1]), mean(everything[5:6])),
        *(mean(precision[:, :, :, area, -1]) for area in (1, 2, 3)),
        mean(recall[:, :, 0, -1]),
    ]


def ours(found, truth, classes: int, **options) -> AveragePrecision:
    made = AveragePrecision([f"c{i}" for i in range(classes)], **options)
    for f, t in zip(found, truth, strict=True):
        made.update(f, t)
    return made


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6), images=st.integers(1, 8), classes=st.integers(1, 3), distinct=st.booleans(),
    max_det=st.sampled_from([1, 3, 100]),
)  # fmt: skip
def test_agrees_with_pycocotools(seed, images, classes, distinct, max_det):
    found, truth = scenes(seed, images, classes, distinct=distinct)
    scores = ours(found, truth, classes, max_det=max_det).compute()
    theirs = coco_evaluation(found, truth, classes, max_det=max_det)
    np.testing.assert_allclose([scores[k] for k in KEYS], coco_numbers(theirs), atol=1e-9)
    for number in range(classes):
        values = theirs.eval["precision"][:, :, number, 0, -1]
        expected = values.mean() if (values > -1).all() else np.nan
        np.testing.assert_allclose(scores[f"AP50-95/c{number}"], expected, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), images=st.integers(2, 8), classes=st.integers(1, 3))
def test_a_weight_is_as_many_copies_of_the_image(seed, images, classes):
    found, truth = scenes(seed, images, classes)
    weights = np.random.default_rng(seed).integers(0, 4, images)
    scores = ours(found, truth, classes).compute(weights)
    expected = coco_numbers(coco_evaluation(found, truth, classes, weights))
    np.testing.assert_allclose([scores[k] for k in KEYS], expected, atol=1e-9)


def test_no_image_drawn_is_undefined_not_zero():
    found, truth = scenes(1, 4, 2)
    assert all(np.isnan(v) for v in ours(found, truth, 2).compute([0, 0, 0, 0]).values())


def test_says_why_a_score_is_undefined():
    truth = Truth("a", [[0, 0, 8, 8]], [0], (9, 9))
    made = ours([Found("a", [[0, 0, 8, 8]], [0], [0.5])], [truth], 2)
    scores = made.compute()
    assert scores["mAP50-95"] == pytest.approx(1) and np.isnan(scores["AP50/c1"])
    assert made.reasons["AP50/c1"] == "no labelled box of this class"
    assert made.reasons["mAP50-95/large"] == "no labelled box is large"
    nothing = ours([Found("a", [[0, 0, 8, 8]], [0], [0.5])], [Truth("a", [], [], (9, 9))], 1)
    assert np.isnan(nothing.compute()["mAP50-95"]) and nothing.reasons["mAP50-95"] == "no labelled boxes"


def test_nothing_found_is_zero():
    made = ours([Found("a", [], [], [])], [Truth("a", [[0, 0, 8, 8]], [0], (9, 9))], 1)
    scores = made.compute()
    assert scores["mAP50-95"] == scores["recall"] == 0


def test_update_after_compute_counts_and_a_pool_gives_the_same():
    found, truth = scenes(3, 6, 2)
    step = ours(found[:3], truth[:3], 2)
    before = step.compute()
    for f, t in zip(found[3:], truth[3:], strict=True):
        step.update(f, t)
    pooled = AveragePrecision(["c0", "c1"])
    pooled.adopt(Pool(found, truth))
    np.testing.assert_equal(step.compute(), pooled.compute())
    assert step.compute() != before


def test_details_hold_the_curve_whose_mean_is_the_average_precision():
    made = ours(*scenes(5, 8, 2), 2)
    scores, details = made.compute(), made.details()
    for name in ("c0", "c1"):
        assert np.mean(details["precision"][name]) == pytest.approx(scores[f"AP50/{name}"])


def test_weights_have_to_fit():
    made = ours(*scenes(5, 3, 1), 1)
    with pytest.raises(ValueError, match="weights must be 3 numbers of at least 0"):
        made.compute([1, 2])
    with pytest.raises(ValueError, match="weights must be 3 numbers of at least 0"):
        made.compute([1, 2, -1])


def test_a_measure_is_made_by_its_name():
    assert set(MEASURES) >= {"average_precision"}
    with pytest.raises(ValueError, match="measures=mAP is no measure: expected some of average_precision"):
        measure("mAP", ["disc"])
