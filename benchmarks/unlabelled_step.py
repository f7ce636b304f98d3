"""What does a distillation step cost with as many images without labels as labelled ones?

Sets the real trainers up on generated images and runs their steps in turn, with and without, so that a drifting machine
hits all alike. A step is reading the batch with its augmentations, preparing it, forward, loss, backward and the
optimizers' step. The bound is 2.1: twice the images, and a twentieth for joining them.

    python benchmarks/unlabelled_step.py --clock cpu
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks
from distill_step import RESULTS, build, make_step, measure, write_data, write_teacher

BOUND = 2.1


def endless(loader: Any) -> Iterator[dict[str, Any]]:
    """Yield the batches of a data loader over and over."""
    while True:
        yield from loader


def reading(trainer: Any) -> Callable[[], None]:
    """Return a training step that reads its batch too."""
    batches = endless(trainer.train_loader)
    return lambda: make_step(trainer, next(batches))()


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="meddet11-n.yaml")
    parser.add_argument("--teacher", default="yolo11s")
    parser.add_argument("--methods", nargs="+", default=["meddet", "response", "cwd"])
    parser.add_argument("--imgsz", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_data(folder / "labelled", args.imgsz, 4 * args.batch)
        write_data(folder / "more", args.imgsz, 4 * args.batch)
        shutil.rmtree(folder / "more" / "images" / "val")
        for file in (folder / "more" / "images" / "train").iterdir():  # of other pixels than those of `labelled`
            turn(file)
        teachers = [write_teacher(folder, args.teacher)]
        steps = {}
        for method in args.methods:
            for label, extra in (("", {}), (", 1:1", {"unlabelled": str(folder / "more" / "images")})):
                options = {"teachers": teachers, "distill": method, **extra}
                steps[f"{method}{label}"] = reading(build(args, data, folder, f"{method}{len(extra)}", **options))
        times = measure(steps, args.rounds, args.device, args.clock)

    ratios = {
        method: [b / a for a, b in zip(times[method], times[f"{method}, 1:1"], strict=True)] for method in args.methods
    }
    clock = "processor" if args.clock == "cpu" else "wall"
    command = "python benchmarks/unlabelled_step.py " + " ".join(shlex.quote(a) for a in sys.argv[1:])
    lines = [
        "# Cost of a step with images without labels",
        "",
        f"Command: `{command.strip()}`",
        "",
        f"Machine: {describe_machine()}",
        "",
        f"Student {args.student}, teacher {args.teacher}, {args.imgsz} px, {args.batch} labelled images a batch and as "
        f"many without labels, {args.rounds} interleaved rounds of {clock} time, reading and augmentation included; "
        "median [smallest, largest].",
        "",
        f"| method | labelled alone, ms | with as many without labels, ms | ratio, round by round (at most {BOUND}) |",
        "|---|---|---|---|",
        *(
            f"| {method} | {spread(times[method])} | {spread(times[f'{method}, 1:1'])} | {spread(values, 2)} |"
            for method, values in ratios.items()
        ),
    ]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    stem = f"unlabelled_step_{'cpu' if args.device == 'cpu' else 'gpu'}"
    (RESULTS / f"{stem}.md").write_text("\n".join(lines) + "\n")
    document = {"command": command, "machine": describe_machine(), "milliseconds": times, "ratios": ratios}
    (RESULTS / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")


def turn(file: Path) -> None:
    """Turn a picture upside down."""
    import cv2

    cv2.imwrite(str(file), cv2.flip(cv2.imread(str(file)), 0))


def spread(values: list[float], digits: int = 0) -> str:
    """Write a median with the smallest and the largest value."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


if __name__ == "__main__":
    main()
