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
from meddet_yolo.evaluate.recalibration import fit_isotonic, fit_temperature, hits_of, recalibrated
from meddet_yolo.trt.engine_file import EngineFileError, read_sidecar, write_sidecar
from meddet_yolo.trt.recalibration import Isotonic, Temperature, from_dict, store, stored
from tests.evaluate.measures._scenes import scenes


def _case(seed: int, temperature: float, count: int = 400):
    generator = np.random.default_rng(seed)
    true = generator.beta(2, 2, count)
    # Within what a temperature takes the logits of; beyond, it takes those of the limits.
    return np.clip(expit(logit(true) * temperature), 1e-6, 1 - 1e-6), generator.random(count) < true


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.5, 3))
def test_temperature_is_scikit_learns_slope(seed, temperature):
    scores, hits = _case(seed, temperature)
    fitted = fit_temperature(scores, hits)
    slope = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10, max_iter=500).fit(logit(scores)[:, None], hits)
    assert 1 / fitted.temperature == pytest.approx(float(slope.coef_[0, 0]), rel=1e-4)
    assert fitted.temperature == pytest.approx(temperature, rel=0.4)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), ties=st.booleans())
def test_isotonic_is_scikit_learns(seed, count, ties):
    scores, hits = _case(seed, 1.5, count)
    scores = np.round(scores, 1) if ties else scores
    ours = fit_isotonic(scores, hits)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, hits)
    at = np.linspace(0, 1, 101)
    np.testing.assert_allclose(ours(at), theirs.predict(at), atol=1e-6)
    assert len(ours.scores) <= count and list(ours.scores) == sorted(ours.scores)


def test_recalibration_helps_on_other_images():
    scores, hits = _case(1, 3.0, 3000)
    fresh, truth = _case(2, 3.0, 3000)
    for function in (fit_temperature(scores, hits), fit_isotonic(scores, hits)):
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
        fit_temperature(*hits_of(pool, min_score=1.1))
    with pytest.raises(ValueError, match=r"must be \(N,\)"):
        fit_isotonic([0.1], [1, 0])


@given(st.floats(0.2, 5), st.floats(0, 1))
def test_the_least_confidence_of_a_probability_is_the_inverse(temperature, probability):
    generator = np.random.default_rng(3)
    scores = np.sort(generator.random(30))
    for function in (Temperature(temperature), fit_isotonic(scores, generator.random(30) < scores)):
        least = function.least(probability)
        assert 0 <= least <= 1
        if function([1.0])[0] >= probability:
            assert function([least + 1e-9])[0] >= probability - 1e-6
        assert least < 1e-6 or function([least - 1e-6])[0] <= probability + 1e-6


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "temperature", "temperature": 0},
        {"kind": "temperature", "temperature": float("nan")},
        {"kind": "isotonic", "scores": [0.5, 0.1], "probabilities": [0, 1]},
        {"kind": "isotonic", "scores": [], "probabilities": []},
        {"kind": "isotonic", "scores": [0.1], "probabilities": [float("nan")]},
        {"kind": "magic"},
        {},
        [1],
    ],
)
def test_what_is_none_is_refused(content, tmp_path):
    with pytest.raises(ValueError):
        from_dict(content)
    (tmp_path / "a.onnx.json").write_text(json.dumps({"meddet_recalibration": content}))
    with pytest.raises(EngineFileError, match=r"a\.onnx\.json"):
        stored(tmp_path / "a.onnx")


def test_the_sidecar_keeps_what_it_says_and_none_is_made(tmp_path):
    file = tmp_path / "a.onnx"
    file.write_bytes(b"model")
    with pytest.raises(EngineFileError, match="no sidecar"):
        store(file, Temperature(2.0))
    write_sidecar(file, {"meddet_precision": "fp32"})
    before = read_sidecar(file)
    assert stored(file) is None
    store(file, Temperature(2.0))
    store(file, Temperature(3.0))
    assert stored(file) == Temperature(3.0)
    assert {k: v for k, v in read_sidecar(file).items() if k != "meddet_recalibration"} == before


def test_openvinos_sidecar_is_that_of_the_weights(tmp_path):
    weights = tmp_path / "a_openvino_model" / "a.bin"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    write_sidecar(weights, {})
    store(weights.parent, Isotonic((0.1, 0.9), (0.2, 0.6)))
    assert stored(weights.parent) == stored(weights.with_suffix(".xml")) == Isotonic((0.1, 0.9), (0.2, 0.6))
