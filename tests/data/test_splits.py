"""The oracle for balance is scikit-learn's StratifiedGroupKFold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.data.splits import LeakageError, check_leakage, natural, split_patients

counts = st.dictionaries(
    st.text("abc123", min_size=1, max_size=4), st.tuples(*[st.integers(0, 9)] * 3), min_size=3, max_size=40
)
shares = st.tuples(st.floats(0.05, 0.5), st.floats(0.05, 0.4)).map(
    lambda s: {"train": 1 - s[0] - s[1], "val": s[0], "test": s[1]}
)


@settings(deadline=None)
@given(counts, shares, st.integers(0, 2**31))
def test_every_patient_is_in_one_part_and_parts_have_their_share(counts, shares, seed):
    parts = split_patients(counts, shares, seed=seed)
    assert parts.keys() == counts.keys()
    for part, share in shares.items():
        size = sum(p == part for p in parts.values())
        assert size >= 1
        assert abs(size - share * len(counts)) < 2  # rounded, after each part has got its first
    assert parts == split_patients(dict(reversed(counts.items())), shares, seed=seed)


def test_numbers_are_those_of_the_paper():
    counts = {f"p{i}": [2 + (i < 20), i % 7] for i in range(914)}
    parts = split_patients(counts, {"train": 731 / 914, "val": 0.0, "test": 183 / 914})
    assert [sum(p == part for p in parts.values()) for part in ("train", "val", "test")] == [731, 0, 183]


def unevenness(counts, parts, part):
    """Return the greatest difference between a part's share of anything counted and its share of the patients."""
    table = np.array(list(counts.values()), float)
    inside = np.array([parts[p] == part for p in counts])
    return np.abs(table[inside].sum(0) / table.sum(0) - inside.mean()).max()


@pytest.mark.parametrize("seed", range(5))
def test_balance_is_that_of_scikit_learn_or_better(seed):
    selection = pytest.importorskip("sklearn.model_selection")
    rng = np.random.default_rng(seed)
    kinds = rng.dirichlet([0.3, 0.3, 0.3], 60)  # patients who differ much
    counts = {f"p{i}": rng.multinomial(rng.integers(1, 30), kinds[i]) for i in range(60)}
    patients = [p for p, c in counts.items() for _ in range(c.sum())]
    labels = [k for c in counts.values() for k, n in enumerate(c) for _ in range(n)]
    folds = selection.StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(patients, labels, patients)
    theirs = []
    for _, held_back in folds:
        val = {patients[i] for i in held_back}
        theirs.append(unevenness(counts, {p: "val" if p in val else "train" for p in counts}, "val"))
    ours = unevenness(counts, split_patients(counts, {"train": 0.8, "val": 0.2}, seed=seed), "val")
    assert ours <= np.median(theirs) + 0.005
    assert ours < 0.03


def test_a_rare_class_is_in_every_part():
    counts = {f"p{i}": [5, int(i % 10 == 3)] for i in range(50)}
    for seed in range(5):
        parts = split_patients(counts, {"train": 0.6, "val": 0.2, "test": 0.2}, seed=seed)
        assert sorted(parts[f"p{i}"] for i in range(3, 50, 10)) == ["test", "train", "train", "train", "val"]


def test_seeds_differ():
    counts = {f"p{i}": [i % 5, 3] for i in range(40)}
    splits = {tuple(sorted(split_patients(counts, {"train": 0.8, "val": 0.2}, seed=s).items())) for s in range(5)}
    assert len(splits) == 5


def test_very_many_patients_are_split_in_reasonable_time():
    counts = {f"p{i}": [i % 3, i % 11] for i in range(5000)}
    parts = split_patients(counts, {"train": 0.5, "val": 0.5})
    assert unevenness(counts, parts, "val") < 0.01


@pytest.mark.parametrize(
    ("number", "shares", "message"),
    [
        (1, {"train": 0.8, "val": 0.2}, "1 patient cannot be split into train, val"),
        (9, {"train": 0.8, "val": 0.3}, "sum to 1, got train 0.8, val 0.3"),
        (9, {"train": 1.2, "val": -0.2}, "at least 0"),
    ],
)
def test_impossible_splits_are_refused(number, shares, message):
    with pytest.raises(ValueError, match=message):
        split_patients({f"p{i}": [1] for i in range(number)}, shares)


def test_leaking_patients_are_named():
    rows = [(f"p{i}", part) for i in (2, 10) for part in ("val", "train")] + [("p5", "test")]
    with pytest.raises(LeakageError, match=r"2 patients are .*: p2 \(train, val\), p10 \(train, val\)$"):
        check_leakage(rows)
    with pytest.raises(LeakageError, match="and 5 more"):
        check_leakage([(str(i), part) for i in range(15) for part in ("train", "test")])


@given(st.lists(st.text(max_size=5)))
def test_natural_order_is_an_order(words):
    assert sorted(sorted(words, key=natural), key=natural) == sorted(words, key=natural)
