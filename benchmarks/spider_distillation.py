"""Does distillation help a small detector on real spine MRI?

Trains, on one YOLO data set with the same epochs, seed and augmentation: teachers, the student alone, the student with
one teacher by Ultralytics' own `distill_model=`, and the student with MedDet. Every run is a process of its own with a
log; finished runs are skipped and interrupted ones resume, so the command can be repeated until it is done.

    python benchmarks/spider_distillation.py --data DATA.yaml --teachers a.pt b.pt --out runs/spider
    python benchmarks/spider_distillation.py --data DATA.yaml --train-teacher yolo11m.yaml --out runs/spider
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

RESULTS = Path(__file__).parent / "results"


def recipe(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the training arguments that all runs share."""
    return {
        "data": str(Path(args.data).resolve()),
        "imgsz": args.imgsz,
        "epochs": args.epochs,
        "batch": args.batch,
        "nbs": args.batch,  # no gradient accumulation: few images need many steps
        "optimizer": "AdamW",
        "lr0": 0.002,
        "fliplr": 0.0,  # left and right of a sagittal slice are front and back of the patient
        "close_mosaic": min(10, args.epochs // 3),
        "seed": seed,
        "cache": "ram",
        "device": args.device,
        "channels_last": True,
        "plots": False,
        "amp": args.device != "cpu",
        "project": str(Path(args.out).resolve()),
        "exist_ok": True,
    }


def plan(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return every run's name and what sets it apart from the shared recipe."""
    runs: dict[str, dict[str, Any]] = {}
    for model in args.train_teacher:
        runs[f"teacher-{Path(model).stem}"] = {"model": model, "seed": 0, "epochs": args.teacher_epochs}
    for seed in args.seeds if args.teachers else []:
        settings = dict(pair.split("=", 1) for pair in args.set)
        runs[f"alone-{seed}"] = {"model": args.student, "seed": seed}
        runs[f"native-{seed}"] = {"model": args.student, "seed": seed, "distill_model": args.teachers[0]}
        runs[f"meddet{args.tag}-{seed}"] = {"model": args.student, "seed": seed, "teachers": args.teachers, **settings}
    return {name: run for name, run in runs.items() if not args.only or name.rsplit("-", 1)[0] in args.only}


def train_one(args: argparse.Namespace, name: str) -> None:
    """Train one run, or go on with it, and write its result."""
    import torch
    from ultralytics.cfg import smart_value

    from meddet_yolo import MedDet

    special = {k: smart_value(v) if isinstance(v, str) else v for k, v in plan(args)[name].items()}
    folder = Path(args.out).resolve() / name
    last = folder / "weights" / "last.pt"
    model = MedDet(str(last) if last.exists() else special["model"])

    def channels_last(trainer: Any) -> None:
        trainer.model.to(memory_format=torch.channels_last)  # also where Ultralytics trains natively

    model.add_callback("on_pretrain_routine_end", channels_last)
    settings = {**recipe(args, special["seed"]), **special, "name": name}
    del settings["model"]
    if last.exists():
        model.train(resume=True)
    else:
        model.train(**settings)
    metrics = MedDet(folder / "weights" / "best.pt").val(
        data=settings["data"], imgsz=args.imgsz, device=args.device, plots=False, verbose=False, project=str(folder)
    )
    rows = list(csv.DictReader((folder / "results.csv").open()))
    times = [float(row["time"]) for row in rows]
    tail = [float(row["metrics/mAP50-95(B)"]) for row in rows[-5:]]
    result = {
        "run": name,
        "mAP50-95": float(metrics.box.map),
        "mAP50": float(metrics.box.map50),
        "recall": float(metrics.box.mr),
        "mAP50-95 of the last 5 epochs": statistics.mean(tail),
        "seconds per epoch": statistics.median(b - a for a, b in itertools.pairwise(times)),
        "epochs": len(rows),
        "settings": {k: str(v) for k, v in special.items()},
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2))


def evaluate_teachers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Validate the teachers on the same split."""
    from meddet_yolo import MedDet

    rows = []
    for path in args.teachers:
        metrics = MedDet(path).val(
            data=args.data, imgsz=args.imgsz, device=args.device, plots=False, verbose=False, project=args.out
        )
        rows.append(
            {
                "run": f"teacher {Path(path).stem}",
                "mAP50-95": float(metrics.box.map),
                "mAP50": float(metrics.box.map50),
                "recall": float(metrics.box.mr),
            }
        )
    return rows


def report(args: argparse.Namespace) -> None:
    """Collect the finished runs' results as JSON and Markdown."""
    teachers = evaluate_teachers(args)
    results = [json.loads(path.read_text()) for path in sorted(Path(args.out).glob("*/result.json"))]
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["run"].rsplit("-", 1)[0], []).append(result)
    keys = ("mAP50-95", "mAP50", "recall", "mAP50-95 of the last 5 epochs", "seconds per epoch")
    lines = [
        "# Distillation on real spine MRI",
        "",
        f"Command: `{args.command}`",
        "",
        f"Machine: {describe_machine()}",
        "",
        f"Student {args.student}, {args.imgsz} px, {args.epochs} epochs, batch {args.batch}, seeds {args.seeds}. "
        "Mean over seeds, with the smallest and largest in brackets where there are several. `best.pt` is chosen on "
        "the same validation split, for all runs alike.",
        "",
        "| run | seeds | " + " | ".join(keys) + " |",
        "|---|---|" + "---|" * len(keys),
    ]
    for row in teachers:
        cells = [f"{row[k]:.3f}" if k in row else "" for k in keys]
        lines.append(f"| {row['run']} | | " + " | ".join(cells) + " |")
    for name, runs in groups.items():
        cells = []
        for key in keys:
            values = [run[key] for run in runs]
            digits = 1 if key.startswith("seconds") else 3
            text = f"{statistics.mean(values):.{digits}f}"
            if len(values) > 1:
                text += f" [{min(values):.{digits}f}, {max(values):.{digits}f}]"
            cells.append(text)
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "spider_distillation.md").write_text("\n".join(lines) + "\n")
    document = {
        "command": args.command,
        "machine": describe_machine(),
        "teachers": teachers,
        "runs": [
            {**r, "settings": {k: re.sub(r"/[^',\]]*/", "", v) for k, v in r["settings"].items()}} for r in results
        ],
    }
    (RESULTS / "spider_distillation.json").write_text(json.dumps(document, indent=2) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Parse the arguments and do what is left to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set YAML")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--student", default="meddet11-n.yaml")
    parser.add_argument("--teachers", nargs="*", default=[], help="checkpoints, the first also for distill_model=")
    parser.add_argument("--train-teacher", nargs="*", default=[], help="model YAMLs to train as teachers")
    parser.add_argument("--teacher-epochs", type=int, default=40)
    parser.add_argument("--imgsz", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", default=[], help="kinds of runs: alone native meddet")
    parser.add_argument("--set", nargs="*", default=[], help="distillation arguments, key=value")
    parser.add_argument("--tag", default="", help="name of these settings")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    args.command = "python benchmarks/spider_distillation.py " + " ".join(
        shlex.quote(Path(a).name if "/" in a else a) for a in sys.argv[1:]
    )
    if args.run:
        train_one(args, args.run)
        return
    Path(args.out).mkdir(parents=True, exist_ok=True)
    if not args.report_only:
        for name in plan(args):
            if (Path(args.out) / name / "result.json").exists():
                print(f"{name}: done before")
                continue
            log = Path(args.out) / f"{name}.log"
            print(f"{name}: training, log in {log}", flush=True)
            with log.open("a") as stream:
                subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], "--run", name],
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    check=True,
                    env={**os.environ, "YOLO_OFFLINE": "true"},
                )
    if args.teachers:
        report(args)


if __name__ == "__main__":
    main()
