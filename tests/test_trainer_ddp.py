from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_two_processes_distil_and_stay_equal(tmp_path: Path, tiny_data: Path, tiny_teachers: list[Path]) -> None:
    settings = {
        "model": "meddet11-n.yaml",
        "data": str(tiny_data),
        "teachers": [str(path) for path in tiny_teachers],
        "imgsz": 64,
        "batch": 4,
        "epochs": 2,
        "nbs": 8,
        "device": "cpu",
        "optimizer": "AdamW",
        "plots": False,
        "val": False,
        "project": str(tmp_path),
        "name": "run",
        "exist_ok": True,
    }
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone",
         str(Path(__file__).parent / "_ddp_worker.py"), json.dumps(settings), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for part in ("student", "distiller", "discriminator"):
        assert first[part] == second[part], f"the {part}'s parameters differ between ranks"
    assert first["losses"] != second["losses"], "both ranks saw the same batches"
    for losses in (first["losses"], second["losses"]):
        assert all(step["dist_loss"] > 0 and step["adv_loss"] > 0 for step in losses[1:])
    assert first["disc_steps"] == second["disc_steps"] > 1  # one of them with a loss that is NaN in one process
    assert (tmp_path / "run" / "weights" / "last.pt").exists()
