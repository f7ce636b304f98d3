"""How long do all measures take, with intervals, after inference?

Makes as many images as the paper's data set has, with labelled boxes of six classes and detections as a detector leaves
them (some near the labels, many of little confidence), and evaluates them as `meddet evaluate` does.

    python benchmarks/evaluate_speed.py --images 1848 --extra 100 --rounds 1000
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

from meddet_yolo.evaluate.detections import Found, save_found
from meddet_yolo.evaluate.evaluation import evaluate

RESULTS = Path(__file__).parent / "results"
SIDE, CLASSES = 512, 6


def boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    corner = generator.uniform(0, 380, (count, 2))
    return np.hstack([corner, corner + generator.uniform(8, 120, (count, 2))])


def make(folder: Path, images: int, extra: int, seed: int) -> tuple[Path, list[Path]]:
    """Write a data set and the detections of two models; two images of each patient."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    first = folder / "images" / "0000.png"
    Image.new("L", (SIDE, SIDE)).save(first)
    found: list[list[Found]] = [[], []]
    rows = ["image,patient"]
    for number in range(images):
        name = f"{number:04d}.png"
        if number:
            os.link(first, folder / "images" / name)
        there = boxes(generator, generator.poisson(3.2))
        classes = generator.integers(0, CLASSES, len(there))
        centre, size = (there[:, :2] + there[:, 2:]) / 2 / SIDE, (there[:, 2:] - there[:, :2]) / SIDE
        lines = [
            f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}" for c, (x, y), (w, h) in zip(classes, centre, size, strict=True)
        ]
        (folder / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))
        rows.append(f"{name},p{number // 2}")
        for model, spread in zip(found, (4, 6), strict=True):
            near = there + generator.normal(0, spread, there.shape)
            near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
            more = boxes(generator, generator.poisson(extra))
            scores = np.concatenate([generator.beta(4, 2, len(near)), generator.beta(0.4, 8, len(more))])
            guess = np.concatenate([classes, generator.integers(0, CLASSES, len(more))])
            model.append(Found(name, np.vstack([near, more]), guess, scores))
    (folder / "patients.csv").write_text("\n".join(rows) + "\n")
    data = folder / "data.yaml"
    data.write_text(f"train: images\nval: images\nnames: {[f'class{i}' for i in range(CLASSES)]}\n")
    return data, [save_found(folder / f"{name}.npz", f) for name, f in zip(("a", "b"), found, strict=True)]


def megabytes() -> str:
    """Return the greatest memory so far."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1848)
    parser.add_argument("--extra", type=int, default=100, help="false alarms an image, on average")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    idle = megabytes()
    lines = ["| what | wall s | processor s | load of the machine |", "| --- | ---: | ---: | ---: |"]
    with tempfile.TemporaryDirectory() as temporary:
        data, files = make(Path(temporary), args.images, args.extra, args.seed)
        boxes_found, memory = 0, []
        for what, models in (("one model", files[:1]), ("two models and their difference", files)):
            wall, cpu = time.perf_counter(), time.process_time()
            result = evaluate(models, data, out=Path(temporary) / "out", rounds=args.rounds)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            boxes_found = result.models[0].boxes
            memory.append(megabytes())
            load = os.getloadavg()[0]  # above the number of cores, wall times are too long
            lines.append(f"| {what} | {wall:.1f} | {cpu:.1f} | {load:.1f} |")
            print(lines[-1], flush=True)
    head = (
        f"All measures of {args.images} images ({boxes_found} boxes found, {CLASSES} classes), {args.rounds} rounds; "
        f"reading labels and detections and writing the page included. Greatest memory {' and then '.join(memory)} MB, "
        f"of which PyTorch and Ultralytics take {idle} before anything is read."
    )
    tail = f"`python {shlex.join(['benchmarks/evaluate_speed.py', *sys.argv[1:]])}`, {describe_machine(('numpy',))}"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "evaluate_speed.md").write_text("\n".join([head, "", *lines, "", tail]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
