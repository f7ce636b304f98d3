"""How fast the models of a comparison are: measured side by side, taking turns, not while they were trained."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meddet_yolo.compare.files import RESULT, RUNS, WEIGHTS, read_json, write_json
from meddet_yolo.compare.plan import Plan, RunSpec

__all__ = ["measure_speed"]

_FILE = "speed.json"
_IMAGES, _ROUNDS = 6, 7


def measure_speed(out: Path, plan: Plan, *, device: str = "cpu", threads: int = 1) -> dict[tuple[str, str], float]:
    """Time one model of each kind on a few images that were held out, one image at a time.

    Methods that train the same model share its time. What was measured is kept in the folder and measured again, all
    models together, when there is a new one, or the device or the threads are others.

    Args:
        out: Folder of the comparison.
        plan: Its plan.
        device: Where to measure.
        threads: Threads, on a CPU.

    Returns:
        Median milliseconds from image to boxes by student and method, of those that have a finished run.
    """
    kinds: dict[str, list[RunSpec]] = {}
    for spec in plan.runs():
        if (out / RUNS / spec.name / RESULT).is_file() and _weights(out, spec).is_file():
            kinds.setdefault(_kind(spec), []).append(spec)
    if not kinds:
        return {}
    known: dict[str, Any] = read_json(out / _FILE) if (out / _FILE).is_file() else {}
    if known.get("on") != [device, threads] or not set(kinds) <= set(known["milliseconds"]):
        first = {kind: specs[0] for kind, specs in kinds.items()}
        known = {"on": [device, threads], "milliseconds": _measure(out, first, device, threads)}
        write_json(out / _FILE, known)
    return {(spec.student, spec.method): known["milliseconds"][kind] for kind, specs in kinds.items() for spec in specs}


def _weights(out: Path, spec: RunSpec) -> Path:
    return out / RUNS / spec.name / WEIGHTS if spec.trained else Path(spec.model)


def _kind(spec: RunSpec) -> str:
    """Return what is one for models that take the same time."""
    return json.dumps([spec.model, dict(spec.head), spec.training.get("imgsz", 640)], sort_keys=True)


def _measure(out: Path, specs: dict[str, RunSpec], device: str, threads: int) -> dict[str, float]:
    from meddet_yolo.evaluate.report import measure_latency, read_image
    from meddet_yolo.model import MedDet

    files = (out / "folds" / "fold0" / "val.txt").read_text(encoding="utf-8").splitlines()
    images = [read_image(file) for file in files[:_IMAGES]]
    times: dict[str, float] = {}
    sizes = {kind: spec.training.get("imgsz", 640) for kind, spec in specs.items()}
    with _threads(threads):
        for size in dict.fromkeys(sizes.values()):
            models = {kind: MedDet(str(_weights(out, specs[kind]))) for kind in specs if sizes[kind] == size}
            measured = measure_latency(models, images, imgsz=size, device=device, rounds=_ROUNDS)
            times |= {kind: round(statistics.median(values), 3) for kind, values in measured.items()}
    return times


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let PyTorch use so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
