"""Recalibration against scikit-learn and SciPy; what is stored comes back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from meddet_yolo.evaluate.detections import Found
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.evaluate.recalibration import Isotonic, Temperature, from_dict, hits_of, recalibrated
from tests.evaluate.measures._scenes import scenes


def _case(seed: int, temperature: float, count: int = 400):
    generator = np.random.default_rng(seed)
    true = generator.beta(2, 2, count)
    return expit(logit(true) * temperature), generator.random(count) < true


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.5, 3))
def test_temperature_is_scikit_learns_slope(seed, temperature):
    scores, hits = _case(seed, temperature)
    fitted = Temperature.fit(scores, hits)
    slope = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10, max_iter=500).fit(logit(scores)[:, None], hits)
    assert 1 / fitted.temperature == pytest.approx(float(slope.coef_[0, 0]), rel=1e-4)
    assert fitted.temperature == pytest.approx(temperature, rel=0.4)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), ties=st.booleans())
def test_isotonic_is_scikit_learns(seed, count, ties):
    scores, hits = _case(seed, 1.5, count)
    scores = np.round(scores, 1) if ties else scores
    ours = Isotonic.fit(scores, hits)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, hits)
    at = np.linspace(0, 1, 101)
    np.testing.assert_allclose(ours(at), theirs.predict(at), atol=1e-6)
    assert len(ours.scores) <= count and list(ours.scores) == sorted(ours.scores)


def test_recalibration_helps_on_other_images():
    scores, hits = _case(1, 3.0, 3000)
    fresh, truth = _case(2, 3.0, 3000)
    for function in (Temperature.fit(scores, hits), Isotonic.fit(scores, hits)):
        before, after = (np.mean((s - truth) ** 2) for s in (fresh, function(fresh)))
        assert after < before - 0.01


@pytest.mark.parametrize("function", [Temperature(1.7), Isotonic((0.1, 0.9), (0.2, 0.6))])
def test_what_is_stored_comes_back(function):
    assert from_dict(json.loads(json.dumps(function.to_dict()))) == function
    found = recalibrated(Found("a", [[0, 0, 1, 1]] * 3, [0, 0, 1], [0.0, 0.5, 1.0]), function)
    assert (np.diff(found.scores) > 0).all() and found.classes.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "content", [{}, {"kind": "platt"}, {"kind": "isotonic"}, {"kind": "temperature", "temperature": None}]
)
def test_refuses_what_is_no_recalibration(content):
    with pytest.raises(ValueError, match="is no recalibration"):
        from_dict(content)


def test_fits_on_the_hits_of_a_pool():
    pool = Pool(*scenes(0, 8, 2))
    scores, hits = hits_of(pool, min_score=0.2)
    assert (scores >= 0.2).all() and hits.sum() == (pool.matches()[0][pool.scores >= 0.2] >= 0).sum()
    with pytest.raises(ValueError, match="no boxes to fit"):
        Temperature.fit(*hits_of(pool, min_score=1.1))
    with pytest.raises(ValueError, match=r"must be \(N,\)"):
        Isotonic.fit([0.1], [1, 0])
