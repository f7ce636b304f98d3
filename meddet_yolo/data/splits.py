"""Splitting a data set by patient: seeded, balanced over the classes, never with a patient on both sides.

scikit-learn's `StratifiedGroupKFold` makes folds of equal size, one of which is a share of 1/k only, leaves the number
of patients in a fold to chance, and hardly depends on its seed where patients differ; `split_patients` takes any
shares, keeps the number of patients exact and needs no further package. The tests compare its balance with
scikit-learn's.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

__all__ = ["SPLITS", "LeakageError", "check_leakage", "contents_of_patients", "split_patients"]

SPLITS = ("train", "val", "test")
_MAX_SWAPS = 200
_MAX_PAIRS = 2_000_000  # candidates looked at for a swap; beyond, a random part of the patients is


class LeakageError(ValueError):
    """A patient is on both sides of a split."""


def check_leakage(assignments: Iterable[tuple[str, str]]) -> None:
    """Refuse a split that has images of one patient in several of its parts.

    Args:
        assignments: Patient and part of every image.

    Raises:
        LeakageError: With the patients and where they are.

    Examples:
        >>> check_leakage([("p1", "train"), ("p2", "val"), ("p1", "train")])
        >>> check_leakage([("p1", "train"), ("p1", "val")])
        Traceback (most recent call last):
        ...
        meddet_yolo.data.splits.LeakageError: 1 patient is in several parts of the split: p1 (train, val)
    """
    parts: dict[str, set[str]] = defaultdict(set)
    for patient, part in assignments:
        parts[patient].add(part)
    leaking = sorted((p for p, where in parts.items() if len(where) > 1), key=natural)
    if leaking:
        shown = ", ".join(f"{p} ({', '.join(sorted(parts[p], key=_order))})" for p in leaking[:10])
        more = f" and {len(leaking) - 10} more" if len(leaking) > 10 else ""
        number = "1 patient is" if len(leaking) == 1 else f"{len(leaking)} patients are"
        raise LeakageError(f"{number} in several parts of the split: {shown}{more}")


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key under which p2 comes before p10.

    Examples:
        >>> sorted(["p10", "p2", "a"], key=natural)
        ['a', 'p2', 'p10']
    """
    key: list[tuple[int, int, str]] = []
    digits = ""
    for character in f"{text}\0":
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            key.append((0, int(digits), digits))
            digits = ""
        key.append((1, 0, character))
    return tuple(key)


def _order(part: str) -> int:
    return SPLITS.index(part) if part in SPLITS else len(SPLITS)


def contents_of_patients(images: Iterable[tuple[str, Sequence[Hashable]]]) -> dict[str, list[float]]:
    """Count what a split is to balance: of each patient the images, the empty ones, and the boxes of each class.

    Args:
        images: For each image its patient, and the class of each of its boxes.

    Examples:
        >>> contents_of_patients([("p1", [0, 0]), ("p1", []), ("p2", [1])])
        {'p1': [2, 0, 1, 2], 'p2': [0, 1, 0, 1]}
    """
    counts: dict[str, Counter[Hashable]] = defaultdict(Counter)
    for patient, classes in images:
        counts[patient]["images"] += 1
        counts[patient]["empty"] += not classes
        counts[patient].update(classes)
    keys = sorted({key for count in counts.values() for key in count}, key=str)
    return {patient: [count[key] for key in keys] for patient, count in counts.items()}


def split_patients(
    counts: Mapping[str, Sequence[float]], shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, str]:
    """Assign every patient to one part of a split so that all parts are alike in what is counted.

    A random split that has the right number of patients in each part, then swaps of two patients between two parts,
    each time the swap that evens the counts out most, until none helps. (Our own decision.)

    Args:
        counts: For each patient what is to be balanced, such as the number of images and of boxes of each class; all
            of one length.
        shares: Share of the patients for each part, each at least 0, together 1. The numbers of patients are these
            shares rounded; every part with a share above 0 gets at least one patient.
        seed: Seed of the random split.

    Returns:
        The part of each patient.

    Raises:
        ValueError: If the shares are no shares, or there are fewer patients than parts.

    Examples:
        >>> counts = {f"p{i}": [3, i % 2] for i in range(10)}
        >>> parts = split_patients(counts, {"train": 0.8, "val": 0.2})
        >>> sorted(i % 2 for i in range(10) if parts[f"p{i}"] == "val")
        [0, 1]
    """
    patients = sorted(counts, key=natural)
    parts = [part for part, share in shares.items() if share > 0]
    sizes = _sizes(len(patients), shares)
    rng = np.random.default_rng(seed)
    assigned = np.repeat(np.arange(len(parts)), [sizes[part] for part in parts])[rng.permutation(len(patients))]
    table = np.array([counts[p] for p in patients], float).reshape(len(patients), -1)
    totals = table.sum(0)
    table = table[:, totals > 0] / totals[totals > 0]
    if table.size:
        _balance(table, assigned, rng)
    return {patient: parts[index] for patient, index in zip(patients, assigned, strict=True)}


def _sizes(number: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return how many patients each part gets: its share rounded, by the largest remainders."""
    if any(not math.isfinite(s) or s < 0 for s in shares.values()) or not math.isclose(sum(shares.values()), 1):
        text = ", ".join(f"{part} {share:g}" for part, share in shares.items())
        raise ValueError(f"the parts of a split must be shares of at least 0 that sum to 1, got {text}")
    wanted = {part: share * number for part, share in shares.items() if share > 0}
    if number < len(wanted):
        patients = "1 patient" if number == 1 else f"{number} patients"
        raise ValueError(f"{patients} cannot be split into {', '.join(wanted)}: each part needs one at least")
    sizes = {part: max(1, math.floor(share + 1e-9)) for part, share in wanted.items()}
    while sum(sizes.values()) < number:
        sizes[max(wanted, key=lambda part: wanted[part] - sizes[part])] += 1
    while sum(sizes.values()) > number:
        sizes[max((p for p in sizes if sizes[p] > 1), key=lambda part: sizes[part] - wanted[part])] -= 1
    return sizes


def _balance(table: np.ndarray, assigned: np.ndarray, rng: np.random.Generator) -> None:
    """Swap patients between parts, in place, as long as that evens out what each part holds.

    Args:
        table: Share of each patient in each counted thing, of shape (patients, things).
        assigned: Part of each patient, of shape (patients,).
        rng: Chooses which patients are looked at where there are very many.

    The cost is the sum over parts and things of (share held - share of the patients)² / share of the patients.
    """
    parts = int(assigned.max()) + 1
    targets = np.bincount(assigned, minlength=parts) / len(assigned)
    excess = np.stack([table[assigned == part].sum(0) for part in range(parts)]) - targets[:, None]
    squares = (table**2).sum(1)
    for _ in range(_MAX_SWAPS):
        best: tuple[float, int, int] | None = None
        for a in range(parts):
            for b in range(a + 1, parts):
                ins, outs = _candidates(assigned, a, b, rng)
                along = table @ (excess[a] / targets[a] - excess[b] / targets[b])
                distance = squares[ins][:, None] + squares[outs][None] - 2 * table[ins] @ table[outs].T
                change = 2 * (along[outs][None] - along[ins][:, None]) + distance * (1 / targets[a] + 1 / targets[b])
                place = int(change.argmin())
                i, j = divmod(place, len(outs))
                if best is None or change[i, j] < best[0]:
                    best = (float(change[i, j]), int(ins[i]), int(outs[j]))
        if best is None or best[0] > -1e-12:
            return
        _, i, j = best
        a, b = int(assigned[i]), int(assigned[j])
        excess[a] += table[j] - table[i]
        excess[b] += table[i] - table[j]
        assigned[i], assigned[j] = b, a


def _candidates(assigned: np.ndarray, a: int, b: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the patients of two parts that may change places."""
    ins, outs = np.flatnonzero(assigned == a), np.flatnonzero(assigned == b)
    if len(ins) * len(outs) > _MAX_PAIRS:
        side = math.isqrt(_MAX_PAIRS)
        ins, outs = (rng.choice(x, min(side, len(x)), replace=False) for x in (ins, outs))
    return ins, outs
