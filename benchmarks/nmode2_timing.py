"""Interleaved timing and result files, shared by the nmODE² benchmarks (no benchmark of its own)."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

RESULTS = Path(__file__).parent / "results"


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: str = "wall", warmup: int = 2, settle: int = 0
) -> dict[str, list[float]]:
    """Time every call once a round, so that a drifting machine hits all alike; milliseconds per call.

    The clock "cpu" counts CPU time of the process, for one thread on a machine that is busy with other work. In its
    turn a call finds the caches as those before left them, unless it may settle in by calls that are not counted.
    """
    now = CLOCKS[clock]
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(settle):
                call()
            start = now()
            call()
            times[name].append((now() - start) * 1e3)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles and minimum."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median_ms": middle, "q1_ms": low, "q3_ms": high, "min_ms": min(times), "rounds": len(times)}


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round: what a busy machine disturbs least."""
    return statistics.median(mine / other for mine, other in zip(times, reference, strict=True))


def header(packages: tuple[str, ...], threads: int, clock: str) -> dict[str, Any]:
    """Return what the numbers were measured with."""
    return {
        "command": "python " + shlex.join(sys.argv),
        "machine": describe_machine(packages),
        "threads": threads,
        "clock": clock,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def write(
    name: str, title: str, head: dict[str, Any], tables: dict[str, list[dict[str, Any]]], folder: Path = RESULTS
) -> None:
    """Write NAME.json and NAME.md in a folder, benchmarks/results by default, and print the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**head, "tables": tables}, indent=1) + "\n")
    lines = [f"# {title}", ""]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in head.items()]
    for caption, rows in tables.items():
        keys = list(rows[0])
        lines += ["", f"## {caption}", "", "| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
        lines += ["| " + " | ".join(_text(row.get(key)) for key in keys) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    (folder / f"{name}.md").write_text(text)
    print(text)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)
