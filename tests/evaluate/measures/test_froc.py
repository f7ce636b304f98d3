"""FROC against MONAI and a plain count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.froc import compute_fp_tp_probs, compute_froc_curve_data, compute_froc_score

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.measures.froc import FROC, RATES, thinned
from meddet_yolo.evaluate.pool import Pool
from tests.evaluate.measures._scenes import scenes


def _froc(found, truth, classes: int = 1, **options) -> FROC:
    froc = FROC([f"c{i}" for i in range(classes)], **options)
    froc.adopt(Pool(found, truth))
    return froc


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 6))
def test_by_centre_the_curve_is_monais(seed, images):
    generator = np.random.default_rng(seed)
    found, truth, alarms, hits, targets = [], [], [], [], 0
    for number in range(images):
        count = generator.integers(0, 4)
        corner = np.arange(count)[:, None] * [20, 0] + generator.integers(0, 5, (count, 2))  # apart, as a mask needs
        boxes = np.hstack([corner, corner + generator.integers(6, 14, (count, 2))]).astype(float)
        centre = generator.integers(2, 80, (generator.integers(1, 9), 2)) + 0.5
        score = generator.integers(1, 8, len(centre)) / 8  # exact in single precision, which MONAI has
        mask = np.zeros((100, 100), int)
        for label, (x1, y1, x2, y2) in enumerate(boxes.astype(int), start=1):
            mask[y1:y2, x1:x2] = label
        x, y = np.floor(centre).astype(int).T
        fp, tp, n = compute_fp_tp_probs(score, y, x, mask)
        alarms, hits, targets = [*alarms, *fp], [*hits, *tp], targets + n
        truth.append(Truth(str(number), boxes, np.zeros(count, int), (100, 100)))
        found.append(Found(str(number), np.hstack([centre - 2, centre + 2]), np.zeros(len(centre), int), score))
    froc = _froc(found, truth, hit="centre")
    if not targets:
        assert np.isnan(froc.compute()["FROC"]) and froc.reasons["FROC"] == "no labelled boxes"
        return
    curve = froc.details()["curves"]["all"]
    fps, sensitivity = compute_froc_curve_data(np.array(alarms), np.array(hits), targets, images)
    thresholds = sorted({*alarms, *hits})[1:]  # what MONAI takes; a target that is not found has 0 there
    ours = {t: (f, s) for t, f, s in zip(*curve.values(), strict=True)}
    for threshold, f, s in zip(thresholds, fps, sensitivity, strict=False):
        assert ours[threshold] == pytest.approx((f, s), abs=1e-6)


def test_the_mean_is_monais_where_the_rates_are_attained():
    # One image; every false alarm is one more per image, so the rates 1 to 8 are attained and none lies between.
    generator = np.random.default_rng(0)
    truth = [Truth("a", [[10 * i, 0, 10 * i + 8, 8] for i in range(20)], np.zeros(20, int), (100, 300))]
    hits = generator.random(15)
    alarms = generator.random(40)
    boxes = [[10 * i, 0, 10 * i + 8, 8] for i in range(15)] + [[10 * i, 50, 10 * i + 8, 58] for i in range(40)]
    found = [Found("a", boxes, np.zeros(55, int), np.concatenate([hits, alarms]))]
    scores = _froc(found, truth).compute()
    fps, sensitivity = compute_froc_curve_data(alarms, hits, 20, 1)
    for rate in (1, 2, 4, 8):
        assert scores[f"sensitivity@{rate}fp"] == pytest.approx(sensitivity[fps <= rate].max(), abs=1e-6)
    assert scores["FROC"] <= compute_froc_score(fps, sensitivity, RATES) + 1e-9  # theirs interpolates upwards
    assert scores["FROC"] == pytest.approx(np.mean([sensitivity[fps <= r].max(initial=0) for r in RATES]), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 8), classes=st.integers(1, 3), distinct=st.booleans())
def test_it_is_the_best_threshold_that_keeps_the_rate(seed, images, classes, distinct):
    found, truth = scenes(seed, images, classes, distinct=distinct)
    weights = np.random.default_rng(seed).integers(0, 3, images)
    froc = _froc(found, truth, classes)
    scores = froc.compute(weights)
    match, alarm = froc._pool.matches()
    pool = froc._pool
    for number in range(-1, classes):
        own, labelled = (pool.classes == number, pool.truth_classes == number) if number >= 0 else (match > -2, ...)
        there = weights[pool.truth_image[labelled]].sum()
        for rate in RATES:
            best = 0.0
            for threshold in np.unique(pool.scores):
                at = own & (pool.scores >= threshold)
                if weights[pool.image[at & alarm]].sum() <= rate * weights.sum():
                    best = max(best, weights[pool.image[at & (match >= 0)]].sum() / max(there, 1))
            name = f"sensitivity@{rate:g}fp" + (f"/c{number}" if number >= 0 else "")
            np.testing.assert_allclose(scores[name], best if there else np.nan, atol=1e-9)


def test_a_second_hit_is_an_alarm_by_iou_and_nothing_by_centre():
    box = [[0, 0, 10, 10]]
    truth = [Truth("a", box, [0], (20, 20))]
    found = [Found("a", box * 3, [0, 0, 0], [0.9, 0.8, 0.7])]
    by_iou, by_centre = (_froc(found, truth, hit=hit).details()["curves"]["all"] for hit in ("iou", "centre"))
    assert by_iou["fp_per_image"] == [0, 1, 2]
    assert by_centre["fp_per_image"] == [0] and by_centre["sensitivity"] == [1]


def test_more_false_alarms_than_are_summed_up_first():
    """A resample may draw images without false alarms only, so that the rest of the list is needed."""
    corner = np.arange(60.0)[:, None] * [0, 5]
    boxes = np.hstack([corner, corner + 4])
    empty = [Found(str(i), [], [], []) for i in range(1, 4)]
    found = [Found("0", boxes, np.zeros(60, int), np.linspace(0.9, 0.3, 60)), *empty]
    truth = [Truth(str(i), [[100, 0, 110, 10]], [0], (300, 300)) for i in range(4)]
    found[1] = Found("1", [[100, 0, 110, 10]], [0], [0.1])
    froc = _froc(found, truth)
    assert froc.compute([1, 1, 1, 1])["sensitivity@8fp"] == 0  # 60 alarms / 4 images
    assert froc.compute([0, 1, 1, 1])["sensitivity@8fp"] == pytest.approx(1 / 3)


def test_a_long_curve_is_thinned_but_keeps_its_ends():
    curve = [np.linspace(1, 0, 5000), np.arange(5000.0), np.floor(np.arange(5000) / 10)]
    short = thinned(curve, 100)
    assert all(len(axis) <= 102 for axis in short)
    assert [axis[0] for axis in short] == [1, 0, 0] and [axis[-1] for axis in short] == [0, 4999, 499]


@pytest.mark.parametrize(("options", "message"), [({"hit": "box"}, "hit=box is unknown"), ({"iou": 0}, "iou must lie")])
def test_refuses_unknown_hits(options, message):
    with pytest.raises(ValueError, match=message):
        _froc(*scenes(0, 2, 1), **options).compute()
