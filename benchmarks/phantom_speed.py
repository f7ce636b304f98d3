"""How fast is the phantom generated?

Images a second of one process, files included, at several sizes in interleaved rounds; then the same data set with one
and with more processes, as `meddet phantom` makes it, the start of the processes included.

    python benchmarks/phantom_speed.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

RESULTS = Path(__file__).parent / "results"


def one_process(imgsz: int, patients: int, first: int) -> tuple[float, float]:
    """Return images a second, by the clock and by processor time, of writing some patients."""
    from meddet_yolo.phantom import PRESETS
    from meddet_yolo.phantom.study import PatientPlan, Study
    from meddet_yolo.phantom.writer import make_patient

    study = Study(914, 0, imgsz, 2, 0.5, 0.125, 0.2, PRESETS["paper"].fov)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("images/train", "labels/train", "patients"):
            (Path(folder) / name).mkdir(parents=True)
        begun, begun_cpu = time.perf_counter(), time.process_time()
        for number in range(first, first + patients):
            make_patient(folder, study, PatientPlan(number, "train", 2))
        wall, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    return 2 * patients / wall, 2 * patients / cpu


def whole(patients: int, workers: int) -> float:
    """Return images a second of a whole data set."""
    from meddet_yolo.phantom import generate_phantom

    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        data = generate_phantom(Path(folder) / "data", patients, workers=workers)
        wall = time.perf_counter() - begun
        return len(list(data.parent.glob("images/*/*.png"))) / wall


def spread(values: list[float]) -> str:
    """Return median, smallest and largest."""
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patients", type=int, default=20, help="in a round of one process")
    parser.add_argument("--whole", type=int, default=100, help="patients of the whole data set; 0 leaves it out")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    args = parser.parse_args()
    import cv2

    cv2.setNumThreads(1)
    rates: dict[int, list[tuple[float, float]]] = {size: [] for size in args.sizes}
    one_process(256, 2, 0)  # imports and caches
    for number in range(args.rounds):
        for size in args.sizes:
            rates[size].append(one_process(size, args.patients, number * args.patients))
    wholes: dict[int, list[float]] = {workers: [] for workers in args.workers}
    for _ in range(args.rounds if args.whole else 0):
        for workers in args.workers:
            wholes[workers].append(whole(args.whole, workers))

    command = "python benchmarks/phantom_speed.py " + " ".join(sys.argv[1:])
    lines = [
        "# Speed of the phantom",
        "",
        f"Command: `{command.strip()}`",
        "",
        f"Machine: {describe_machine(('numpy', 'opencv-python'))}",
        "",
        f"Images a second, files written; {args.rounds} interleaved rounds, median [smallest, largest].",
        "",
        "| one process, side in pixels | by the clock | by processor time |",
        "|---:|---:|---:|",
        *(f"| {size} | {spread([r[0] for r in v])} | {spread([r[1] for r in v])} |" for size, v in rates.items()),
    ]
    if args.whole:
        lines += [
            "",
            f"| `meddet phantom patients={args.whole}`, processes | by the clock |",
            "|---:|---:|",
            *(f"| {workers} | {spread(v)} |" for workers, v in wholes.items()),
        ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "phantom_speed.md").write_text("\n".join(lines) + "\n")
    document: dict[str, Any] = {
        "command": command.strip(),
        "machine": describe_machine(("numpy", "opencv-python")),
        "one process": {
            size: {"clock": [r[0] for r in v], "processor": [r[1] for r in v]} for size, v in rates.items()
        },
        "whole": wholes,
    }
    (RESULTS / "phantom_speed.json").write_text(json.dumps(document, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
