"""AUROC per image and patient against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.measures.auroc import AUROC
from meddet_yolo.evaluate.pool import Pool
from tests.evaluate.measures._scenes import scenes


def _sklearn(label, score, weight) -> float:
    label, score, weight = (np.asarray(v)[np.asarray(weight) > 0] for v in (label, score, weight))
    return roc_auc_score(label, score, sample_weight=weight) if len(set(label.tolist())) == 2 else np.nan


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 14), distinct=st.booleans())
def test_agrees_with_scikit_learn(seed, images, distinct):
    found, truth = scenes(seed, images, 3, distinct=distinct)
    auroc = AUROC(["c0", "c1", "c2"])
    auroc.adopt(Pool(found, truth))
    patients = [t.patient for t in truth]
    times = {p: t for p, t in zip(set(patients), np.random.default_rng(seed).integers(0, 3, images), strict=False)}
    weights = [int(times[p]) for p in patients]
    scores = auroc.compute(weights)
    for number in (None, 0, 1, 2):
        label = [bool((t.classes == number).any() if number is not None else len(t)) for t in truth]
        score = [f.scores[f.classes == number if number is not None else slice(None)].max(initial=0) for f in found]
        suffix = "" if number is None else f"/c{number}"
        np.testing.assert_allclose(scores[f"AUROC/image{suffix}"], _sklearn(label, score, weights), atol=1e-6)
        everyone = sorted(set(patients))
        per = [[i for i, q in enumerate(patients) if q == p] for p in everyone]
        expected = _sklearn(
            [any(label[i] for i in of) for of in per],
            [max(score[i] for i in of) for of in per],
            [int(times[p]) for p in everyone],
        )
        np.testing.assert_allclose(scores[f"AUROC/patient{suffix}"], expected, atol=1e-6)


def test_says_why_it_is_undefined():
    box = [[0, 0, 4, 4]]
    auroc = AUROC(["disc", "other"])
    auroc.update(Found("a", box, [0], [0.9]), Truth("a", box, [0], (8, 8)))
    auroc.update(Found("b", box, [0], [0.9]), Truth("b", box, [0], (8, 8)))
    scores = auroc.compute()
    assert np.isnan(list(scores.values())).all()
    assert auroc.reasons["AUROC/image"] == "every image has a box, so there is nothing to tell apart"
    assert auroc.reasons["AUROC/image/other"] == "no image has a box of class other, so there is nothing to tell apart"
    assert auroc.reasons["AUROC/patient"] == "patients are unknown"


def test_a_patient_without_boxes_scores_nothing():
    auroc = AUROC(["disc"])
    auroc.update(Found("a", [[0, 0, 4, 4]], [0], [0.1]), Truth("a", [[0, 0, 4, 4]], [0], (8, 8), "p"))
    auroc.update(Found("b", [], [], []), Truth("b", [], [], (8, 8), "q"))
    assert auroc.compute()["AUROC/patient"] == pytest.approx(1)
