"""Latencies measured side by side: interleaved in blocks, percentiles, throughput and energy. No torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["ITERATIONS", "ROUNDS", "SECONDS", "Latency", "Measurement", "interleave", "ratio"]

ITERATIONS, SECONDS = 500, 5.0  # enough of either
_FEWEST = 20  # calls, however long they take
ROUNDS = 10
_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call.

    Attributes:
        count: Calls measured.
        mean: Average.
        minimum: Shortest.
        percentiles: By number; one that so few calls cannot tell (the 99th of fewer than 100) is None.

    Examples:
        >>> Latency.of([1.0, 2.0, 3.0]).percentiles
        {50: 2.0, 90: None, 95: None, 99: None}
    """

    count: int
    mean: float
    minimum: float
    percentiles: dict[int, float | None]

    @classmethod
    def of(cls, times: Sequence[float]) -> Latency:
        """Summarise measured milliseconds.

        Raises:
            ValueError: If there are none.
        """
        if not len(times):
            raise ValueError("no times to summarise: expected at least one")
        known = {q: len(times) * (100 - q) >= 100 or q == 50 for q in _PERCENTILES}
        values = {q: float(np.percentile(times, q)) if known[q] else None for q in _PERCENTILES}
        return cls(len(times), float(np.mean(times)), float(min(times)), values)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        found = {"count": self.count, "mean_ms": self.mean, "min_ms": self.minimum}
        return {**found, **{f"p{q}_ms": value for q, value in self.percentiles.items()}}


@dataclass
class Measurement:
    """What was measured of one candidate.

    Attributes:
        blocks: A list of calls a round, each the milliseconds of its parts; `total` is the whole call.
        joules: Energy of all measured calls; None where no counter is there.
    """

    blocks: list[list[dict[str, float]]] = field(default_factory=list)
    joules: float | None = None

    @property
    def count(self) -> int:
        """Calls measured."""
        return sum(map(len, self.blocks))

    @property
    def seconds(self) -> float:
        """Time that they took."""
        return sum(self.times("total")) / 1e3

    @property
    def parts(self) -> list[str]:
        """Names of the parts."""
        return list(self.blocks[0][0]) if self.count else []

    def times(self, part: str = "total") -> list[float]:
        """Return the milliseconds of a part in every call."""
        return [call[part] for block in self.blocks for call in block]

    def latency(self, part: str = "total") -> Latency:
        """Summarise a part."""
        return Latency.of(self.times(part))

    def medians(self, part: str = "total") -> list[float]:
        """Return the median of every round."""
        return [statistics.median(call[part] for call in block) for block in self.blocks]


def interleave(
    calls: Mapping[str, Callable[[], Mapping[str, float] | None]],
    *,
    iterations: int = ITERATIONS,
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    energy: Callable[[], float | None] | None = None,
) -> dict[str, Measurement]:
    """Time several candidates in turn, so that a machine that drifts or is busy hits all alike.

    Every round gives each candidate a block of calls of its own, the first of which is not counted: it finds the caches
    as another candidate left them. The order turns from round to round. A candidate is done after `iterations` calls or
    `seconds` seconds, whichever comes first, but not before 20 calls.

    Args:
        calls: The candidates; what a call returns are milliseconds of its parts.
        iterations: Calls a candidate.
        seconds: Seconds a candidate.
        rounds: Blocks a candidate.
        energy: Returns a counter of joules that only grows, or None.

    Returns:
        Measurements by candidate.

    Raises:
        ValueError: If a number is not positive.

    Examples:
        >>> found = interleave({"sum": lambda: sum(range(1000)) and None}, iterations=40)
        >>> found["sum"].count, len(found["sum"].blocks), found["sum"].latency().percentiles[50] > 0
        (40, 10, True)
    """
    if iterations < 1 or seconds <= 0 or rounds < 1:
        raise ValueError(f"iterations, seconds and rounds must be positive, got {iterations}, {seconds}, {rounds}")
    sizes = {name: _block_size(call, iterations, seconds, rounds) for name, call in calls.items()}
    found = {name: Measurement() for name in calls}
    names = list(calls)
    for turn in range(rounds):
        start = turn % max(len(names), 1)
        for name in names[start:] + names[:start]:
            _timed(calls[name])
            before = energy() if energy else None
            found[name].blocks.append([_timed(calls[name]) for _ in range(sizes[name])])
            after = energy() if energy else None
            if before is not None and after is not None:
                found[name].joules = (found[name].joules or 0.0) + after - before
    return found


def ratio(of: Measurement, to: Measurement, part: str = "total") -> tuple[float, float, float]:
    """Return how many times longer one candidate takes than another: median over the rounds, lowest and highest."""
    each = [a / b for a, b in zip(of.medians(part), to.medians(part), strict=True)]
    return statistics.median(each), min(each), max(each)


def _block_size(call: Callable[[], Any], iterations: int, seconds: float, rounds: int) -> int:
    """Warm a candidate up and return how many calls a block needs."""
    warmup = [_timed(call)["total"] for _ in range(3)]
    stop = time.perf_counter() + min(0.5, seconds / 10)
    while time.perf_counter() < stop:
        warmup.append(_timed(call)["total"])
    each = statistics.median(warmup[-20:]) / 1e3
    wanted = max(min(iterations, seconds / each), min(_FEWEST, iterations))
    return max(1, round(wanted / rounds))


def _timed(call: Callable[[], Mapping[str, float] | None]) -> dict[str, float]:
    """Make a call; return the milliseconds of it and its parts."""
    start = time.perf_counter()
    parts = call()
    return {"total": (time.perf_counter() - start) * 1e3, **(parts or {})}
