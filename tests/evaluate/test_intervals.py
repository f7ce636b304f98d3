"""Intervals of one score: agreement with SciPy's, bounds, coverage where it used to fail."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from meddet_yolo.evaluate.intervals import SCALES, interval


def _draws(spread: float, middle: float = 0.0) -> np.ndarray:
    """Return resamples without chance, normal."""
    return middle + spread * stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)


_ALIKE = np.array([-1.0, 1.0] * 5)  # scores without each of ten units; no unit is far from the others


@settings(deadline=None, max_examples=25)
@given(hits=st.integers(0, 400), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_of_many_independent_findings_a_share_is_scipys_wilson_interval(hits, level):
    share, findings = hits / 400, 400
    drawn = _draws(np.sqrt(share * (1 - share) / findings), share)
    # As if of so many units that t is z, but as many findings as there are.
    count = findings if hits in (0, findings) else 10**9
    low, high = interval(share, drawn, np.tile(_ALIKE, 10**5), count, level, "share")
    theirs = stats.binomtest(hits, findings).proportion_ci(level, "wilson")
    exact = 5e-3 if count == findings else 5e-4  # t of 399 degrees of freedom
    assert [low, high] == pytest.approx([theirs.low, theirs.high], abs=exact)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), units=st.integers(3, 30))
def test_of_a_mean_a_number_is_scipys_t_interval(seed, units):
    values = np.random.default_rng(seed).normal(3, 1, units)
    without = (values.sum() - values) / (units - 1)
    low, high = interval(values.mean(), _draws(values.std() / np.sqrt(units), values.mean()), without, units, 0.95)
    theirs = stats.t.interval(0.95, units - 1, values.mean(), stats.sem(values))
    kurtosis = stats.kurtosis(values, fisher=False)
    if 2 * units / (kurtosis - 1) >= units - 1:
        assert [low, high] == pytest.approx(theirs, rel=1e-3)
    else:  # where few units decide, it is wider
        assert low < theirs[0] and high > theirs[1]


def test_on_the_logarithm_the_factor_is_the_same_up_and_down():
    low, high = interval(2.0, _draws(0.5, 2.0), np.zeros(10), 10, 0.95, "positive")
    assert 2 / low == pytest.approx(high / 2)
    assert np.log(high / 2) == pytest.approx(stats.t.ppf(0.975, 9) * 0.25 * np.sqrt(10 / 9), rel=1e-3)


def test_a_distance_is_freed_from_the_bias_of_resamples_and_stays_inside():
    low, high = interval(0.2, _draws(0.04, 0.25), np.full(50, 0.2), 50, 0.95, "distance")
    assert (low + high) / 2 == pytest.approx(0.15) and low < 0.2
    assert interval(0.2, _draws(0.001, 0.3), np.full(50, 0.2), 50, 0.95, "distance")[1] == 0.2
    assert interval(0.01, _draws(0.05, 0.02), np.full(50, 0.01), 50, 0.95, "distance")[0] == 0


@settings(deadline=None, max_examples=60)
@given(
    value=st.sampled_from([0.0, 1e-9, 0.3, 0.5, 1 - 1e-9, 1.0]),
    drawn=st.lists(st.floats(0, 1), min_size=2, max_size=20),
    without=st.lists(st.floats(0, 1), max_size=10),
    units=st.integers(2, 12),
    scale=st.sampled_from(SCALES),
)
def test_every_interval_holds_the_score_and_its_range(value, drawn, without, units, scale):
    low, high = interval(value, np.array(drawn), np.array(without), units, 0.95, scale)
    assert low <= value <= high and np.isfinite([low, high]).all()
    if scale in ("share", "distance"):
        assert low >= 0 and high <= 1
