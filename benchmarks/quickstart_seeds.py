"""Is the quickstart's distilled student ahead of the student alone, whatever the seed?

Runs the quickstart once a seed, each in a process of its own with one thread, and lays their tables side by side. A
seed changes the data and the trainings; the validation split is small, so a single seed ranks nothing. A run that was
interrupted goes on.

    python benchmarks/quickstart_seeds.py --out FOLDER --seeds 5 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _machine import describe_machine  # a sibling file of the benchmarks

RESULTS = Path(__file__).parent / "results"
ALONE, DISTILLED = "student alone", "student distilled"


def run(seed: int, out: Path) -> dict[str, Any]:
    """Run the quickstart with one seed, or read what an earlier run found."""
    folder = out / f"seed{seed}"
    command = [sys.executable, "-m", "meddet_yolo.cli", "quickstart", f"out={folder}", f"seed={seed}"]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"seed{seed}.log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **threads}, check=True)
    models = json.loads((folder / "report.json").read_text())["models"]
    scores = {model["name"]: model["map50_95"] for model in models}
    inherited = json.loads((folder / "quickstart.json").read_text())["inherited"]["student-distilled"]
    return {"seed": seed, "map50_95": scores, "inherited": inherited}


def write(rows: list[dict[str, Any]], command: str) -> None:
    """Write the results as JSON and as a table."""
    machine = describe_machine()
    scores = [row["map50_95"] for row in rows]
    gains = [score[DISTILLED] - score[ALONE] for score in scores]
    ahead = sum(gain > 0 for gain in gains)
    (RESULTS / "quickstart_seeds.json").write_text(
        json.dumps({"command": command, "machine": machine, "ahead": ahead, "runs": rows}, indent=1) + "\n"
    )
    names = list(scores[0])
    lines = [
        "# The quickstart with several seeds",
        "",
        f"`{command}`  ",
        f"{machine}; one thread a run",
        "",
        "mAP50-95 on the validation split of each seed's own generated data; the teachers see the same data.",
        "",
        "| seed | " + " | ".join(names) + " | gain |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for row, score, gain in zip(rows, scores, gains, strict=True):
        cells = [f"{score[name]:.3f}" for name in names]
        lines.append(f"| {row['seed']} | {' | '.join(cells)} | {gain:+.3f} |")
    middle = [statistics.median(score[name] for score in scores) for name in names]
    lines.append(
        f"| median | {' | '.join(f'{value:.3f}' for value in middle)} | {statistics.median(gains):+.3f} |",
    )
    lines += [
        "",
        f"The distilled student is ahead of the student alone in {ahead} of {len(rows)} seeds, "
        f"by {min(gains):+.3f} to {max(gains):+.3f}. The first seed's: {rows[0]['inherited'] or 'inherited nothing'}.",
        "",
    ]
    (RESULTS / "quickstart_seeds.md").write_text("\n".join(lines))
    print("\n".join(lines))


def main() -> None:
    """Run all seeds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda seed: run(seed, args.out), range(args.seeds)))
    write(rows, f"python benchmarks/quickstart_seeds.py --out FOLDER --seeds {args.seeds} --jobs {args.jobs}")


if __name__ == "__main__":
    main()
