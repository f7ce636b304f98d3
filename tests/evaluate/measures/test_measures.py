"""What holds for every measure, and the small ones by example and against scikit-learn."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.measures import MEASURES, measure
from meddet_yolo.evaluate.measures.box_size import BoxSize
from meddet_yolo.evaluate.measures.counts import Counts
from meddet_yolo.evaluate.measures.localisation import Localisation
from meddet_yolo.evaluate.measures.operating_point import OperatingPoint, threshold_of
from meddet_yolo.evaluate.pool import Pool
from tests.evaluate.measures._scenes import scenes

NAMES = ["c0", "c1"]


@pytest.mark.parametrize("name", MEASURES)
def test_whole_weights_are_copies(name):
    found, truth = scenes(11, 10, 2)
    weights = [2, 2, 0, 0, 1, 1, 3, 3, 0, 0]  # patients are pairs of images
    once, copied = measure(name, NAMES), measure(name, NAMES)
    for number, (f, t, times) in enumerate(zip(found, truth, weights, strict=True)):
        once.update(f, t)
        for copy in range(times):
            other, patient = f"{number}-{copy}", f"{t.patient}-{copy}"
            copied.update(Found(other, f.boxes, f.classes, f.scores), Truth(other, t.boxes, t.classes, t.size, patient))
    ours, theirs = once.compute(weights), copied.compute()
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1e-9, err_msg=str(list(ours)))


@pytest.mark.parametrize("name", MEASURES)
def test_nothing_at_all_is_undefined_and_explained(name):
    for found, truth in (
        ([], []),
        ([Found("a", [], [], [])], [Truth("a", [], [], (8, 8))]),
        ([Found("a", [[0, 0, 4, 4]], [1], [0.9])], [Truth("a", [], [], (8, 8), "p")]),
        ([Found("a", [], [], [])], [Truth("a", [[0, 0, 4, 4]], [1], (8, 8), "p")]),
    ):
        made = measure(name, NAMES)
        for f, t in zip(found, truth, strict=True):
            made.update(f, t)
        with np.errstate(all="raise"):
            scores = made.compute()
        undefined = {key for key, value in scores.items() if np.isnan(value)}
        assert undefined <= made.reasons.keys() and all(made.reasons[key] for key in undefined)
        assert made.reasons.keys() <= scores.keys()


@pytest.mark.parametrize("name", MEASURES)
def test_details_are_json_and_scores_named_alike(name):
    found, truth = scenes(3, 6, 2)
    made = measure(name, NAMES)
    made.adopt(Pool(found, truth))
    assert list(made.compute()) == list(made.compute([0, 1, 0, 1, 2, 0])) == list(made.compute([0] * 6))
    json.dumps(made.details(), allow_nan=False)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 6), threshold=st.floats(0, 1))
def test_the_operating_point_is_scikit_learns(seed, images, threshold):
    found, truth = scenes(seed, images, 2)
    pool = Pool(found, truth)
    point = OperatingPoint(NAMES, threshold=threshold)
    point.adopt(pool)
    scores = point.compute()
    match, shown = pool.matches()[0], pool.scores >= threshold
    for number in (None, 0, 1):
        own = np.ones_like(shown) if number is None else pool.classes == number
        labelled = pool.truth_classes == number if number is not None else np.ones(len(pool.truth_classes), bool)
        hits, alarms = (shown & own & (match >= 0)).sum(), (shown & own & (match < 0)).sum()
        if not labelled.any() and not alarms:
            continue  # nothing to tell scikit-learn
        there = [1] * labelled.sum() + [0] * alarms
        said = [1] * hits + [0] * (labelled.sum() - hits) + [1] * alarms
        precision, recall, f1, _ = precision_recall_fscore_support(there, said, average="binary", zero_division=np.nan)
        suffix = "" if number is None else f"/c{number}"
        expected = [recall if labelled.any() else np.nan, precision, alarms / images]
        ours = [scores[f"{k}{suffix}"] for k in ("sensitivity", "precision", "fp_per_image")]
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        if labelled.any() and hits:
            assert scores[f"F1{suffix}"] == pytest.approx(f1, abs=1e-6)


def test_each_class_may_have_its_threshold():
    found, truth = [Found("a", [[0, 0, 4, 4], [0, 0, 4, 4]], [0, 1], [0.5, 0.5])], [Truth("a", [], [], (8, 8))]
    point = OperatingPoint(NAMES, threshold={"c0": 0.4, "c1": 0.6})
    point.adopt(Pool(found, truth))
    assert (point.compute()["fp_per_image/c0"], point.compute()["fp_per_image/c1"]) == (1, 0)
    assert point.details()["classes"]["c0"] == {"threshold": 0.4, "hits": 0, "false_alarms": 1, "missed": 0}
    with pytest.raises(ValueError, match="threshold=None of class c1"):
        threshold_of({"c0": 0.4}, "c1")
    with pytest.raises(ValueError, match=r"threshold=1\.5 of class c0"):
        OperatingPoint(NAMES, threshold=1.5)


def test_localisation_in_pixels_and_millimetres():
    place = Localisation(["disc"])
    square = [[10, 10, 20, 20]]
    place.update(Found("a", [[13, 14, 23, 24]], [0], [0.9]), Truth("a", square, [0], (40, 40)))  # IoU 0.27: no hit
    place.update(Found("b", [[11, 12, 21, 22]], [0], [0.9]), Truth("b", square, [0], (40, 40), spacing=(0.5, 2.0)))
    place.update(Found("c", [[10, 10, 20, 20]], [0], [0.1]), Truth("c", square, [0], (40, 40)))  # below the threshold
    scores = place.compute()
    assert scores["centre_px"] == pytest.approx(np.sqrt(5)) and scores["edge_px"] == pytest.approx(1.5)
    assert scores["centre_mm"] == pytest.approx(np.sqrt(4 + 1)) and scores["edge_mm"] == pytest.approx(1.5)
    assert scores["IoU"] == pytest.approx(72 / 128)
    assert np.isnan(place.compute([1, 0, 1])["centre_mm"])


def test_localisation_says_that_the_spacing_is_unknown():
    place = Localisation(["disc"])
    place.update(Found("a", [[0, 0, 4, 4]], [0], [0.9]), Truth("a", [[0, 0, 4, 4]], [0], (8, 8)))
    assert np.isnan(place.compute()["edge_mm"]) and place.reasons["edge_mm"] == "the pixel spacing is unknown"


def test_counts_differ_by_class():
    counts = Counts(NAMES)
    counts.update(Found("a", [[0, 0, 4, 4]] * 2, [0, 0], [0.9, 0.2]), Truth("a", [[0, 0, 4, 4]] * 2, [1, 1], (8, 8)))
    assert counts.compute() == {"count_error": 3, "count_bias": -1}


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), threshold=st.floats(0, 1))
def test_thirds_by_size_are_counted_and_add_up(seed, threshold):
    found, truth = scenes(seed, 6, 2)
    pool = Pool(found, truth)
    sizes, point = BoxSize(NAMES, threshold=threshold), OperatingPoint(NAMES, threshold=threshold)
    for one in (sizes, point):
        one.adopt(pool)
    details, scores = sizes.details(), sizes.compute()
    hits = sum(row["hits"] for row in point.details()["classes"].values())
    assert sum(row["found"] for row in details["thirds"].values()) == hits
    side = np.sqrt((pool.truth_boxes[:, 2:] - pool.truth_boxes[:, :2]).prod(1))
    if not len(side):
        assert np.isnan(list(scores.values())).all()
        return
    edges = np.quantile(side, [1 / 3, 2 / 3])
    counts = [
        int((side <= edges[0]).sum()),
        int(((side > edges[0]) & (side <= edges[1])).sum()),
        int((side > edges[1]).sum()),
    ]
    assert [row["boxes"] for row in details["thirds"].values()] == counts
    for name, row in details["thirds"].items():
        assert (
            np.isnan(scores[f"found/{name}"])
            if not row["boxes"]
            else scores[f"found/{name}"] == row["found"] / row["boxes"]
        )
