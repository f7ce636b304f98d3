"""How hard is the phantom for a small detector trained from scratch?

Generates a data set, trains `yolo11n` on it from random weights and validates on patients that it has not seen, once
for each difficulty asked for. Each training is a process of its own with a log; finished ones are skipped, interrupted
ones resume: repeat the command until it is done.

    python benchmarks/phantom_difficulty.py --out runs/phantom
    python benchmarks/phantom_difficulty.py --out runs/phantom --difficulty 0 0.5 1
    python benchmarks/phantom_difficulty.py --out runs/phantom --patients 914 --imgsz 512 --epochs 60 --device 0
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

RESULTS = Path(__file__).parent / "results"


def train_one(args: argparse.Namespace, difficulty: float) -> None:
    """Generate the data, train or go on with it, and write the result."""
    from meddet_yolo import MedDet
    from meddet_yolo.phantom import generate_phantom

    folder = _folder(args, difficulty)
    data = generate_phantom(
        folder / "data",
        args.patients,
        args.seed,
        args.imgsz,
        difficulty=difficulty,
        val_fraction=0.2,
        test_fraction=0.0,
    )
    last = folder / "train" / "weights" / "last.pt"
    model = MedDet(str(last) if last.exists() else args.model)
    if last.exists():
        model.train(resume=True)
    else:
        model.train(
            data=str(data),
            imgsz=args.imgsz,
            epochs=args.epochs,
            batch=args.batch,
            nbs=args.batch,  # no gradient accumulation: few images need many steps
            optimizer="AdamW",
            lr0=0.002,
            fliplr=0.0,  # left and right of a sagittal slice are front and back of the patient
            close_mosaic=args.epochs // 3,
            seed=args.seed,
            cache="ram",
            device=args.device,
            amp=args.device != "cpu",
            channels_last=True,
            plots=False,
            workers=0 if args.device == "cpu" else 8,
            project=str(folder),
            name="train",
            exist_ok=True,
        )
    metrics = MedDet(folder / "train" / "weights" / "best.pt").val(
        data=str(data), imgsz=args.imgsz, device=args.device, plots=False, verbose=False, workers=0, project=str(folder)
    )
    rows = list(csv.DictReader((folder / "train" / "results.csv").open()))
    times = [float(row["time"]) for row in rows]
    by_class = {
        metrics.names[int(c)]: float(ap) for c, ap in zip(metrics.box.ap_class_index, metrics.box.maps, strict=False)
    }
    result: dict[str, Any] = {
        "difficulty": difficulty,
        "mAP50-95": float(metrics.box.map),
        "mAP50": float(metrics.box.map50),
        "recall": float(metrics.box.mr),
        "mAP50-95 by class": by_class,
        "mAP50-95 of every epoch": [float(row["metrics/mAP50-95(B)"]) for row in rows],
        "seconds per epoch": statistics.median(b - a for a, b in itertools.pairwise(times))
        if len(times) > 1
        else times[0],
        "found herniations by grade": found_by_grade(folder / "train" / "weights" / "best.pt", data, args),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2))


def found_by_grade(weights: Path, data: Path, args: argparse.Namespace) -> dict[str, float]:
    """Return the share of validation discs of each grade whose best overlapping box has the right class."""
    from meddet_yolo import MedDet

    truth: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader((data.parent / "discs.csv").open()):
        if row["split"] == "val":
            truth.setdefault(row["image"], []).append(row)
    model = MedDet(weights)
    hits: dict[str, list[bool]] = {}
    for image, discs in truth.items():
        found = model.predict(data.parent / image, imgsz=args.imgsz, device=args.device, conf=0.1, verbose=False)[0]
        boxes, classes, conf = (v.cpu().numpy() for v in (found.boxes.xyxy, found.boxes.cls, found.boxes.conf))
        for disc in discs:
            x1, y1, x2, y2 = (float(disc[k]) for k in ("x1", "y1", "x2", "y2"))
            inside = [
                (c, n)
                for (a1, b1, a2, b2), c, n in zip(boxes, conf, classes, strict=True)
                if x1 <= (a1 + a2) / 2 <= x2 and y1 <= (b1 + b2) / 2 <= y2
            ]
            right = bool(inside) and found.names[int(max(inside)[1])] == disc["class"]
            hits.setdefault(disc["grade"], []).append(right)
    return {grade: statistics.mean(values) for grade, values in sorted(hits.items())}


def report(args: argparse.Namespace) -> None:
    """Collect the results as JSON and Markdown."""
    results = [json.loads((_folder(args, d) / "result.json").read_text()) for d in args.difficulty]
    grades = ("normal", "subtle", "moderate", "severe")
    head = ["difficulty", "mAP50-95", "mAP50", "recall", "herniation", "normal", *(f"{g} right" for g in grades)]
    lines = [
        "# How hard is the phantom?",
        "",
        f"Command: `{args.command}`",
        "",
        f"Machine: {describe_machine()}",
        "",
        f"{Path(args.model).stem} from random weights, {args.patients} patients, a fifth of them for validation, "
        f"{args.imgsz} px, {args.epochs} epochs, batch {args.batch}, AdamW 0.002, seed {args.seed}. The last columns: "
        "mAP50-95 of each class, and the share of discs of each grade that get the right class (confidence 0.1).",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---:|" * len(head),
    ]
    for r in results:
        by_class, right = r["mAP50-95 by class"], r["found herniations by grade"]
        values = [r["mAP50-95"], r["mAP50"], r["recall"], by_class.get("herniation"), by_class.get("normal")]
        values += [right.get(grade) for grade in grades]
        cells = [f"{r['difficulty']:g}", *("" if v is None else f"{v:.3f}" for v in values)]
        lines.append("| " + " | ".join(cells) + " |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "phantom_difficulty.md").write_text("\n".join(lines) + "\n")
    document = {"command": args.command, "machine": describe_machine(), "results": results}
    (RESULTS / "phantom_difficulty.json").write_text(json.dumps(document, indent=2) + "\n")
    print("\n".join(lines))


def _folder(args: argparse.Namespace, difficulty: float) -> Path:
    """Return the folder of one training."""
    return Path(args.out).resolve() / f"difficulty-{difficulty:g}"


def main() -> None:
    """Parse the arguments and do what is left to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of data and runs")
    parser.add_argument("--difficulty", type=float, nargs="+", default=[0.5])
    parser.add_argument("--model", default="yolo11n.yaml")
    parser.add_argument("--patients", type=int, default=240)
    parser.add_argument("--imgsz", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.command = "python benchmarks/phantom_difficulty.py " + " ".join(
        shlex.quote(Path(a).name if "/" in a else a) for a in sys.argv[1:]
    )
    if args.run is not None:
        train_one(args, args.run)
        return
    for difficulty in args.difficulty:
        folder = _folder(args, difficulty)
        if (folder / "result.json").exists():
            print(f"difficulty {difficulty:g}: done before")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        print(f"difficulty {difficulty:g}: training, log in {folder / 'log'}", flush=True)
        with (folder / "log").open("a") as stream:
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--run", str(difficulty)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=True,
                env={**os.environ, "YOLO_OFFLINE": "true"},
            )
    report(args)


if __name__ == "__main__":
    main()
