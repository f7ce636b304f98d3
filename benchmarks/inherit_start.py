"""How good is a student right after it has inherited from its teacher, before any training?

Students of the teacher's layout and smaller widths, with channels chosen evenly and by importance, with and without
the correction of scales, with inherited batch statistics and with those measured anew on a few training images.

    python benchmarks/inherit_start.py --teacher best.pt --data DATA.yaml --imgsz 192
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import shlex
import statistics
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import LOGGER

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

import meddet_yolo  # noqa: F401  # its layers in model YAMLs
from meddet_yolo.distill.inherit import CHANNELS, inherit, recalibrate

RESULTS = Path(__file__).parent / "results"
BATCH = 16
MEASURES = ("loss", "box", "cls", "dfl", "mAP50-95", "mAP50")


class Measurement:
    """Detection loss and average precision of models on one data set."""

    def __init__(self, data: str, imgsz: int) -> None:
        self.data = data
        self.args = get_cfg(overrides={"imgsz": imgsz, "task": "detect", "data": data})
        self.splits = check_det_dataset(data)
        self.val = list(self.batches("val"))

    def batches(self, split: str, number: int | None = None, seed: int = 0) -> Any:
        """Yield batches of all images of a split, or of a random choice of them; not augmented."""
        dataset = build_yolo_dataset(self.args, self.splits[split], BATCH, self.splits, mode="val", rect=False)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:number].tolist()
        for start in range(0, len(order), BATCH):
            batch = dataset.collate_fn([dataset[i] for i in order[start : start + BATCH]])
            yield {**batch, "img": batch["img"].float() / 255}

    @torch.no_grad()
    def __call__(self, model: DetectionModel) -> dict[str, float]:
        """Return the loss an image, its parts, and the average precision on the validation split."""
        model = deepcopy(model).eval()
        model.args, model.names, model.criterion = self.args, self.splits["names"], None
        parts = sum(model.loss(batch, model(batch["img"]))[0] for batch in self.val)
        parts = parts / sum(len(batch["img"]) for batch in self.val)
        with tempfile.TemporaryDirectory() as folder:
            settings = {"data": self.data, "imgsz": self.args.imgsz, "batch": BATCH, "device": "cpu", "plots": False}
            validator = DetectionValidator(args={**settings, "workers": 0, "project": folder, "verbose": False})
            found = validator(model=model)
        values = [float(parts.sum()), *parts.tolist(), *(found[f"metrics/{m}(B)"] for m in MEASURES[-2:])]
        return dict(zip(MEASURES, map(float, values), strict=True))


def build(teacher: DetectionModel, width: float, seed: int) -> DetectionModel:
    """Return a student of the teacher's layout and depth with another width, at random."""
    config = deepcopy(teacher.yaml)
    depth, _, most = config["scales"][config["scale"]]
    config.update(scales={"n": [depth, width, most]}, scale="n")
    torch.manual_seed(seed)
    return DetectionModel(config, nc=config["nc"], verbose=False)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every student at its start; seeds choose the random start and the images for the statistics."""
    teacher, _ = load_checkpoint(args.teacher)
    teacher = teacher.float()
    measurement = Measurement(args.data, args.imgsz)
    rows = [{"student": "teacher", "parameters": _size(teacher), "runs": [measurement(teacher)]}]
    starts: list[tuple[str, bool]] = [("random", False), *itertools.product(CHANNELS, (False, True))]
    for width, (channels, rescale), anew in itertools.product(args.widths, starts, (False, True)):
        runs = []
        for seed in args.seeds:
            student = build(teacher, width, seed)
            if channels != "random":
                report = inherit(student, teacher, channels=channels, rescale=rescale)
                assert report.share == 1.0, str(report)  # else the rows would compare different things
            if anew:
                recalibrate(student, (b["img"] for b in measurement.batches("train", args.images, seed)))
            runs.append(measurement(student))
            if channels != "random" and not anew:
                break  # nothing in it is random
        name = {"student": f"width {width:g}", "parameters": _size(student), "channels": channels}
        rows.append({**name, "rescale": rescale, "statistics anew": anew, "runs": runs})
        print(_line(rows[-1]), flush=True)
    return rows


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _line(row: dict[str, Any]) -> str:
    cells = [row["student"], f"{row['parameters'] / 1e6:.2f} M", row.get("channels", "")]
    random = row.get("channels", "random") == "random"
    cells += ["" if random else _yes(row["rescale"]), _yes(row["statistics anew"]) if "channels" in row else ""]
    for measure in MEASURES:
        values = [run[measure] for run in row["runs"]]
        spread = (
            f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 and measure in ("loss", "mAP50-95") else ""
        )
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    return "| " + " | ".join(cells) + " |"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="checkpoint of the teacher")
    parser.add_argument("--data", required=True, help="YAML of a data set in YOLO format")
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 0.125])
    parser.add_argument("--images", type=int, default=64, help="training images that statistics are measured on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    LOGGER.setLevel(logging.ERROR)
    rows = measure(args)
    given = [Path(a).name if "/" in a else a for a in sys.argv[1:]]
    command = f"python benchmarks/inherit_start.py {shlex.join(given)}"
    head = ("student", "parameters", "channels", "scales corrected", "statistics anew", *MEASURES)
    lines = [
        "# A student right after inheriting, before any training",
        "",
        f"Command: `{command}`",
        "",
        f"Machine: {describe_machine()}",
        "",
        f"Teacher {Path(args.teacher).stem}, {args.imgsz} px, statistics anew on {args.images} training images. Loss "
        "an image and its weighted parts, and average precision, on the validation split. Mean over the seeds "
        f"{', '.join(map(str, args.seeds))} (random start, choice of images), smallest and largest in brackets.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|---:|---|---|---|" + "---:|" * len(MEASURES),
        *map(_line, rows),
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"command": command, "machine": describe_machine(), "rows": rows}
    (args.out / "inherit_start.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.out / "inherit_start.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
