"""Is a training that is killed at random moments, and resumed until it is done, the training that was not killed?

    python benchmarks/killing.py --kills 20 --out benchmarks/results/killing

A tiny run, with or without a teacher, in one process or in two (gloo, on the CPU), is killed with SIGKILL in an epoch,
in a validation or while a checkpoint is written, its data loader's workers with it. It is resumed from `last.pt`, or
begun anew where there is none yet, and may be killed again. At the end, weights, EMA, optimizer and the rows of
results.csv (but for their times) are compared bit by bit with those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PHASES = ("epoch", "validation", "checkpoint")
EPOCHS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="kills in all")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2), help="processes of the training")
    parser.add_argument("--workers", type=int, default=0, help="workers of the data loader of each")
    parser.add_argument("--teachers", type=int, default=1, choices=(0, 1))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write .json and .md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(json.loads(args.worker))
        return
    from _machine import describe_machine

    with tempfile.TemporaryDirectory(prefix="killing-") as folder:
        result = {
            "command": " ".join(["python", *sys.argv]),
            "machine": describe_machine(),
            **measure(args, Path(folder)),
        }
    text = report(result)
    print(text)
    if args.out:
        args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")


# The training that is killed ------------------------------------------------------------------------------------------


def work(order: dict[str, Any]) -> None:
    """Train or resume, and die when the order says so."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from ultralytics.utils import RANK

    from meddet_yolo import DistillTrainer

    torch.set_num_threads(1)
    deadly = order["die"] if RANK in {-1, 0} else None
    lasted: dict[str, float] = {}

    class Mortal(DistillTrainer):
        def _setup_ddp(self) -> None:
            dist.init_process_group("gloo", rank=RANK, world_size=self.world_size)

        def _do_train(self) -> None:
            if RANK != -1:
                self.world_size = 2
            super()._do_train()

        def _setup_train(self) -> None:
            self.args.workers = order["workers"]
            super()._setup_train()

        def _timed(self, phase: str, call: Any) -> Any:
            if deadly and (deadly["phase"], deadly["epoch"]) == (phase, self.epoch):
                timer = threading.Timer(deadly["after"], lambda: os.killpg(0, signal.SIGKILL))
                timer.daemon = True
                timer.start()
            begun = time.perf_counter()
            try:
                return call()
            finally:
                lasted[phase] = time.perf_counter() - begun

        def _model_train(self) -> None:
            self._timed("epoch", super()._model_train)
            self.begun = time.perf_counter()

        def validate(self) -> Any:
            lasted["epoch"] = time.perf_counter() - self.begun
            return self._timed("validation", super().validate)

        def save_model(self) -> bool:
            return bool(self._timed("checkpoint", super().save_model))

        def final_eval(self) -> None:
            if RANK in {-1, 0}:
                torch.save(self._state(), order["end"])
                Path(order["times"]).write_text(json.dumps(lasted))
            if RANK == -1:
                super().final_eval()

    class CpuParallel(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
            super().__init__(module, **kwargs)

    nn.parallel.DistributedDataParallel = CpuParallel  # type: ignore[misc]
    Mortal(overrides=order["settings"]).train()
    if dist.is_initialized():
        dist.destroy_process_group()


# The one who kills ----------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill runs until there have been as many kills as asked for, each run once or twice."""
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_CONFIG_DIR", str(folder))
    settings = make_settings(folder, args.teachers, args.processes)
    begun = time.monotonic()
    if start(args, folder / "whole", settings, None):
        raise SystemExit(f"the undisturbed run failed:\n{(folder / 'whole' / 'log.txt').read_text()[-3000:]}")
    seconds = time.monotonic() - begun
    times = json.loads((folder / "whole" / "times.json").read_text())
    dice = random.Random(args.seed)
    kills: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    while len(kills) < args.kills:
        run = folder / f"run{len(runs)}"
        here: list[dict[str, Any]] = []
        first = 0
        for _ in range(min(dice.choice((1, 2)), args.kills - len(kills))):
            phase = PHASES[(len(kills) + len(here)) % len(PHASES)]
            epoch = dice.randrange(first, EPOCHS)
            die = {"phase": phase, "epoch": epoch, "after": dice.random() * times[phase]}
            code = start(args, run, settings, die)
            here.append({**die, "killed": code != 0, "checkpoint_there": last_of(run).is_file()})
            first = epoch
            if code == 0:  # it was done before its time
                break
        code = 0 if not here[-1]["killed"] else start(args, run, settings, None)
        equal = code == 0 and same_end(folder / "whole", run) and rows(folder / "whole") == rows(run)
        kills += here
        runs.append({"kills": here, "finished": code == 0, "bit_equal": equal})
        print(f"{len(kills)} kills, {len(runs)} runs, {sum(r['bit_equal'] for r in runs)} bit-equal", flush=True)
    return {
        "processes": args.processes,
        "workers": args.workers,
        "teachers": args.teachers,
        "epochs": EPOCHS,
        "undisturbed_seconds": round(seconds, 1),
        "phase_seconds": {k: round(v, 3) for k, v in times.items()},
        "kills": sum(k["killed"] for k in kills),
        "runs": len(runs),
        "bit_equal": sum(r["bit_equal"] for r in runs),
        "each": runs,
    }


def make_settings(folder: Path, teachers: int, processes: int) -> dict[str, Any]:
    """Make a tiny data set, a narrow model and a teacher."""
    import torch
    import yaml
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    from meddet_yolo.phantom import generate_phantom

    data = generate_phantom(folder / "data", preset="tiny", patients=4, imgsz=64, val_fraction=0.25, test_fraction=0.0)
    narrow = {**yaml_model_load("yolo26n.yaml"), "scales": {"n": [0.33, 0.125, 1024]}}
    (folder / "yolo26n.yaml").write_text(yaml.safe_dump(narrow), encoding="utf-8")
    names = yaml.safe_load(data.read_text(encoding="utf-8"))["names"]
    teacher = DetectionModel({**yaml_model_load("yolo11n.yaml"), "scales": {"n": [0.5, 0.1875, 1024]}}, nc=len(names))
    teacher.names, teacher.task = dict(enumerate(names)) if isinstance(names, list) else names, "detect"
    torch.save({"model": teacher, "train_args": {"task": "detect"}}, folder / "teacher.pt")
    return {
        "model": str(folder / "yolo26n.yaml"),
        "data": str(data),
        "imgsz": 64,
        "epochs": EPOCHS,
        "batch": 2 * processes,
        "nbs": 8,
        "device": "cpu",
        "optimizer": "SGD",
        "warmup_epochs": 1,
        "close_mosaic": 1,
        "mixup": 0.2,
        "multi_scale": 0.5 if processes == 1 else 0.0,  # a last batch of one image may not be as small as that makes it
        "plots": False,
        "exist_ok": True,
        "verbose": False,
        **({"teachers": [str(folder / "teacher.pt")]} if teachers else {}),
    }


def last_of(run: Path) -> Path:
    return run / "train" / "weights" / "last.pt"


def start(args: argparse.Namespace, run: Path, settings: dict[str, Any], die: dict[str, Any] | None) -> int:
    """Train in a process group of its own; return its exit code."""
    run.mkdir(exist_ok=True)
    place = {**settings, "project": str(run), "name": "train"}
    if last_of(run).is_file():
        place["resume"] = str(last_of(run))
    order = {"settings": place, "die": die, "workers": args.workers}
    order |= {"end": str(run / "end.pt"), "times": str(run / "times.json")}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(order)]
    if args.processes == 2:
        command[1:1] = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    with (run / "log.txt").open("ab") as log:
        return subprocess.run(command, stdout=log, stderr=log, start_new_session=True, check=False).returncode


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def same_end(one: Path, other: Path) -> bool:
    """Return whether two runs ended in the same state."""
    import torch

    first, second = (torch.load(run / "end.pt", weights_only=True) for run in (one, other))
    for state in (first, second):
        state.pop("steps")  # gradients that no step follows
    return same(first, second)


def same(a: Any, b: Any) -> bool:
    import torch

    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "train" / "results.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in result["phase_seconds"].items())
    by_phase = {p: sum(k["phase"] == p and k["killed"] for r in result["each"] for k in r["kills"]) for p in PHASES}
    return (
        f"# Killed and resumed\n\n"
        f"`{result['command']}` on {result['machine']}\n\n"
        f"A run of {result['epochs']} epochs, {result['teachers']} teachers, {result['processes']} processes, "
        f"{result['workers']} workers each, {result['undisturbed_seconds']} s undisturbed ({seconds}).\n\n"
        f"| killed while | kills |\n| --- | --- |\n"
        + "".join(f"| {phase} | {count} |\n" for phase, count in by_phase.items())
        + f"\n{result['bit_equal']} of {result['runs']} runs, killed {result['kills']} times in all, ended bit-equal "
        f"to the undisturbed run in weights, EMA, optimizer, and results.csv without its times.\n"
    )


if __name__ == "__main__":
    main()
