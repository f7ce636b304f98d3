"""What does a distillation step cost beyond the student's step and the teachers' forward passes?

Sets the real trainers up on a generated batch and runs their steps in turn (student alone, teachers' forward up to the
neck, MedDet, Ultralytics' own `distill_model=`), so that a drifting machine hits all alike. A step is preparing the
batch, forward, loss, backward and the optimizers' step.

    python benchmarks/distill_step.py --teachers yolo11s yolo11m
    python benchmarks/distill_step.py --methods          every distillation method, each with all teachers
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

RESULTS = Path(__file__).parent / "results"


def write_data(folder: Path, size: int, count: int) -> Path:
    """Write a small YOLO data set of noise images with eight boxes each."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(folder / f"images/{split}/{i}.png"), rng.integers(0, 255, (size, size, 3), dtype=np.uint8))
            rows = [f"{k % 2} {rng.uniform(0.2, 0.8):.4f} {rng.uniform(0.2, 0.8):.4f} 0.1 0.06" for k in range(8)]
            (folder / f"labels/{split}/{i}.txt").write_text("\n".join(rows))
    data = folder / "data.yaml"
    data.write_text("train: images/train\nval: images/val\nnames: {0: a, 1: b}\n")
    return data


def write_teacher(folder: Path, name: str) -> str:
    """Write an untrained detector as a checkpoint; the cost does not depend on its weights."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    path = folder / f"{name}.pt"
    model = DetectionModel(f"{name}.yaml", nc=2, verbose=False)
    model.names = {0: "a", 1: "b"}
    torch.save({"model": model.half(), "train_args": {}}, path)
    return str(path)


def build(args: argparse.Namespace, data: Path, folder: Path, name: str, **extra: Any) -> Any:
    """Set a trainer up as `train()` would, without training."""
    import torch

    from meddet_yolo import DistillTrainer

    trainer = DistillTrainer(
        overrides={
            "model": args.student,
            "data": str(data),
            "imgsz": args.imgsz,
            "batch": args.batch,
            "epochs": 100,
            "device": args.device,
            "nbs": args.batch,
            "optimizer": "AdamW",
            "plots": False,
            "amp": args.device != "cpu",
            "project": str(folder),
            "name": name,
            **extra,
        }
    )
    trainer._setup_train()
    if args.channels_last:
        trainer.model.to(memory_format=torch.channels_last)
    trainer.epoch = 50  # past every warm-up
    trainer.run_callbacks("on_train_epoch_start")
    trainer._model_train()
    return trainer


def make_step(trainer: Any, batch: dict[str, Any]) -> Callable[[], None]:
    """Return one training step as the loop does it."""
    import torch

    def step() -> None:
        with torch.autocast(trainer.device.type, enabled=trainer.amp):
            prepared = trainer.preprocess_batch(dict(batch))
            loss, trainer.loss_items = trainer.model(prepared)
        trainer.scaler.scale(loss.sum()).backward()
        trainer.optimizer_step()

    return step


def chosen_runs(args: argparse.Namespace, teachers: list[str]) -> dict[str, dict[str, Any]]:
    """Return the trainings with teachers by label: of the default method, or of the methods that were asked for."""
    from meddet_yolo.distill import METHODS

    if args.methods is not None:
        return {name: {"distill": name, "teachers": teachers} for name in args.methods or METHODS}
    runs = {"MedDet, first teacher": {"teachers": teachers[:1]}}
    return runs if len(teachers) == 1 else {**runs, "MedDet, all teachers": {"teachers": teachers}}


def measure(steps: dict[str, Callable[[], None]], rounds: int, device: str, clock: str) -> dict[str, list[float]]:
    """Time every step once a round, after two rounds of warm-up; milliseconds."""
    import torch

    now = time.process_time if clock == "cpu" else time.perf_counter

    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 2):
        for name, step in steps.items():
            if device != "cpu":
                torch.cuda.synchronize()
            start = now()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            if i >= 2:
                times[name].append(1e3 * (now() - start))
    return times


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="meddet11-n.yaml")
    parser.add_argument("--teachers", nargs="+", default=["yolo11s", "yolo11m"])
    parser.add_argument("--imgsz", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine")
    parser.add_argument("--methods", nargs="*", help="methods to put side by side; without names all there are")
    parser.add_argument("--set", nargs="*", default=[], help="distillation arguments, key=value")
    parser.add_argument("--tag", default="", help="name of these settings, for the results")
    args = parser.parse_args()
    from ultralytics.cfg import smart_value

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_data(folder, args.imgsz, args.batch)
        teachers = [write_teacher(folder, teacher) for teacher in args.teachers]
        alone = build(args, data, folder, "alone")
        settings = {k: smart_value(v) for k, v in (pair.split("=", 1) for pair in args.set)}
        native = build(args, data, folder, "native", distill_model=teachers[0])
        trainers = {"student": alone, "native distill_model": native}
        runs = chosen_runs(args, teachers)
        for label, extra in runs.items():
            trainers[label] = build(args, data, folder, label.replace(" ", "_"), **extra, **settings)
        batch = next(iter(alone.train_loader))
        images = alone.preprocess_batch(dict(batch))["img"]
        steps = {label: make_step(trainer, batch) for label, trainer in trainers.items()}
        everyone = build(args, data, folder, "everyone", teachers=teachers, distill="meddet").teachers  # without heads
        for teacher in everyone:
            steps[f"forward of {Path(teacher.name).stem}"] = lambda t=teacher: t(images)
        times = measure(steps, args.rounds, args.device, args.clock)

    forwards = [f"forward of {name}" for name in args.teachers]

    def ratio(top: str, *bottom: str) -> list[float]:
        return [t / sum(parts) for t, *parts in zip(times[top], *(times[b] for b in bottom), strict=True)]

    taught = {label: forwards[: len(extra["teachers"])] for label, extra in runs.items()}
    taught["native distill_model"] = forwards[:1]
    ratios = {
        f"{label} / (student + {'its forward' if len(read) == 1 else 'their forwards'})": ratio(label, "student", *read)
        for label, read in taught.items()
    }
    command = "python benchmarks/distill_step.py " + " ".join(shlex.quote(a) for a in sys.argv[1:])
    lines = [
        "# Cost of a distillation step",
        "",
        f"Command: `{command.strip()}`",
        "",
        f"Machine: {describe_machine()}",
        "",
        f"Student {args.student}, {args.imgsz} px, batch {args.batch}, {args.rounds} interleaved rounds of "
        f"{'processor' if args.clock == 'cpu' else 'wall'} time; median [smallest, largest]. Forward passes of "
        "teachers are up to their necks: methods that read predictions run the heads on top.",
        "",
        "| step | milliseconds |",
        "|---|---|",
        *(f"| {k} | {statistics.median(v):.0f} [{min(v):.0f}, {max(v):.0f}] |" for k, v in times.items()),
        "",
        "| ratio, round by round | median |",
        "|---|---|",
        *(f"| {k} | {statistics.median(v):.3f} [{min(v):.3f}, {max(v):.3f}] |" for k, v in ratios.items()),
    ]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    layout = "_channels_last" if args.channels_last else ""
    methods = "_methods" if args.methods is not None else ""
    stem = f"distill_step_{'cpu' if args.device == 'cpu' else 'gpu'}{layout}{methods}{args.tag}"
    (RESULTS / f"{stem}.md").write_text("\n".join(lines) + "\n")
    document = {"command": command, "machine": describe_machine(), "milliseconds": times, "ratios": ratios}
    (RESULTS / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
