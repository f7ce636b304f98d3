"""Which interval of a bootstrap over patients holds the truth as often as it says?

Simulates sets of patients whose images are alike, a score whose true value is known, and compares intervals: plain
percentiles and BCa, and both widened for few patients; widened BCa is what `meddet_yolo.evaluate.statistics` gives.
Also percentiles of images in place of patients, which is what the unit is about.

    python benchmarks/interval_coverage.py --sets 1000 --rounds 1000
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

from meddet_yolo.evaluate.statistics import expanded_bca

RESULTS = Path(__file__).parent / "results"
LEVEL = 0.95
Array = NDArray[np.float64]


def sensitivity(generator: np.random.Generator, patients: int, mean: float) -> tuple[Array, Array, float]:
    """Return hits and findings of every image, (n, 2), their patients, and the true sensitivity."""
    chance = generator.beta(8 * mean, 8 * (1 - mean), patients)
    owner = np.repeat(np.arange(patients), generator.integers(1, 6, patients))
    findings = generator.poisson(3, len(owner)) + 1
    hits = generator.binomial(findings, chance[owner])
    return np.stack([hits, findings], 1).astype(float), owner, mean


def auroc(generator: np.random.Generator, patients: int, mean: float) -> tuple[Array, Array, float]:
    """Return score and label of every patient's only image, (n, 2), their patients, and the true AUROC."""
    label = generator.random(patients) < 0.4
    score = generator.normal(size=patients) + label * np.sqrt(2) * stats.norm.ppf(mean)
    return np.stack([score, label], 1).astype(float), np.arange(patients), mean


def ratio(rows: Array, weights: Array) -> Array:
    """Return the sensitivities (rounds,) for weights (rounds, n)."""
    sums = weights @ rows
    return sums[:, 0] / sums[:, 1]


def area(rows: Array, weights: Array) -> Array:
    """Return the AUROCs (rounds,) for weights (rounds, n); scores have no ties."""
    order = np.argsort(rows[:, 0])
    ordered, label = weights[:, order], rows[order, 1]
    positive, negative = ordered * label, ordered * (1 - label)
    below = np.cumsum(negative, 1) - negative
    with np.errstate(invalid="ignore"):
        return (positive * (below + negative / 2)).sum(1) / (positive.sum(1) * negative.sum(1))


CASES = {
    f"{name}, {patients} patients": (kind, score, patients, mean)
    for name, kind, score, mean in (
        ("sensitivity 0.75", sensitivity, ratio, 0.75),
        ("sensitivity 0.95", sensitivity, ratio, 0.95),
        ("AUROC 0.85", auroc, area, 0.85),
    )
    for patients in (10, 20, 50, 183)
}


def intervals(rows: Array, owner: NDArray, score, rounds: int, generator) -> dict[str, tuple[float, float]]:
    """Return the interval of each kind."""
    count = int(owner.max()) + 1

    def drawn(units: int, of_image: NDArray) -> Array:
        times = generator.multinomial(units, np.full(units, 1 / units), rounds)
        values = score(rows, times[:, of_image].astype(float))
        return values[np.isfinite(values)]

    values = drawn(count, owner)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    result = {"percentile": tuple(np.quantile(values, tails))}
    widened = stats.norm.cdf(np.sqrt(count / (count - 1)) * stats.t.ppf(tails, count - 1))
    result["expanded percentile"] = tuple(np.quantile(values, widened))
    value = score(rows, np.ones((1, len(owner))))[0]
    without = score(rows, (owner != np.arange(count)[:, None]).astype(float))
    without = without[np.isfinite(without)]
    spread = without.mean() - without
    skew = (spread**3).sum() / (6 * ((spread**2).sum() ** 1.5 + 1e-300))
    shift = stats.norm.ppf(np.clip(((values < value) + (values == value) / 2).mean(), 1e-4, 1 - 1e-4))
    z = stats.norm.ppf(tails)
    result["BCa"] = tuple(np.quantile(values, stats.norm.cdf(shift + (shift + z) / (1 - skew * (shift + z)))))
    result["expanded BCa"] = expanded_bca(value, values, without, count, LEVEL)
    result["percentile over images"] = tuple(np.quantile(drawn(len(owner), np.arange(len(owner))), tails))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    began = time.perf_counter()
    table: dict[str, dict[str, dict[str, float]]] = {}
    for case, (kind, score, patients, mean) in CASES.items():
        generator = np.random.default_rng([args.seed, patients, int(mean * 100)])
        held: dict[str, list[tuple[bool, float]]] = {}
        for _ in range(args.sets):
            rows, owner, truth = kind(generator, patients, mean)
            if kind is auroc and not 0 < rows[:, 1].sum() < patients:
                continue  # AUROC is undefined
            for name, (low, high) in intervals(rows, owner, score, args.rounds, generator).items():
                held.setdefault(name, []).append((low <= truth <= high, high - low))
        table[case] = {
            name: {"coverage": float(np.mean([h for h, _ in all_])), "width": float(np.mean([w for _, w in all_]))}
            for name, all_ in held.items()
        }
        print(case, {name: round(value["coverage"], 3) for name, value in table[case].items()}, flush=True)
    names = list(next(iter(table.values())))
    lines = [
        f"Share of {args.sets} simulated sets whose {LEVEL:.0%} interval ({args.rounds} rounds) holds the truth, and "
        f"the mean width. Standard error of a share: {np.sqrt(LEVEL * (1 - LEVEL) / args.sets):.3f}.",
        "",
        f"| case | {' | '.join(names)} |",
        f"| --- |{' ---: |' * len(names)}",
        *(
            f"| {case} | " + " | ".join(f"{row[n]['coverage']:.3f} ({row[n]['width']:.3f})" for n in names) + " |"
            for case, row in table.items()
        ),
        "",
        f"`python {shlex.join(['benchmarks/interval_coverage.py', *sys.argv[1:]])}`, "
        f"{time.perf_counter() - began:.0f} s, {describe_machine(('numpy', 'scipy'))}",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "interval_coverage.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (args.out / "interval_coverage.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
