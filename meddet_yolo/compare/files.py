"""The files of a comparison's folder, which its processes agree on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["FOUND", "LOG", "PROGRESS", "REASON", "RESULT", "RUNS", "SPEC", "WEIGHTS", "read_json", "write_json"]

RUNS = "runs"  # one folder in it for each run, with:
SPEC = "run.json"  # what the run is
LOG = "log.txt"  # what its process printed
PROGRESS = "progress.json"  # how far it has come
REASON = "failed.txt"  # why it failed, in a line
WEIGHTS = "weights.pt"  # its model after the last epoch
FOUND = "found.npz"  # boxes of the images held out
RESULT = "result.json"  # what it came to; where this is, the run is finished


def read_json(file: Path) -> Any:
    """Read a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    unfinished = file.with_name(f"{file.name}.part")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, file)
