"""Intervals over patients: coverage, agreement with SciPy, permutation tests, Holm's correction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from meddet_yolo.evaluate.statistics import bootstrap, bootstrap_all, holm, paired, paired_all, resample


def _mean(values: np.ndarray):
    return lambda w: float(w @ values / w.sum()) if w.sum() else float("nan")


def test_resamples_patients_with_all_their_images():
    groups = ["a", "a", "b", "c", "c", "c"]
    seen = []
    bootstrap(lambda w: float(seen.append(w.copy()) or 0), groups, rounds=200)
    drawn = np.array(seen[1:201])
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 3] == drawn[:, 5]).all()
    assert (drawn[:, [0, 2, 3]].sum(1) == 3).all()
    assert drawn[:, [0, 2, 3]].mean(0) == pytest.approx([1, 1, 1], abs=0.2)


def test_leaves_out_every_patient_once_or_parts_of_many():
    for patients, parts in ((7, 7), (450, 200)):
        groups = [str(i // 2) for i in range(2 * patients)]
        seen = []
        bootstrap(lambda w, seen=seen: float(seen.append(w.copy()) or w.sum()), groups, rounds=1)
        left_out = 1 - np.array(seen[2:])
        assert len(left_out) == parts and (left_out.sum(0) == 1).all() and (left_out[:, ::2] == left_out[:, 1::2]).all()


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(20)
    groups = [str(i // 2) for i in range(20)]
    assert bootstrap(_mean(values), groups, seed=3) == bootstrap(_mean(values), groups, seed=3)
    assert bootstrap(_mean(values), groups, seed=3).low != bootstrap(_mean(values), groups, seed=4).low


def test_images_of_unknown_patients_are_marked():
    interval = bootstrap(_mean(np.arange(8.0)), ["a", "a", None, *"bcdef"])
    assert interval.unit == "images" and str(interval).startswith("3.500 (") and "over images" in str(interval)


def test_one_patient_has_no_interval_but_a_value():
    interval = bootstrap(_mean(np.arange(4.0)), ["a"] * 4)
    assert interval.value == 1.5 and np.isnan(interval.low) and interval.reason == "only one patient"
    assert str(interval) == "1.500 (no interval: only one patient)"
    assert bootstrap(_mean(np.arange(1.0)), [None]).reason == "only one image"


def test_a_score_that_is_seldom_defined_has_no_interval():
    def rare(w: np.ndarray) -> float:
        return 1.0 if w[0] else float("nan")

    interval = bootstrap(rare, list("abcdefgh"), rounds=400)
    assert np.isnan(interval.low) and "resamples" in interval.reason and 200 < interval.rounds < 300
    never = bootstrap(lambda w: float("nan"), list("ab"))
    assert str(never) == "undefined: not defined on these images"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rounds": 0}, "rounds must be"), ({"level": 1.0}, "level must lie"), ({"rounds": 1.5}, "rounds must be")],
)
def test_refuses_arguments_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(_mean(np.ones(2)), ["a", "b"], **change)
    with pytest.raises(ValueError, match="no images to resample"):
        bootstrap(_mean(np.ones(0)), [])


def test_several_scores_share_the_resamples():
    values = np.random.default_rng(1).random((2, 30))
    groups = [str(i // 3) for i in range(30)]
    both = bootstrap_all(lambda w: {n: _mean(v)(w) for n, v in zip("ab", values, strict=True)}, groups, rounds=300)
    assert both["a"] == bootstrap(_mean(values[0]), groups, rounds=300)
    assert both["b"] == bootstrap(_mean(values[1]), groups, rounds=300)


def _coverage(sets: int, rounds: int, patients: int = 25) -> float:
    """Return how often the interval of a sensitivity holds the truth; patients differ, so that images are alike."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(sets):
        chance = generator.beta(6, 2, patients)
        images = generator.integers(1, 6, patients)
        hits = generator.binomial(1, np.repeat(chance, images)).astype(float)
        groups = np.repeat(np.arange(patients), images).astype(str).tolist()
        seed = int(generator.integers(2**31))
        interval = bootstrap(_mean(hits), groups, rounds=rounds, seed=seed, scale="share")
        held += interval.low <= 0.75 <= interval.high
    return held / sets


@pytest.mark.slow("bootstraps")
def test_intervals_hold_the_truth_as_often_as_they_say():
    assert 0.93 <= _coverage(sets=1000, rounds=500) <= 0.97


# two models -----------------------------------------------------------------------------------------------------------


def _two(first: np.ndarray, second: np.ndarray):
    both = np.stack([first, second])
    return lambda w: float((w * both).sum() / w.sum())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), patients=st.integers(2, 9))
def test_every_exchange_gives_scipys_permutation_p(seed, patients):
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 8, (2, patients)) / 8.0
    ours = paired(_two(a, b), [str(i) for i in range(patients)], rounds=2**patients)
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert ours.value == pytest.approx((a - b).mean())
    assert ours.p == pytest.approx(theirs.pvalue, abs=1e-6)


def test_a_drawn_p_is_near_the_exact_one_and_never_zero():
    generator = np.random.default_rng(0)
    a, b = generator.random(40) + 0.08, generator.random(40)
    drawn = paired(_two(a, b), [str(i) for i in range(40)], rounds=4000)
    t = stats.ttest_rel(a, b).pvalue
    assert drawn.p == pytest.approx(t, abs=0.03)
    sure = paired(_two(a + 5, b), [str(i) for i in range(40)], rounds=200)
    assert sure.p == pytest.approx(1 / 201) and sure.low > 4


def test_equal_models_differ_by_nothing():
    a = np.random.default_rng(0).random(30)
    same = paired(_two(a, a), [str(i // 2) for i in range(30)], rounds=200)
    assert same.value == pytest.approx(0, abs=1e-12) and same.p == 1 and "the same in all resamples" in same.reason


def test_the_difference_is_resampled_together():
    generator = np.random.default_rng(0)
    base = generator.random(50)
    a, b = base + 0.05, base
    d = paired(_two(a + generator.normal(0, 0.001, 50), b), [str(i) for i in range(50)], rounds=300)
    assert 0.049 < d.low < d.high < 0.051


def test_a_score_without_spread_has_no_interval():
    found_all = bootstrap(lambda w: 1.0, list("abcde"))
    assert found_all.value == 1 and np.isnan(found_all.low)
    assert found_all.reason == "the same in all resamples of 5 patients"


def test_a_share_of_which_nothing_is_missed_has_a_lower_bound_by_those_patients_who_have_any():
    findings = np.array([0, 0, 3, 1, 2, 5, 0, 4, 1, 1])
    share = bootstrap(
        lambda w: float((w @ findings) / (w @ findings)) if w @ findings else float("nan"),
        [str(i) for i in range(10)], scale="share",
    )  # fmt: skip
    assert share.value == share.high == 1
    assert share.low == pytest.approx(7 / (7 + stats.t.ppf(0.975, 6) ** 2))  # Wilson's for 7 of 7
    none = bootstrap(lambda w: 0.0, list("abc"), scale="share")
    assert none.low == 0 and none.high == pytest.approx(1 - 3 / (3 + stats.t.ppf(0.975, 2) ** 2))
    lonely = bootstrap(lambda w: 1.0 if w.sum() > 1 else float("nan"), list("abcde"), scale="share")
    assert lonely.reason == "the same in all resamples of 5 patients"


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale 'odd' is unknown: expected one of share"):
        bootstrap(_mean(np.ones(3)), list("abc"), scale="odd")


def test_false_positives_of_the_permutation_test_are_as_many_as_they_should_be():
    generator = np.random.default_rng(2)
    groups = np.repeat(np.arange(12), 3).astype(str).tolist()
    ps = []
    for _ in range(150):
        shared = np.repeat(generator.normal(size=12), 3)
        a, b = (shared + np.repeat(generator.normal(size=12), 3) + generator.normal(size=36) for _ in range(2))
        ps.append(paired(_two(a, b), groups, rounds=199, seed=int(generator.integers(2**31))).p)
    assert 0.01 <= np.mean(np.array(ps) <= 0.05) <= 0.10


def test_several_differences_at_once():
    a, b = np.random.default_rng(0).random((2, 20))
    groups = [str(i) for i in range(20)]
    both = paired_all(lambda w: {"x": _two(a, b)(w), "y": _two(b, a)(w)}, groups, rounds=200)
    assert both["x"].value == -both["y"].value and both["x"].p == both["y"].p
    assert both["x"] == paired(_two(a, b), groups, rounds=200)
    alone = [resample(lambda w, v=v: {"x": _mean(v)(w)}, groups, rounds=200) for v in (a, b)]
    known = paired_all(lambda w: {"x": _two(a, b)(w)}, groups, rounds=200, samples=alone[0] - alone[1])
    assert vars(known["x"]) == pytest.approx(vars(both["x"]))
    with pytest.raises(ValueError, match="same scores on the same resamples"):
        alone[0] - resample(lambda w: {"y": 0.0}, groups, rounds=200)


def test_holm_agrees_with_its_definition():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        holm([float("nan")])
