"""A run that takes milliseconds: it counts epochs, goes on where it was killed, and finds boxes that its name decides.

What its method asks for: `bad` fails, `killed` is killed once by itself in the middle.
"""

import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from filelock import FileLock


def main() -> int:
    run = Path(sys.argv[1])
    spec = json.loads((run / "run.json").read_text())
    with FileLock(run / "run.lock"):
        if (run / "result.json").is_file():
            return 0
        if spec["method"] == "bad":
            (run / "failed.txt").write_text("it is bad\n")
            return 1
        progress = run / "progress.json"
        done = json.loads(progress.read_text())["epoch"] if progress.is_file() else 0
        for epoch in range(done, spec["training"]["epochs"]):
            time.sleep(float(os.environ.get("STUB_SECONDS", "0.005")))
            if spec["method"] == "killed" and epoch == 1 and not (run / "was_killed").is_file():
                (run / "was_killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with (run.parent / "executed.txt").open("a") as file:
                file.write(f"{spec['name']} {epoch}\n")
            content = {"epoch": epoch + 1, "epochs": spec["training"]["epochs"], "seconds_per_epoch": 0.005}
            progress.with_suffix(".part").write_text(json.dumps(content))
            os.replace(progress.with_suffix(".part"), progress)
        data = (run / spec["data"]).parent
        images = sorted((data / "val.txt").read_text().split())
        patients = json.loads((data.parent / "folds.json").read_text())["patients"]
        rng = np.random.default_rng(zlib.crc32(spec["name"].encode()))
        true = np.tile(np.float32([[10, 10, 30, 30, 0], [40, 40, 60, 60, 1]]), (len(images), 1))
        found = np.concatenate([true[:, :4], rng.uniform(0, 1, (len(true), 1)), true[:, 4:]], 1).astype(np.float32)
        found[:, 2:4] += rng.uniform(0, 12, (len(true), 2))
        np.savez(
            run / "found.npz",
            images=np.array(images),
            patients=np.array([patients[image] for image in images]),
            sizes=np.full((len(images), 2), 64),
            detected=found,
            detected_counts=np.full(len(images), 2),
            true=true,
            true_counts=np.full(len(images), 2),
        )
        result = {"name": spec["name"], "seconds_per_step": 0.01, "peak_memory_bytes": 10**8, "parameters": 10**6}
        (run / "result.part").write_text(json.dumps(result))
        os.replace(run / "result.part", run / "result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
