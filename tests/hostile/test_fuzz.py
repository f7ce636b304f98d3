"""No mutant of any file crashes its reader, hangs it, fills the memory or reaches a user as a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hostile.fuzz import BAD, Count, fuzz, table
from tests.hostile.readers import READERS

# Mutants of a reader: of all in the full lane, and of those that are quick to read in the quick one.
MANY = {
    "dicom": 2400,
    "nifti": 2000,
    "picture": 1200,
    "mask": 500,
    "labels": 800,
    "data YAML": 700,
    "CSV": 600,
    "COCO": 600,
    "VOC": 600,
    "list": 300,
    "report": 600,
    "slice cache": 300,
    "conversion": 300,
    "engine": 400,
    "sidecar": 400,
    "label cache": 500,
    "checkpoint": 300,
}
FEW = {"dicom": 120, "nifti": 100, "picture": 60, "labels": 40, "data YAML": 40, "COCO": 40, "VOC": 40, "sidecar": 40}
# Mutants that once did harm, by reader and number.
ONCE: list[tuple[str, int]] = [
    ("picture", 10),
    ("sidecar", 12),
    ("sidecar", 56),
    ("checkpoint", 14),
    ("checkpoint", 1539),
]


def assert_harmless(counts: dict[str, Count], wanted: dict[str, int]) -> None:
    print(table(counts))
    for name, count in counts.items():
        assert not count.bad, f"{name} {count.bad[0][0]}: {count.bad[0][1]}\n{count.bad[0][2]}"
        assert not any(count.number[kind] for kind in BAD)
        assert sum(count.number.values()) == wanted[name]


def test_all_readers_are_there() -> None:
    assert MANY.keys() == READERS.keys()
    assert sum(MANY.values()) >= 10_000


def test_few_mutants() -> None:
    counts = fuzz(FEW)
    assert_harmless(counts, FEW)
    assert all(count.number["refused"] for count in counts.values())


@pytest.mark.parametrize(
    ("name", "number"), [pytest.param(*c, marks=[pytest.mark.slow] * (c[0] == "checkpoint")) for c in ONCE]
)
def test_mutants_that_once_did_harm(name: str, number: int) -> None:
    assert_harmless(fuzz({name: 1}, first=number), {name: 1})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_mutants(tmp_path: Path) -> None:
    counts = fuzz(MANY)
    assert_harmless(counts, MANY)
    # The mutants are worth something: every reader reads some of them and refuses others.
    summary = {name: count.number for name, count in counts.items()}
    assert all(number["refused"] or name == "slice cache" for name, number in summary.items()), json.dumps(summary)
    assert all(number["read"] or name == "sidecar" for name, number in summary.items()), json.dumps(summary)
