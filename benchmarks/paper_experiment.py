"""The MedDet paper's experiment: three GFL teachers, the student alone, the student distilled from them.

Trains the teachers (GFL with ResNet-152, -101 and -50), GFL MobileNetV2 with nmODE² head alone and, by the recipe
`cfg/distill/paper.yaml`, with the three teachers; on request more detectors for comparison: the paper's others, and
YOLO students alone and distilled from the same teachers. Then all are validated and timed on the same images. Every run
is a process of its own with a log; finished runs are skipped and interrupted ones go on, so the command can be repeated
until it is done.

    python benchmarks/paper_experiment.py --preset full --data DATA.yaml --out runs/paper --device 0
    python benchmarks/paper_experiment.py --preset small --out runs/paper-small

`small` is for a CPU: 192 px, few images and epochs, on drawn spines where no data set is given. It shows that the
experiment runs, not what the method gains.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

RESULTS = Path(__file__).parent / "results"
TEACHERS = ("gfl-resnet152", "gfl-resnet101", "gfl-resnet50")
STUDENT = "meddet-gfl-mobilenetv2"
OTHERS = ("gfl-mobilenetv2", "gfl-mobilenetv2-1.4", "gfl-efficientnet-b0", "gfl-efficientnet-b1")
OTHERS += ("gfl-shufflenet", "gfl-shufflenetv2")
PAPER = {  # mAP in per cent and recall of the paper's table, on CDH-1848
    "gfl-resnet152": (86.1, 0.976),
    "gfl-resnet101": (85.8, 0.974),
    "gfl-resnet50": (85.6, 0.970),
    "distilled": (85.5, 0.972),
    "gfl-mobilenetv2": (80.8, 0.976),
    "gfl-mobilenetv2-1.4": (81.0, 0.975),
    "gfl-efficientnet-b0": (80.8, 0.976),
    "gfl-efficientnet-b1": (81.0, 0.975),
    "gfl-shufflenet": (75.0, 0.964),
    "gfl-shufflenetv2": (77.8, 0.966),
}
PRESETS: dict[str, dict[str, Any]] = {
    "full": {"imgsz": 512, "epochs": 100, "teacher_epochs": 100, "batch": 8, "device": "0"},
    "small": {"imgsz": 192, "epochs": 20, "teacher_epochs": 10, "batch": 2, "device": "cpu"},
}
SMALL_PHANTOM = {"preset": "tiny", "patients": 28, "seed": 0, "imgsz": 192, "val_fraction": 0.25, "test_fraction": 0.0}


def plan(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return every run's name and what sets it apart from the shared recipe."""
    teachers = [str(weights(args, name)) for name in TEACHERS]
    runs: dict[str, dict[str, Any]] = {
        name: {"model": f"{name}.yaml", "teachers": [], "epochs": args.teacher_epochs} for name in TEACHERS
    }
    runs["alone"] = {"model": f"{STUDENT}.yaml", "teachers": []}
    runs["distilled"] = {"model": f"{STUDENT}.yaml", "teachers": teachers}
    for name in OTHERS if args.others else ():
        runs[name] = {"model": f"{name}.yaml", "teachers": []}
    for model in args.yolo:
        runs[f"{Path(model).stem}-alone"] = {"model": model, "teachers": []}
        runs[f"{Path(model).stem}-distilled"] = {"model": model, "teachers": teachers}
    return runs


def weights(args: argparse.Namespace, name: str) -> Path:
    """Return the checkpoint that a run leaves."""
    return Path(args.out).resolve() / name / "weights" / "best.pt"


def train_one(args: argparse.Namespace, name: str) -> None:
    """Train one run, or go on with it, and note what it took."""
    import torch
    import yaml

    import meddet_yolo.cfg
    from meddet_yolo import MedDet

    torch.set_num_threads(args.threads or torch.get_num_threads())
    recipe = yaml.safe_load((Path(meddet_yolo.cfg.__file__).parent / "distill" / "paper.yaml").read_text())
    settings = {
        **recipe,
        "data": str(Path(args.data).resolve()),
        "imgsz": args.imgsz,
        "epochs": args.epochs,
        "batch": args.batch,
        "nbs": args.batch,
        "device": args.device,
        "seed": args.seed,
        "amp": args.device != "cpu",
        "channels_last": args.device == "cpu",
        "workers": 0 if args.device == "cpu" else 8,
        "distill_warmup": min(recipe["distill_warmup"], args.epochs / 4),
        "plots": False,
        "project": str(Path(args.out).resolve()),
        "name": name,
        "exist_ok": True,
        **plan(args)[name],
    }
    model_file = settings.pop("model")
    last = weights(args, name).with_name("last.pt")
    if not last.exists():
        MedDet(model_file).train(**settings)
    elif torch.load(last, map_location="cpu", weights_only=False)["optimizer"] is not None:  # our own file, unfinished
        MedDet(str(last)).train(resume=True)
    rows = list(csv.DictReader((Path(args.out) / name / "results.csv").open()))
    times = [float(row["time"]) for row in rows]
    result = {
        "run": name,
        "epochs": len(rows),
        "seconds per epoch": statistics.median(b - a for a, b in itertools.pairwise([0.0, *times])),
        "box_loss": [float(row["train/box_loss"]) for row in rows],
    }
    (Path(args.out) / name / "result.json").write_text(json.dumps(result, indent=2))


def report(args: argparse.Namespace) -> None:
    """Validate and time all detectors on the same images; write table, JSON and a picture of their boxes."""
    from ultralytics import YOLO

    from meddet_yolo.evaluate import report as side_by_side
    from meddet_yolo.evaluate.info import measure_size

    names = [name for name in plan(args) if weights(args, name).is_file()]
    models = {name: YOLO(weights(args, name)) for name in names}
    sizes = {name: measure_size(model.model, args.imgsz) for name, model in models.items()}
    reports = side_by_side.compare(
        models,
        args.data,
        imgsz=args.imgsz,
        device=args.device,
        rounds=args.rounds,
        batch=args.batch,
        plots=False,
        verbose=False,
        project=args.out,
        workers=0,
    )
    runs = {name: json.loads((Path(args.out) / name / "result.json").read_text()) for name in names}
    lines = [
        "# The paper's experiment" + (", in small" if args.preset == "small" else ""),
        "",
        f"Command: `{args.command}`",
        "",
        f"Machine: {describe_machine()}",
        "",
        f"Data: {args.described}. {args.imgsz} px, batch {args.batch}, {args.teacher_epochs} epochs for the teachers, "
        f"{args.epochs} for the others, seed {args.seed}. `best.pt` is chosen on the same validation split, for all "
        "runs alike. Multiply-adds are of convolutions and matrix products at this size. The paper's figures are of "
        "another data set (CDH-1848, 512 px) and stand here for orientation.",
        "",
        "| detector | parameters (M) | multiply-adds (G) | mAP50-95 | mAP50 | recall | ms/image | s/epoch "
        "| paper: mAP, recall |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in reports:
        paper = PAPER.get(r.name)
        cells = [
            r.name,
            f"{sizes[r.name].parameters / 1e6:.2f}",
            f"{sizes[r.name].multiply_adds / 1e9:.2f}",
            *(f"{value:.3f}" for value in (r.map50_95, r.map50, r.recall)),
            f"{r.ms_per_image:.1f}",
            f"{runs[r.name]['seconds per epoch']:.1f}",
            f"{paper[0]:.1f}, {paper[1]:.3f}" if paper else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if args.preset == "small":
        lines += ["", "So short a training ranks nothing: it shows that the experiment runs from end to end."]
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"paper_experiment_{args.preset}"
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    side_by_side.write_json(
        reports,
        stem.with_suffix(".json"),
        command=args.command,
        machine=describe_machine(),
        data=args.described,
        runs=list(runs.values()),
    )
    draw(args, models)
    print("\n".join(lines))


def draw(args: argparse.Namespace, models: dict[str, Any]) -> None:
    """Draw the boxes of the labels and of the experiment's detectors side by side."""
    from meddet_yolo.evaluate import report as side_by_side

    files = side_by_side.split_images(args.data)
    rows = []
    for file in files[:: max(1, len(files) // 3)][:3]:
        image = side_by_side.read_image(file)
        columns = {"ground truth": side_by_side.labelled_boxes(file, image.shape)}
        for name in ("gfl-resnet50", "alone", "distilled"):
            columns[name] = side_by_side.predicted_boxes(
                models[name], image, imgsz=args.imgsz, device=args.device, conf=args.conf
            )
        rows.append((image, columns))
    names = models["distilled"].names
    side_by_side.write_image(Path(args.out) / "boxes.png", side_by_side.draw_grid(rows, names))


def main() -> None:
    """Parse the arguments and do what is left to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="full")
    parser.add_argument("--data", help="data set YAML; small draws one where none is given")
    parser.add_argument("--out", required=True, help="folder of the runs")
    for key, kind in (("imgsz", int), ("epochs", int), ("teacher_epochs", int), ("batch", int), ("device", str)):
        values = ", ".join(f"{name} {preset[key]}" for name, preset in PRESETS.items())
        parser.add_argument(f"--{key.replace('_', '-')}", type=kind, help=f"by default the preset's: {values}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--others", action="store_true", help="also the paper's other detectors, alone")
    parser.add_argument("--yolo", nargs="*", default=[], help="YOLO students, alone and distilled: meddet-n.yaml ...")
    parser.add_argument("--rounds", type=int, default=5, help="how often each image is timed")
    parser.add_argument("--conf", type=float, default=0.25, help="confidence of the boxes in the picture")
    parser.add_argument("--threads", type=int, default=0, help="threads of a CPU run")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    for key, value in PRESETS[args.preset].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.command = "python benchmarks/paper_experiment.py " + " ".join(
        shlex.quote(Path(a).name if "/" in a else a) for a in sys.argv[1:]
    )
    args.described = Path(args.data).parent.name if args.data else "the phantom (`meddet phantom`)"
    Path(args.out).mkdir(parents=True, exist_ok=True)
    if not args.data:
        if args.preset == "full":
            parser.error("--data is needed for the full experiment")
        args.data = str(Path(args.out) / "phantom" / "data.yaml")
        if not Path(args.data).is_file():
            from meddet_yolo.phantom import generate_phantom

            generate_phantom(out=str(Path(args.out) / "phantom"), **SMALL_PHANTOM)
    if args.run:
        train_one(args, args.run)
        return
    for name in () if args.report_only else plan(args):
        if (Path(args.out) / name / "result.json").exists():
            print(f"{name}: done before")
            continue
        log = Path(args.out) / f"{name}.log"
        print(f"{name}: training, log in {log}", flush=True)
        with log.open("a") as stream:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--run", name],
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            sys.exit(f"{name} failed with exit code {done.returncode}; see {log}. The same command goes on from there.")
    report(args)


if __name__ == "__main__":
    main()
