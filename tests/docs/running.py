"""Running what stands in the pages' blocks, inside this process and on tiny data."""

from __future__ import annotations

import glob
import io
import logging
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from ultralytics.utils import LOGGER

from meddet_yolo import cli
from tests.docs.blocks import ROOT, Block

# Values that replace those of a command, and keys that are added to commands that lack them.
SMALLER = {"epochs": "1", "imgsz": "64", "patients": "4", "rounds": "20", "sigma": "[0,0.1]", "conf": "0.0001"}
ADDED = {
    "train": {"epochs": "1", "imgsz": "64", "batch": "4", "workers": "0", "plots": "False", "val": "False"},
    "val": {"imgsz": "64", "workers": "0", "plots": "False"},
    "predict": {"imgsz": "64", "conf": "0.0001", "max_det": "2"},  # what is found by who has learnt for one epoch
    "export": {"imgsz": "64"},
    "evaluate": {"imgsz": "64", "rounds": "20", "workers": "0"},
    "benchmark": {
        "imgsz": "64",
        "device": "cpu",
        "iterations": "2",
        "seconds": "0.1",
        "backends": "[pytorch,onnxruntime]",
    },
    "phantom": {"patients": "6", "imgsz": "64"},
}
# The same for Python examples, as patterns.
SMALLER_PYTHON = {
    r"\bepochs=\d+": "epochs=1, batch=4, workers=0, plots=False, val=False",
    r"\bimgsz=\d+": "imgsz=64",
    r"\bpatients=\d+": "patients=6",
    r"\bslices=\"all\"": 'slices="all", conf=0.0001, max_det=2',
    r"student\.engine\"": 'student.onnx"',
    r"split=\"test\"": 'split="test", rounds=20, imgsz=64, workers=0',
}


class Output(io.StringIO):
    """Text that is also passed on, so that pytest shows it where a test fails."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(text)
        return super().write(text)


def smaller(words: Sequence[str]) -> list[str]:
    """The same command on less: other values of keys that it has, and keys that it lacks."""
    if words[:2] == ["python", "docs/tutorial_data.py"]:
        return [*words, "6"]
    if words[0] != "meddet" or "resume=True" in words:
        return list(words)
    pairs = [word.partition("=") for word in words[2:]]
    given: dict[str, str | None] = {key: value if sign else None for key, sign, value in pairs}
    given.update({key: value for key, value in SMALLER.items() if key in given})
    for key, value in ADDED.get(words[1], {}).items():
        given.setdefault(key, value)
    return [*words[:2], *(key if value is None else f"{key}={value}" for key, value in given.items())]


def run_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run a command in this process; patterns are those of files, as in a shell. Returns exit code and output."""
    words = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    out = Output(sys.stdout)
    handler = logging.StreamHandler(out)  # its own holds the stream of the time when it was imported
    LOGGER.addHandler(handler)
    try:
        with redirect_stdout(out), redirect_stderr(out):
            code = _run(words, monkeypatch)
    finally:
        LOGGER.removeHandler(handler)
    return code, out.getvalue()


def _run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    if words[0] == "meddet":
        return cli.main(words[1:])
    if words[0] == "ls":
        print("  ".join(sorted(path.name for path in Path(words[1]).iterdir())))
        return 0
    if words[0] != "python":
        raise AssertionError(f"nothing here runs {words[0]!r}: teach it, or list the command as one that is not run")
    module = words[1] == "-m"
    monkeypatch.setattr("sys.argv", words[2:] if module else words[1:])
    try:
        if module:
            runpy.run_module(words[2], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def run_python(block: Block, names: Mapping[str, Any]) -> str:
    """Run a Python example on less; returns what it prints."""
    text = block.text
    for pattern, replacement in SMALLER_PYTHON.items():
        text = re.sub(pattern, replacement, text)
    out = Output(sys.stdout)
    with redirect_stdout(out):
        exec(compile(text, str(block), "exec"), {"__name__": "__main__", **names})
    return out.getvalue()


def shown(block: Block, command: Sequence[str]) -> str:
    """What a console block shows as the output of its command, in one line."""
    import shlex

    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        if shlex.split(line) == list(command):
            return " ".join(output.split())
    return ""
