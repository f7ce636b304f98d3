"""Which interval over patients holds the truth as often as it says?

Simulates sets of patients whose images are alike, for scores of every kind whose true value is known, and compares
intervals: percentiles of the bootstrap, BCa widened for few patients, and what `meddet_yolo.evaluate` gives; for the
sensitivity also percentiles over images in place of patients, which is what the unit is about.

    python benchmarks/interval_coverage.py --sets 1000 --rounds 1000
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri, stdtrit

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

from meddet_yolo.evaluate.intervals import Scale
from meddet_yolo.evaluate.statistics import Samples

RESULTS = Path(__file__).parent / "results"
LEVEL = 0.95
PATIENTS = (10, 20, 50, 100)
Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""Function of weights (rounds, n) of the images that returns scores (rounds,)."""
Make = Callable[[np.random.Generator, int], tuple[Score, NDArray[np.int64]]]
"""Function of a generator and a number of patients that returns a set's score and the patient of every image."""


def ratio(part: Array, whole: Array) -> Score:
    """Return the score that is a sum over images divided by another."""

    def score(weights: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return (weights @ part) / (weights @ whole)

    return score


def sensitivity(mean: float) -> Make:
    """Return hits of findings; patients' chances are beta distributed."""

    def make(generator: np.random.Generator, patients: int) -> tuple[Score, NDArray]:
        chance = generator.beta(8 * mean, 8 * (1 - mean), patients)
        owner = np.repeat(np.arange(patients), generator.integers(1, 6, patients))
        findings = generator.poisson(3, len(owner)) + 1
        return ratio(generator.binomial(findings, chance[owner]), findings), owner

    return make


def difference(shift: float) -> Make:
    """Return the difference of two detectors' sensitivities; they mostly find the same."""

    def make(generator: np.random.Generator, patients: int) -> tuple[Score, NDArray]:
        chance = generator.beta(6.4, 1.6, patients)
        owner = np.arange(patients)
        findings = generator.poisson(12, patients) + 1
        of = np.repeat(owner, findings)
        one, other = generator.normal(size=(2, len(of)))
        limit = ndtri(chance[of])
        gained = (one < limit).astype(float) - (0.7 * one + np.sqrt(0.51) * other < limit - shift)
        return ratio(np.bincount(of, gained, patients), findings), owner

    return make


def auroc(mean: float) -> Make:
    """Return the AUROC of patients of one image each, of whom 40 % have a finding."""

    def make(generator: np.random.Generator, patients: int) -> tuple[Score, NDArray]:
        label = generator.random(patients) < 0.4
        order = np.argsort(generator.normal(size=patients) + label * np.sqrt(2) * ndtri(mean))
        label = label[order]

        def score(weights: Array) -> Array:
            positive, negative = weights[:, order] * label, weights[:, order] * ~label
            below = np.cumsum(negative, 1) - negative
            with np.errstate(invalid="ignore"):
                return (positive * (below + negative / 2)).sum(1) / (positive.sum(1) * negative.sum(1))

        return score, np.arange(patients)

    return make


@dataclass
class Detections:
    """Labelled boxes of every patient; hits and false alarms, the best first: their patients and scores."""

    there: Array
    hits: NDArray[np.int64]
    hit_scores: Array
    alarms: NDArray[np.int64]
    alarm_scores: Array


def detections(generator: np.random.Generator, patients: int) -> Detections:
    """Return what a detector finds in patients that are more and less easy."""
    ease = generator.normal(0, 0.7, patients)
    there = 1 + generator.poisson(4, patients)
    owner = np.repeat(np.arange(patients), there)
    hits = owner[generator.random(len(owner)) < expit(1.5 + ease[owner])]
    hit_scores = generator.normal(1 + 0.5 * ease[hits], 1.2)
    alarms = np.repeat(np.arange(patients), generator.poisson(3 * np.exp(generator.normal(0, 0.5, patients))))
    alarm_scores = generator.normal(-1, 1.2, len(alarms))
    first, second = np.argsort(-hit_scores), np.argsort(-alarm_scores)
    return Detections(there.astype(float), hits[first], hit_scores[first], alarms[second], alarm_scores[second])


def average_precision(generator: np.random.Generator, patients: int) -> tuple[Score, NDArray]:
    """Return the area under the interpolated curve of precision over recall."""
    found = detections(generator, patients)
    order = np.argsort(-np.concatenate([found.hit_scores, found.alarm_scores]))
    owner = np.concatenate([found.hits, found.alarms])[order]
    hit = order < len(found.hits)

    def score(weights: Array) -> Array:
        own = weights[:, owner]
        total = np.cumsum(own, 1)
        precision = np.divide(np.cumsum(own * hit, 1), total, out=np.zeros_like(own), where=total > 0)
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        return (best * own * hit).sum(1) / (weights @ found.there)

    return score, np.arange(patients)


def sensitivity_at_one(generator: np.random.Generator, patients: int) -> tuple[Score, NDArray]:
    """Return the sensitivity at one false alarm a patient."""
    found = detections(generator, patients)

    def score(weights: Array) -> Array:
        excess = (np.cumsum(weights[:, found.alarms], 1) <= weights.sum(1)[:, None]).sum(1)
        limit = np.append(found.alarm_scores, -np.inf)[excess]
        hits = np.pad(np.cumsum(weights[:, found.hits], 1), ((0, 0), (1, 0)))
        place = np.searchsorted(-found.hit_scores, -limit)
        return hits[np.arange(len(weights)), place] / (weights @ found.there)

    return score, np.arange(patients)


def calibration(generator: np.random.Generator, patients: int) -> tuple[Score, NDArray]:
    """Return D-ECE over 10 bins of boxes of a confidence of 0.25 or more."""
    boxes = 2 + generator.poisson(8, patients)
    owner = np.repeat(np.arange(patients), boxes)
    confidence = 0.25 + 0.75 * generator.beta(1.2, 1, len(owner))
    ease = generator.normal(0, 0.5, patients)[owner]
    hit = generator.random(len(owner)) < expit(0.7 * logit(np.clip(confidence, 0.01, 0.99)) - 0.3 + ease)
    gaps = np.zeros((patients, 10))
    np.add.at(gaps, (owner, np.minimum(confidence * 10, 9).astype(int)), confidence - hit)
    return lambda weights: np.abs(weights @ gaps).sum(1) / (weights @ boxes), np.arange(patients)


def alarms_per_image(generator: np.random.Generator, patients: int) -> tuple[Score, NDArray]:
    """Return false alarms an image; patients' rates are exponentially distributed."""
    images = generator.integers(1, 6, patients)
    return ratio(generator.poisson(generator.exponential(2, patients) * images), images), np.arange(patients)


def distance(generator: np.random.Generator, patients: int) -> tuple[Score, NDArray]:
    """Return the mean distance of hits from labelled boxes, lognormal within and between patients."""
    hits = 1 + generator.poisson(8, patients)
    owner = np.repeat(np.arange(patients), hits)
    pixels = np.exp(generator.normal(0, 0.4, patients)[owner] + generator.normal(0, 0.7, len(owner)))
    return ratio(np.bincount(owner, pixels, patients), hits), np.arange(patients)


CASES: dict[str, tuple[Make, Scale, float | None]] = {
    "sensitivity 0.75": (sensitivity(0.75), "share", 0.75),
    "sensitivity 0.95": (sensitivity(0.95), "share", 0.95),
    "sensitivity at 1 false alarm": (sensitivity_at_one, "share", None),
    "average precision": (average_precision, "share", None),
    "AUROC 0.85": (auroc(0.85), "share", 0.85),
    "AUROC 0.95": (auroc(0.95), "share", 0.95),
    "D-ECE": (calibration, "distance", None),
    "false alarms an image": (alarms_per_image, "positive", 2.0),
    "distance in pixels": (distance, "positive", float(np.exp((0.4**2 + 0.7**2) / 2))),
    "difference 0 of sensitivities": (difference(0.0), "number", 0.0),
    "difference 0.08 of sensitivities": (difference(0.3), "number", None),
}
"""What makes a set, what the score is, and its true value where that is known (else: that of very many patients)."""


def truth_of(make: Make) -> float:
    """Return the score of 200,000 patients."""
    score, owner = make(np.random.default_rng(99), 200_000)
    return float(score(np.ones((1, len(owner))))[0])


def widened_bca(value: float, drawn: Array, without: Array, count: int) -> tuple[float, float]:
    """Return the BCa interval, its probabilities widened for few units (Efron 1987; Hesterberg 2015)."""
    spread = without.mean() - without
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5 + 1e-300)
    least = 0.5 / (len(drawn) + 1)
    bias = ndtri(np.clip((drawn < value).mean() + (drawn == value).mean() / 2, least, 1 - least))
    moved = bias + stdtrit(count - 1, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) * np.sqrt(count / (count - 1))
    low, high = np.quantile(drawn, ndtr(bias + moved / np.maximum(1 - acceleration * moved, 1e-9)))
    return float(low), float(high)


def intervals(
    score: Score, owner: NDArray, scale: Scale, rounds: int, generator: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Return the interval of each kind, NaN where there is none; nothing where the score itself is undefined."""
    count = int(owner.max()) + 1
    value = float(score(np.ones((1, len(owner))))[0])
    if not np.isfinite(value):
        return {}

    def drawn(units: int, of_image: NDArray) -> Array:
        times = generator.multinomial(units, np.full(units, 1 / units), rounds)
        return score(times[:, of_image].astype(float))

    everybody = np.arange(count)[:, None]
    values, without = drawn(count, owner), score((owner != everybody).astype(float))
    alone = score((owner == everybody).astype(float))
    samples = Samples(
        {"": value}, values[:, None], without[:, None], count, "patients", LEVEL, {"": scale},
        {"": int(np.isfinite(alone).sum())} if scale == "share" and value in (0, 1) else {},
    )  # fmt: skip
    ours = samples.intervals()[""]
    usable, tails = values[np.isfinite(values)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    result = {
        "percentile": tuple(np.quantile(usable, tails)),
        "widened BCa": widened_bca(value, usable, without[np.isfinite(without)], count),
        "ours": (ours.low, ours.high),
    }
    if count < len(owner):
        result["percentile over images"] = tuple(np.quantile(drawn(len(owner), np.arange(len(owner))), tails))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    began = time.process_time()
    names = ("ours", "widened BCa", "percentile", "percentile over images")
    table: dict[str, dict[str, dict[str, float]]] = {}
    for number, (case, (make, scale, known)) in enumerate(CASES.items()):
        truth = truth_of(make) if known is None else known
        for patients in PATIENTS:
            generator = np.random.default_rng([args.seed, patients, number])
            held: dict[str, list[tuple[float, float]]] = {}
            for _ in range(args.sets):
                score, owner = make(generator, patients)
                for name, bounds in intervals(score, owner, scale, args.rounds, generator).items():
                    held.setdefault(name, []).append(bounds)
            row = table.setdefault(f"{case}, {patients} patients", {})
            for name, both in held.items():
                low, high = np.array(both).T
                there = np.isfinite(low)
                inside = (low <= truth) & (truth <= high)
                row[name] = {
                    "coverage": float(inside[there].mean()),
                    "width": float((high - low)[there].mean()),
                    "none": float(1 - there.mean()),
                }
            print(case, patients, {name: round(v["coverage"], 3) for name, v in row.items()}, flush=True)
    lines = [
        f"Share of {args.sets} simulated sets whose {LEVEL:.0%} interval ({args.rounds} rounds) holds the truth, in "
        f"brackets the mean width; `-` and a share: sets that were given no interval. Standard error of a share: "
        f"{np.sqrt(LEVEL * (1 - LEVEL) / args.sets):.3f}.",
        "",
        f"| case | {' | '.join(names)} |",
        f"| --- |{' ---: |' * len(names)}",
        *(f"| {case} | " + " | ".join(_cell(row.get(name)) for name in names) + " |" for case, row in table.items()),
        "",
        f"`python {shlex.join(['benchmarks/interval_coverage.py', *sys.argv[1:]])}`, "
        f"{time.process_time() - began:.0f} s of processor time, {describe_machine(('numpy', 'scipy'))}",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "interval_coverage.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (args.out / "interval_coverage.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _cell(entry: dict[str, float] | None) -> str:
    if entry is None:
        return ""
    none = f", - {entry['none']:.3f}" if entry["none"] else ""
    return f"{entry['coverage']:.3f} ({entry['width']:.3f}{none})"


if __name__ == "__main__":
    main()
