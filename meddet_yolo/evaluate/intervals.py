"""The interval of one score from its resamples: Student's t on a scale that suits what the score is."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCALES", "Scale", "interval"]

Scale = Literal["share", "positive", "distance", "number"]
"""What a score is: a share in [0, 1]; a positive quantity; a mean of absolute differences, which chance makes larger,
in [0, 1]; any number, such as a difference."""

SCALES: tuple[str, ...] = get_args(Scale)

_FEWEST = 4.0  # degrees of freedom, or a single unit that decides would make an interval that tells nothing
_MOST = 30.0  # of the logarithm of a factor, which is as good as no bound, and no overflow


def interval(
    value: float,
    drawn: NDArray[np.float64],
    without: NDArray[np.float64],
    count: int,
    level: float,
    scale: Scale = "number",
) -> tuple[float, float]:
    """Return the confidence interval of a score.

    All are t intervals with the standard error of the bootstrap, times sqrt(n / (n - 1)) for n units; but for shares,
    the jackknife's where that is greater. They differ in the scale:

    - "share": Wilson's interval with an effective number of findings, the one whose binomial variance is that of the
      resamples. Within [0, 1], and of use where all resamples give 0 or 1: then each unit is taken for one finding.
    - "positive": on the logarithm, by the delta method.
    - "distance": around the score less the bias that the bootstrap shows, cut off at 0 and 1.
    - "number": as it is.

    The degrees of freedom are those of a variance that is estimated from values of such kurtosis, 2 n / (kurtosis - 1),
    between 4 and n - 1: where few units decide, as with few misses, the standard error is known badly.

    Args:
        value: The score on all units, finite.
        drawn: (rounds,) scores of the resamples, finite.
        without: (k,) finite scores without each of the units, or of k parts of them, in turn.
        count: Number of the units that decide the score, at least 2.
        level: Confidence, in (0, 1).
        scale: What the score is.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22(158), 1927,
        with the effective sample size and t quantiles as E. L. Korn and B. I. Graubard, "Confidence Intervals for
        Proportions with Small Expected Number of Positive Counts Estimated From Survey Data", Survey Methodology
        24(2), 1998, and N. Dean and M. Pagano, "Evaluating Confidence Interval Methods for Binomial Proportions in
        Clustered Surveys", J. of Survey Statistics and Methodology 3(4), 2015; B. Efron and R. J. Tibshirani, "An
        Introduction to the Bootstrap", 1993 (standard error, bias, jackknife); F. E. Satterthwaite, "An Approximate
        Distribution of Estimates of Variance Components", Biometrics Bulletin 2(6), 1946 (degrees of freedom that fit
        a variance's variance). Which of these for which score is our own decision, by
        `benchmarks/interval_coverage.py`.

    Examples:
        >>> draws = np.random.default_rng(0).binomial(40, 0.9, 2000) / 40
        >>> low, high = interval(0.9, draws, np.array([35 / 39] * 36 + [36 / 39] * 4), 40, 0.95, "share")
        >>> round(low, 2), round(high, 2)
        (0.75, 0.97)
    """
    from scipy.special import stdtrit  # takes time, and a training does not need it

    value = float(value)
    error = float(drawn.std() * np.sqrt(count / (count - 1)))
    t = -float(stdtrit(_degrees(without, count), (1 - level) / 2))
    if scale == "share" and 0 <= value <= 1:
        return _wilson(value, _effective(value, drawn, error, count), t)
    if len(without):
        error = max(error, float(without.std()) * np.sqrt(len(without) - 1))
    if scale == "positive" and value > 0:
        factor = float(np.exp(min(t * error / value, _MOST)))
        return value / factor, value * factor
    if scale == "distance":
        centre = 2 * value - float(drawn.mean())
        # The score itself stays inside, however much of it is bias.
        low, high = min(value, centre - t * error), max(value, centre + t * error)
        return max(0.0, low), min(1.0, high)
    return value - t * error, value + t * error


def _degrees(without: NDArray[np.float64], count: int) -> float:
    """Return the degrees of freedom of the standard error."""
    squares = (without - without.mean()) ** 2 if len(without) else np.zeros(0)
    if not squares.any():
        return count - 1
    excess = float((squares**2).mean() / squares.mean() ** 2) - 1
    return count - 1 if excess <= 0 else min(count - 1.0, max(_FEWEST, 2 * len(without) / excess))


def _effective(value: float, drawn: NDArray[np.float64], error: float, count: int) -> float:
    """Return of how many independent findings a share would vary so much."""
    if error == 0:
        return count
    # A share can be at its bound though its resamples are not.
    mean = min(1.0, max(0.0, float(drawn.mean())))
    return max(value * (1 - value), mean * (1 - mean)) / error**2


def _wilson(share: float, findings: float, t: float) -> tuple[float, float]:
    """Return Wilson's interval, which holds the share."""
    weight = t**2 / findings
    centre = (share + weight / 2) / (1 + weight)
    half = t / (1 + weight) * np.sqrt(share * (1 - share) / findings + (t / findings / 2) ** 2)
    return float(max(0.0, min(share, centre - half))), float(min(1.0, max(share, centre + half)))
