"""D-ECE against SciPy's binning and, where it is installed, netcal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binned_statistic_dd
from sklearn.calibration import calibration_curve

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.measures.calibration import Calibration
from meddet_yolo.evaluate.pool import Pool
from tests.evaluate.measures._scenes import scenes


def _case(seed: int, images: int, threshold: float = 0.0, shift: float = 0.0):
    found, truth = scenes(seed, images, 2)
    found = [Found(f.name, f.boxes + np.array([1, 1, 1.1, 1.1]) * shift, f.classes, f.scores) for f in found]
    pool = Pool(found, truth)
    calibration = Calibration(["c0", "c1"], min_score=threshold)
    calibration.adopt(pool)
    shown = pool.scores >= threshold
    hit = (pool.matches()[0] >= 0)[shown].astype(float)
    boxes = np.clip(pool.boxes[shown], -1000, 1000) / 400
    centre = np.clip((boxes[:, :2] + boxes[:, 2:]) / 2, 0, 1)
    side = np.clip(boxes[:, 2:] - boxes[:, :2], 0, 1)
    return calibration, pool.scores[shown], hit, centre, side, pool.image[shown]


def _ece(features, hit, weight, bins: int) -> float:
    edges = [np.linspace(0, 1, bins + 1)] * features.shape[1]
    sums = [
        binned_statistic_dd(features, weight * v, "sum", bins=edges).statistic
        for v in (np.ones(len(hit)), hit, features[:, 0])
    ]
    return float(np.abs(sums[1] - sums[2]).sum() / weight.sum())


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 8), threshold=st.sampled_from([0.0, 0.3]))
def test_agrees_with_scipys_bins(seed, images, threshold):
    # off the edges of bins, to one side of which rounding moves what lies on them
    calibration, score, hit, centre, side, image = _case(seed, images, threshold, shift=0.013)
    times = np.random.default_rng(seed).integers(0, 3, images)
    weight = times[image].astype(float)
    scores = calibration.compute(times)
    if not weight.sum():
        assert np.isnan(scores["D-ECE"])
        return
    confidence = score[:, None]
    assert scores["D-ECE"] == pytest.approx(_ece(confidence, hit, weight, 10), abs=1e-6)
    assert scores["D-ECE/position"] == pytest.approx(_ece(np.hstack([confidence, centre]), hit, weight, 5), abs=1e-6)
    assert scores["D-ECE/size"] == pytest.approx(_ece(np.hstack([confidence, side]), hit, weight, 5), abs=1e-6)
    assert scores["confidence_gap"] == pytest.approx((weight @ (score - hit)) / weight.sum(), abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_agrees_with_netcal(seed):
    ECE = pytest.importorskip("netcal.metrics").ECE
    calibration, score, hit, centre, side, _ = _case(
        seed, 8, shift=0.013
    )  # off the edges of bins, which netcal counts otherwise
    scores = calibration.compute()
    for name, features, bins in (
        ("D-ECE", score[:, None], 10),
        ("D-ECE/position", np.hstack([score[:, None], centre]), 5),
        ("D-ECE/size", np.hstack([score[:, None], side]), 5),
    ):
        assert scores[name] == pytest.approx(ECE(bins, detection=True).measure(features, hit), abs=1e-6)


def test_the_diagram_is_scikit_learns():
    calibration, score, hit, *_ = _case(4, 12)
    diagram = calibration.details()["classes"]["all"]
    precision, confidence = calibration_curve(hit, score, n_bins=10)
    assert [p for p in diagram["precision"] if p is not None] == pytest.approx(precision.tolist())
    assert [c for c in diagram["confidence"] if c is not None] == pytest.approx(confidence.tolist())
    assert sum(diagram["boxes"]) == len(score)
    assert np.add(*(calibration.details()["classes"][c]["boxes"] for c in ("c0", "c1"))).tolist() == diagram["boxes"]


def test_says_that_nothing_was_found():
    calibration = Calibration(["disc"])
    calibration.update(Found("a", [[0, 0, 4, 4]], [0], [0.2]), Truth("a", [[0, 0, 4, 4]], [0], (8, 8)))
    assert np.isnan(calibration.compute()["D-ECE/size"])
    assert calibration.reasons["D-ECE"] == "nothing found with a confidence of 0.25 or more"
