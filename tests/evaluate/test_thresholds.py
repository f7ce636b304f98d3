"""Thresholds chosen on one set: against every threshold, and scikit-learn's curve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.evaluate.thresholds import best_f1, choose_threshold, least_sensitivity
from tests.evaluate.measures._scenes import scenes


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 1), distinct=st.booleans())
def test_no_other_threshold_is_better(seed, share, distinct):
    pool = Pool(*scenes(seed, 5, 2, distinct=distinct))
    there = len(pool.truth_image)
    if not there or not len(pool.scores):
        with pytest.raises(ValueError, match="no threshold can be chosen"):
            best_f1(pool)
        return
    hit = pool.matches()[0] >= 0
    labels = np.concatenate([hit, np.ones(there - hit.sum())])
    precision, recall, thresholds = precision_recall_curve(
        labels, np.concatenate([pool.scores, -np.ones(there - hit.sum())])
    )
    real = thresholds >= 0
    precision, recall, thresholds = precision[:-1][real], recall[:-1][real], thresholds[real]
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = best_f1(pool)
    assert best.f1 == pytest.approx(f1.max(), abs=1e-6)
    at = int(np.flatnonzero(thresholds == best.threshold)[0])
    assert (best.sensitivity, best.precision) == pytest.approx((recall[at], precision[at]))
    enough = thresholds[recall >= share]
    if len(enough):
        assert least_sensitivity(pool, share).threshold == enough.max()
    else:
        with pytest.raises(ValueError, match="no threshold has a sensitivity of"):
            least_sensitivity(pool, share)


def test_rules():
    box = [[0, 0, 9, 9]]
    pool = Pool([Found("a", box, [0], [0.7])], [Truth("a", box, [0], (10, 10))])
    assert choose_threshold("f1", pool).threshold == choose_threshold("sensitivity=1", pool).threshold == 0.7
    for rule in ("F1", "sensitivity", "sensitivity=high", "f1=3", "0.3x"):
        with pytest.raises(ValueError, match="is no rule"):
            choose_threshold(rule, pool)
    with pytest.raises(ValueError, match="must lie in"):
        choose_threshold("sensitivity=1.5", pool)
