"""What does loading a checkpoint in safe mode cost, beside stock Ultralytics, which runs what a checkpoint asks for?

    python benchmarks/safe_loading.py --out benchmarks/results/safe_loading

Checkpoints as Ultralytics saves them are made of model YAMLs, with random weights in half precision. Two processes load
each in turn, one of stock Ultralytics and one with this package: the file alone (`torch_safe_load`, checksums included)
and a model (`YOLO(path)`, `MedDet(path)`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KINDS = ("stock", "safe")
WHAT = {"file": "the file", "model": "a model"}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["yolo11n", "yolo11x"], help="model YAMLs, without suffix")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="where to write .json and .md")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    from _machine import describe_machine

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": folder, "OMP_NUM_THREADS": "1"}
        for name in args.models:
            rows += measure(make_checkpoint(name, Path(folder)), args.rounds)
    command = " ".join(["python", *sys.argv])
    result = {"command": command, "machine": describe_machine(("torch", "ultralytics", "isal")), "rows": rows}
    text = report(result)
    print(text)
    if args.out:
        args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")


def make_checkpoint(name: str, folder: Path) -> Path:
    """Write a model of random weights as `strip_optimizer` leaves a trained one."""
    import torch
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG_DICT

    model = DetectionModel(f"{name}.yaml", verbose=False).half()
    model.args = {**DEFAULT_CFG_DICT, "task": "detect", "model": f"{name}.yaml"}
    path = folder / f"{name}.pt"
    torch.save({"epoch": -1, "model": model, "ema": None, "optimizer": None, "train_args": model.args}, path)
    return path


def work(kind: str) -> None:
    """Load what is named on standard input, again and again, and say how long it took."""
    import torch
    from ultralytics import YOLO
    from ultralytics.nn import tasks

    torch.set_num_threads(1)
    model = YOLO
    if kind == "safe":
        from meddet_yolo import MedDet

        model = MedDet
    for line in sys.stdin:
        what, path = json.loads(line)
        load: Any = tasks.torch_safe_load if what == "file" else model
        gc.collect()  # what the load before has left
        wall, cpu = time.perf_counter(), time.process_time()
        load(path)
        print(json.dumps([1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)]), flush=True)


def measure(path: Path, rounds: int) -> list[dict[str, Any]]:
    """Let both processes load a checkpoint in turn."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {kind: subprocess.Popen([*command, kind], **pipes) for kind in KINDS}
    times: dict[tuple[str, str], list[list[float]]] = {(what, kind): [] for what in WHAT for kind in KINDS}
    for i in range(rounds + 3):
        for what, kind in times:
            worker = workers[kind]
            worker.stdin.write(json.dumps([what, str(path)]) + "\n")
            worker.stdin.flush()
            took = json.loads(worker.stdout.readline())
            if i >= 3:  # the first load imports
                times[what, kind].append(took)
    for worker in workers.values():
        worker.communicate()
    size = path.stat().st_size
    return [
        {"model": path.stem, "bytes": size, "what": what, "clock": clock, **both(times, what, column)}
        for what in WHAT
        for column, clock in enumerate(("wall", "cpu"))
    ]


def both(times: dict[tuple[str, str], list[list[float]]], what: str, column: int) -> dict[str, Any]:
    """Return median and quartiles of both kinds, and the ratio of the medians."""
    found = {}
    for kind in KINDS:
        low, median, high = statistics.quantiles([took[column] for took in times[what, kind]], n=4)
        found[kind] = {"median": median, "quartiles": [low, high]}
    return {**found, "ratio": found["safe"]["median"] / found["stock"]["median"]}


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""

    def cell(measured: dict[str, Any]) -> str:
        low, high = measured["quartiles"]
        return f"{measured['median']:.1f} ({low:.1f} to {high:.1f})"

    return (
        f"# Loading in safe mode\n\n`{result['command']}` on {result['machine']}\n\n"
        "Milliseconds, medians with quartiles; one thread, the two loaded in turn.\n\n"
        "| checkpoint | loaded | clock | stock | safe | safe / stock |\n| --- | --- | --- | --- | --- | --- |\n"
        + "".join(
            f"| {row['model']} ({row['bytes'] / 1e6:.1f} MB) | {WHAT[row['what']]} | {row['clock']} | "
            f"{cell(row['stock'])} | {cell(row['safe'])} | {row['ratio']:.2f} |\n"
            for row in result["rows"]
        )
    )


if __name__ == "__main__":
    main()
