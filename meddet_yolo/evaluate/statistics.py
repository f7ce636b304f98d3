"""How sure a number is: intervals by resampling patients, paired differences of two models, many comparisons.

Images of one patient are alike, so an interval that resamples images is too narrow. Everything here resamples patients
(clusters), each with all of their images. A score is a function of how often every image counts, so that a measure
matches boxes once and is only summed up again in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.evaluate.intervals import SCALES, Scale, interval

__all__ = ["Interval", "Samples", "bootstrap", "bootstrap_all", "holm", "paired", "paired_all", "resample"]

Weights = NDArray[np.int64]
Scores = Callable[[Weights], Mapping[str, float]]

_MOST_PARTS = 200  # for the kurtosis, which changes little with more
_MOST_ALONE = 50  # patients looked at alone; of many, the share of those is enough
_SAME = 1e-12  # rounding of sums in another order
_MIN_USABLE = 0.9  # share of rounds in which a score must be defined for its interval to be given


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval.

    Attributes:
        value: The number itself, on all images; NaN where it is undefined.
        low: Lower bound; NaN where there is no interval.
        high: Upper bound.
        level: Share of such intervals that hold the truth, in (0, 1).
        unit: What was resampled, "patients" or "images".
        rounds: Rounds in which the number was defined.
        p: p-value against a difference of 0; None for a number that is no difference.
        reason: Why the number or its interval is missing; empty where neither is.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    unit: str = "patients"
    rounds: int = 0
    p: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        """Return for example `0.812 (0.774 to 0.845)`; where images were resampled, it says so."""
        if not np.isfinite(self.value):
            return f"undefined: {self.reason}" if self.reason else "undefined"
        if not np.isfinite(self.low):
            return f"{self.value:.3f} (no interval: {self.reason})"
        mark = "" if self.unit == "patients" else f"; over {self.unit}"
        p = "" if self.p is None else f", p = {self.p:.3f}" if self.p >= 0.001 else ", p < 0.001"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}{mark}){p}"


def bootstrap(
    score: Callable[[Weights], float],
    groups: Sequence[str | None],
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    scale: Scale = "number",
) -> Interval:
    """Return a score with its interval over patients.

    The interval is Student's, from the standard error over the resamples, on a scale that suits the score; see
    `intervals.interval`. With few patients, percentiles of the resamples are too narrow, and BCa too:
    `benchmarks/interval_coverage.py` compares them. Where all resamples give the same there is none, but for a share of
    0 or 1.

    Args:
        score: Function of how often each image counts, (n_images,) integers of at least 0, that returns the score;
            NaN where it is undefined.
        groups: The patient of every image. Where any is None, images are resampled, and the interval says so.
        rounds: Resamples.
        seed: Seed of the resamples; the same seed and groups give the same resamples.
        level: Confidence, in (0, 1).
        scale: What the score is: "share" (in [0, 1]), "positive", "distance" or "number", see `intervals.interval`.

    Raises:
        ValueError: An argument out of range.

    Source: C. A. Field and A. H. Welsh, "Bootstrapping clustered data", JRSS B 69(3), 2007 (whole clusters).

    Examples:
        >>> hits = np.array([1, 0, 1, 1, 1, 0, 1, 1])
        >>> share = lambda w: float(w @ hits / w.sum())
        >>> i = bootstrap(share, ["a", "a", "b", "c", "d", "e", "f", "g"], scale="share")
        >>> i.value, i.unit, 0 < i.low < i.value < i.high < 1
        (0.75, 'patients', True)
    """
    scales = {"": scale}
    return bootstrap_all(lambda w: {"": score(w)}, groups, rounds=rounds, seed=seed, level=level, scales=scales)[""]


def bootstrap_all(
    score: Scores,
    groups: Sequence[str | None],
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    scales: Mapping[str, Scale] | None = None,
) -> dict[str, Interval]:
    """Return several scores with their intervals, all on the same resamples.

    Args:
        score: As in `bootstrap`, but returns numbers by name, always the same names.
        groups: As in `bootstrap`.
        rounds: As in `bootstrap`.
        seed: As in `bootstrap`.
        level: As in `bootstrap`.
        scales: What the scores are, by name; "number" for those that are not named.
    """
    return resample(score, groups, rounds=rounds, seed=seed, level=level, scales=scales).intervals()


@dataclass(frozen=True, eq=False)
class Samples:
    """Scores of resamples, from which intervals are read.

    Attributes:
        values: The scores on all images, by name.
        drawn: (rounds, scores) on the resamples.
        without: (k, scores) without each of the patients, or of parts of them, in turn.
        count: Number of patients (or images).
        unit: "patients" or "images".
        level: Confidence of the intervals.
        scales: What the scores are, by name; "number" for those that are not named.
        decisive: For shares of 0 or 1 in all resamples: the number of patients that have what they are a share of.
    """

    values: dict[str, float]
    drawn: NDArray[np.float64]
    without: NDArray[np.float64]
    count: int
    unit: str
    level: float
    scales: Mapping[str, Scale] = field(default_factory=dict)
    decisive: Mapping[str, int] = field(default_factory=dict)

    def __sub__(self, other: Samples) -> Samples:
        """Return the differences to other scores on the same resamples."""
        if list(self.values) != list(other.values) or self.drawn.shape != other.drawn.shape:
            raise ValueError("only the same scores on the same resamples can be subtracted")
        values = {name: value - other.values[name] for name, value in self.values.items()}
        drawn, without = self.drawn - other.drawn, self.without - other.without
        return Samples(values, drawn, without, self.count, self.unit, self.level)

    def only(self, names: Sequence[str]) -> Samples:
        """Return some of the scores."""
        at = [list(self.values).index(name) for name in names]
        values = {name: self.values[name] for name in names}
        drawn, without = self.drawn[:, at], self.without[:, at]
        return Samples(values, drawn, without, self.count, self.unit, self.level, self.scales, self.decisive)

    def intervals(self) -> dict[str, Interval]:
        """Return the scores with their intervals."""
        return {name: self._interval(name, value, i) for i, (name, value) in enumerate(self.values.items())}

    def _interval(self, name: str, value: float, place: int) -> Interval:
        drawn, without = self.drawn[:, place], self.without[:, place]
        usable = drawn[np.isfinite(drawn)]
        count = self.count
        low = high = float("nan")
        reason = ""
        if not np.isfinite(value):
            reason = "not defined on these images"
        elif self.count < 2:
            reason = f"only one {self.unit[:-1]}"
        elif len(usable) < _MIN_USABLE * len(drawn):
            reason = f"defined in only {len(usable)} of {len(drawn)} resamples"
        else:
            # Nothing missed by few patients does not mean that nothing is ever missed.
            if same := np.ptp(usable) <= _SAME:
                usable, count = np.full_like(usable, value), self.decisive.get(name, 0)
            if same and count < 2:
                reason = f"the same in all resamples of {self.count} {self.unit}"
            else:
                scale = self.scales.get(name, "number")
                low, high = interval(value, usable, without[np.isfinite(without)], count, self.level, scale)
        return Interval(float(value), low, high, self.level, self.unit, len(usable), None, reason)


def resample(
    score: Scores,
    groups: Sequence[str | None],
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    scales: Mapping[str, Scale] | None = None,
) -> Samples:
    """Return several scores on resamples, for intervals and for differences between models; see `bootstrap_all`."""
    scales = scales or {}
    if bad := [scale for scale in scales.values() if scale not in SCALES]:
        raise ValueError(f"scale {bad[0]!r} is unknown: expected one of {', '.join(SCALES)}")
    resamples = _Resamples(groups, rounds, seed, level)
    values = dict(score(resamples.once))
    names = tuple(values)
    drawn, without = resamples.scores(score, names), resamples.without(score, names)
    edge = [i for i, name in enumerate(names) if scales.get(name) == "share" and values[name] in (0, 1)]
    fixed = [i for i in edge if len(drawn) and np.nanmax(np.abs(drawn[:, i] - values[names[i]])) <= _SAME]
    decisive = resamples.decisive(score, [names[i] for i in fixed]) if fixed else {}
    return Samples(values, drawn, without, resamples.count, resamples.unit, level, scales, decisive)


def paired(
    score: Callable[[NDArray[np.int64]], float],
    groups: Sequence[str | None],
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the difference A - B of two models' scores on the same images, with interval and p-value.

    The interval is that of `bootstrap`, both models being scored on the same resamples of patients. The p-value is that
    of a permutation test: were the models alike, then for any patient their outputs could as well be exchanged. In each
    round the two exchange the outputs of a random half of the patients, and p is the share of rounds (of all exchanges,
    where they are no more than the rounds) whose difference is at least as large as the real one, either way.
    Note that this tests whether outputs can be exchanged: for scores that rank the detections of many images, models
    whose confidences mean different things are not alike even if both score the same.

    Args:
        score: Function of weights (2, n_images): how often each image counts with the output of A, and with that of B.
            A itself has weights only in the first row; a model that has exchanged some patients has both.
        groups: As in `bootstrap`.
        rounds: As in `bootstrap`, also of the permutation test.
        seed: As in `bootstrap`.
        level: As in `bootstrap`.

    Source: M. D. Smucker, J. Allan, B. Carterette, "A comparison of statistical significance tests for information
        retrieval evaluation", CIKM 2007 (paired randomization test); exchanging whole patients is the same test on
        clusters.

    Examples:
        >>> hits = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0, 1, 0]])
        >>> d = paired(lambda w: float((w * hits).sum() / w.sum()), list("abcdefgh"))
        >>> d.value, d.p
        (0.75, 0.03125)
    """
    return paired_all(lambda w: {"": score(w)}, groups, rounds=rounds, seed=seed, level=level)[""]


def paired_all(
    score: Scores,
    groups: Sequence[str | None],
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    samples: Samples | None = None,
) -> dict[str, Interval]:
    """Return several differences A - B at once; see `paired` and `bootstrap_all`.

    Args:
        score: As in `paired`, but returns numbers by name.
        groups: As in `paired`.
        rounds: As in `paired`.
        seed: As in `paired`.
        level: As in `paired`.
        samples: The resampled differences where they are known already, as `resample(a) - resample(b)` with the same
            groups, rounds and seed.
    """
    resamples = _Resamples(groups, rounds, seed, level)

    def difference(first: Weights, second: Weights) -> dict[str, float]:
        a, b = score(np.stack([first, second])), score(np.stack([second, first]))
        return {name: a[name] - b[name] for name in a}

    nobody = np.zeros_like(resamples.once)
    if samples is None:
        samples = resample(lambda w: difference(w, nobody), groups, rounds=rounds, seed=seed, level=level)
    names = tuple(samples.values)
    swaps, exact = resamples.swaps()
    exchanged = np.array([[d[name] for name in names] for swap in swaps for d in [difference(1 - swap, swap)]])
    result = {}
    for i, (name, one) in enumerate(samples.intervals().items()):
        value = one.value
        usable = exchanged[:, i][np.isfinite(exchanged[:, i])]
        p = None
        if np.isfinite(value) and len(usable) >= _MIN_USABLE * len(swaps):
            as_large = int((np.abs(usable) >= abs(value) - 1e-12).sum())
            # The real outputs are one of the exchanges; where these are drawn, they have to be counted in.
            p = as_large / len(usable) if exact else (as_large + 1) / (len(usable) + 1)
        result[name] = Interval(**{**vars(one), "p": p})
    return result


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several, so that the chance of any false finding is kept (Holm's method).

    Args:
        p_values: p-values, each in [0, 1].

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2),
        1979.

    Examples:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


class _Resamples:
    """Draws of patients, as weights of their images."""

    def __init__(self, groups: Sequence[str | None], rounds: int, seed: int, level: float) -> None:
        if len(groups) == 0:
            raise ValueError("there are no images to resample")
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"rounds must be a whole number of at least 1, got {rounds!r}")
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}")
        known = all(group is not None for group in groups)
        self.unit = "patients" if known else "images"
        if known:
            labels = np.unique(np.array([str(group) for group in groups]), return_inverse=True)[1].reshape(-1)
        else:
            labels = np.arange(len(groups))
        self.labels, self.count = labels, int(labels.max()) + 1
        self.rounds, self.seed = rounds, seed
        self.once = np.ones(len(groups), np.int64)

    def scores(self, score: Scores, names: Sequence[str]) -> NDArray[np.float64]:
        """Return the scores (rounds, len(names)) of the resamples; none with one patient, who has no spread."""
        if self.count < 2:
            return np.full((0, len(names)), np.nan)
        generator = np.random.default_rng(self.seed)
        drawn = np.empty((self.rounds, len(names)))
        for number in range(self.rounds):
            times = np.bincount(generator.integers(0, self.count, self.count), minlength=self.count)
            values = score(times[self.labels])
            drawn[number] = [values[name] for name in names]
        return drawn

    def without(self, score: Scores, names: Sequence[str]) -> NDArray[np.float64]:
        """Return the scores (k, len(names)) without each of the patients in turn, or without each of many parts."""
        if self.count < 2:
            return np.full((0, len(names)), np.nan)
        parts = min(self.count, _MOST_PARTS)
        part = np.random.default_rng([self.seed, 2]).permutation(self.count) % parts
        left_out = np.empty((parts, len(names)))
        for number in range(parts):
            values = score((part[self.labels] != number).astype(np.int64))
            left_out[number] = [values[name] for name in names]
        return left_out

    def decisive(self, score: Scores, names: Sequence[str]) -> dict[str, int]:
        """Return of about how many patients each score is defined for the patient alone."""
        looked_at = np.random.default_rng([self.seed, 3]).permutation(self.count)[:_MOST_ALONE]
        defined = dict.fromkeys(names, 0)
        for patient in looked_at:
            values = score((self.labels == patient).astype(np.int64))
            for name in names:
                defined[name] += bool(np.isfinite(values[name]))
        return {name: number * self.count // len(looked_at) for name, number in defined.items()}

    def swaps(self) -> tuple[NDArray[np.int64], bool]:
        """Return which images are exchanged (rounds, n_images), and whether these are all exchanges there are."""
        if 2**self.count <= self.rounds:
            every = np.arange(2**self.count)[:, None] >> np.arange(self.count) & 1
            return every[:, self.labels].astype(np.int64), True
        generator = np.random.default_rng([self.seed, 1])  # not the numbers of the resamples
        return generator.integers(0, 2, (self.rounds, self.count))[:, self.labels], False
