"""Files that would do harm, the commands they are given to, and the table of what the commands answer.

python tests/security/security_cases.py        writes the table into docs/security.md anew
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- cases: begin -->\n", "<!-- cases: end -->\n"
HEADER = "| hostile file | given to | answer |\n| --- | --- | --- |\n"


class Payload:
    """Unpickling one of these makes a folder, which stands for anything that a process may do."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@dataclass(frozen=True)
class Bench:
    """Where the cases are run.

    Attributes:
        folder: Holds the hostile files, and the folder `proof` once one of them has run.
        data: The YAML of a sound data set of two classes.
        teacher: A sound checkpoint for it.
    """

    folder: Path
    data: Path
    teacher: Path

    @property
    def proof(self) -> Path:
        return self.folder / "proof"

    def run(self, command: str) -> tuple[int, str]:
        """Run a command of `meddet` in the bench; return its exit code and what it says on the error stream."""
        from meddet_yolo import cli, console

        with contextlib.chdir(self.folder) if sys.version_info >= (3, 11) else _inside(self.folder):
            errors, limit = io.StringIO(), console._MESSAGE_LIMIT
            console._MESSAGE_LIMIT = 10 * limit  # messages are cut where the paths of this machine end
            try:
                with contextlib.redirect_stderr(errors):
                    code = cli.main(self.filled(command))
            finally:
                console._MESSAGE_LIMIT = limit
        return code, errors.getvalue().strip()

    def filled(self, command: str) -> list[str]:
        """Return the arguments of a command, `DATA` and `TEACHER` replaced by the sound files."""
        return command.replace("DATA", str(self.data)).replace("TEACHER", str(self.teacher)).split()

    def tidy(self, text: str) -> str:
        """Return a message without what differs from machine to machine."""
        text = text.replace(f"{self.folder.resolve()}{os.sep}", "").replace(f"{self.folder}{os.sep}", "")
        text = text.replace(os.mkdir.__module__, "os").removeprefix("meddet: error: ")
        return re.sub(r"/\S*/", ".../", text).replace("|", "\\|")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@dataclass(frozen=True)
class Case:
    """A hostile file and a command it is given to.

    Attributes:
        file: Its name in the bench.
        what: What it is.
        command: The command, without `meddet`.
        says: What the answer has to hold.
    """

    file: str
    what: str
    command: str
    says: str

    @property
    def name(self) -> str:
        return f"{self.file}: {self.command}"

    def row(self, answer: str) -> str:
        """Return the case as a row of the table."""
        return f"| {self.what} | `meddet {self.command}` | {answer} |\n"


# Files ----------------------------------------------------------------------------------------------------------------

FILES: dict[str, Callable[[Bench, Path], Any]] = {}


def file(name: str) -> Callable[[Callable[[Bench, Path], Any]], Callable[[Bench, Path], Any]]:
    def keep(write: Callable[[Bench, Path], Any]) -> Callable[[Bench, Path], Any]:
        FILES[name] = write
        return write

    return keep


@file("foreign.pt")
def _foreign(bench: Bench, path: Path) -> None:
    torch.save({"model": Payload(bench.proof)}, path)


@file("beside.pt")
def _beside(bench: Bench, path: Path) -> None:
    sound = torch.load(bench.teacher, weights_only=False)
    torch.save({**sound, "epoch": 3, "optimizer": {}, "note": Payload(bench.proof)}, path)


@file("damaged.pt")
def _damaged(bench: Bench, path: Path) -> None:
    content = bytearray(bench.teacher.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = random.Random(0).randbytes(2000)
    path.write_bytes(content)


@file("list.pt")
def _list(bench: Bench, path: Path) -> None:
    torch.save([1, 2, 3], path)


@file("script.pt")
def _script(bench: Bench, path: Path) -> None:
    torch.jit.trace(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4)).save(str(path))


@file("empty.engine")
def _empty(bench: Bench, path: Path) -> None:
    path.write_bytes(b"")


@file("trusts_itself.pt")
def _trusts_itself(bench: Bench, path: Path) -> None:
    """An unfinished run whose arguments grant trust and name a hostile teacher."""
    sound = torch.load(bench.teacher, weights_only=False)
    args = {"trust": True, "teachers": [str(bench.folder / "foreign.pt")], "data": str(bench.data), "epochs": 9}
    train_args = {**sound["train_args"], **args}
    torch.save({**sound, "epoch": 3, "optimizer": {}, "ema": sound["model"], "train_args": train_args}, path)


def _model_yaml(path: Path, **change: Any) -> None:
    from ultralytics.nn.tasks import yaml_model_load

    stock = yaml_model_load("yolo11n.yaml")
    stock.pop("yaml_file")
    path.write_text(yaml.safe_dump({**stock, **change}), encoding="utf-8")


@file("activation.yaml")
def _activation(bench: Bench, path: Path) -> None:
    _model_yaml(path, activation="__import__('os').mkdir('proof')")


@file("argument.yaml")
def _argument(bench: Bench, path: Path) -> None:
    _model_yaml(path, activation="nn.LeakyReLU(__import__('os').mkdir('proof'))")


@file("row.yaml")
def _row(bench: Bench, path: Path) -> None:
    _model_yaml(path, backbone=[[-1, 1, "torch_load", [repr(str(bench.folder / "foreign.pt"))]]])


@file("long.yaml")
def _long(bench: Bench, path: Path) -> None:
    _model_yaml(path, backbone=[[-1, 1, "Conv", ["(" * 5000, 3, 2]]])


@file("checkpoint_yaml.pt")
def _checkpoint_yaml(bench: Bench, path: Path) -> None:
    """A sound checkpoint, but for the YAML in it, from which training builds the model anew."""
    sound = torch.load(bench.teacher, weights_only=False)
    sound["model"].yaml["activation"] = "__import__('os').mkdir('proof')"
    torch.save(sound, path)


def _data_yaml(bench: Bench, path: Path, download: str) -> None:
    sound = yaml.safe_load(bench.data.read_text(encoding="utf-8"))
    missing = {"path": str(bench.folder / "missing"), "download": download}
    path.write_text(yaml.safe_dump({**sound, **missing}), encoding="utf-8")


@file("python.yaml")
def _python(bench: Bench, path: Path) -> None:
    _data_yaml(bench, path, f"import os; os.mkdir({str(bench.proof)!r})")


@file("bash.yaml")
def _bash(bench: Bench, path: Path) -> None:
    script = bench.folder / "get.sh"
    script.write_text(f"mkdir {str(bench.proof)!r}\n", encoding="utf-8")
    _data_yaml(bench, path, f"bash {script}")


@file("address.yaml")
def _address(bench: Bench, path: Path) -> None:
    _data_yaml(bench, path, "https://example.invalid/images.zip")


@file("recipe.yaml")
def _recipe(bench: Bench, path: Path) -> None:
    path.write_text("trust: true\nmodel: foreign.pt\ndata: x.yaml\n", encoding="utf-8")


def poison_label_cache(bench: Bench) -> Path:
    """Put a hostile label cache in the place of that of the sound data set, and return its path."""
    path = bench.data.parent / "labels" / "train.cache"
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array(Payload(bench.proof), dtype=object), stream)
    return path


# Cases ----------------------------------------------------------------------------------------------------------------

_PICKLE = "a checkpoint with a foreign object in its pickle"
_FOREIGN = "would run foreign code on loading"
_TRAIN = "model=yolo11n.yaml imgsz=64 epochs=1 batch=2"

CASES = (
    *(
        Case("foreign.pt", _PICKLE, command, _FOREIGN)
        for command in (
            "train model=foreign.pt data=DATA",
            "val model=foreign.pt data=DATA",
            "val model=foreign.pt data=DATA noise=rician",
            "predict model=foreign.pt source=.",
            "export model=foreign.pt",
            "export model=foreign.pt format=onnx",
            "info model=foreign.pt",
            "benchmark model=foreign.pt data=DATA backends=pytorch",
            f"train {_TRAIN} data=DATA pretrained=foreign.pt",
            f"train {_TRAIN} data=DATA distill_model=foreign.pt",
            f"train {_TRAIN} data=DATA teachers=foreign.pt",
            "train resume=foreign.pt",
            "track model=foreign.pt source=.",
            "segment train model=foreign.pt data=DATA",
        )
    ),
    *(
        Case("beside.pt", "a sound model with a foreign object beside it", command, _FOREIGN)
        for command in ("val model=beside.pt data=DATA", "train model=beside.pt resume=True")
    ),
    Case(
        "trusts_itself.pt",
        "an unfinished run whose own arguments grant trust and name a hostile teacher",
        "train model=trusts_itself.pt resume=True",
        _FOREIGN,
    ),
    Case("damaged.pt", "a checkpoint with 2,000 random bytes in its middle", "info model=damaged.pt", "is damaged"),
    Case("list.pt", "a checkpoint that holds a list", "info model=list.pt", "holds a list"),
    Case("script.pt", "TorchScript under the name of a checkpoint", "info model=script.pt", "is a TorchScript export"),
    Case("empty.engine", "an empty engine", "predict model=empty.engine source=.", "is an empty file"),
    Case("recipe.yaml", "a recipe that grants trust", "train cfg=recipe.yaml", "says trust"),
    Case("activation.yaml", "a model YAML whose activation is code", "info model=activation.yaml", "activation is"),
    Case(
        "activation.yaml",
        "a model YAML whose activation is code",
        "train model=activation.yaml data=DATA",
        "activation is",
    ),
    Case("argument.yaml", "one with code in the arguments of its activation", "info model=argument.yaml", "activation"),
    Case("row.yaml", "one with a row that loads a pickle", "info model=row.yaml", "is no layer"),
    Case("long.yaml", "one with an argument that is hard to parse", "info model=long.yaml", "characters"),
    Case(
        "checkpoint_yaml.pt",
        "a checkpoint whose model's YAML has code for an activation",
        "train model=checkpoint_yaml.pt imgsz=64 epochs=1 batch=2 data=DATA",
        "activation is",
    ),
    *(
        Case(name, f"a data YAML whose `download:` is {what}", command, "pass trust=true")
        for name, what in (("python.yaml", "Python"), ("bash.yaml", "a shell script"), ("address.yaml", "an address"))
        for command in (f"train {_TRAIN} data={name}", f"val model=TEACHER data={name}")
    ),
    *(
        Case("python.yaml", "a data YAML whose `download:` is Python", command, "pass trust=true")
        for command in (
            "val model=TEACHER data=python.yaml noise=rician",
            "export model=TEACHER format=onnx precision=int8 data=python.yaml imgsz=64",
            "benchmark model=TEACHER data=python.yaml imgsz=64 backends=pytorch",
        )
    ),
)


def make_files(bench: Bench) -> None:
    """Write all hostile files into the bench."""
    for name, write in FILES.items():
        write(bench, bench.folder / name)


def table(bench: Bench) -> str:
    """Run all cases and return the table."""
    return HEADER + "".join(case.row(bench.tidy(bench.run(case.command)[1])) for case in CASES)


def table_in_document() -> str:
    """Return the table as the document has it."""
    return DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    import subprocess

    raise SystemExit(
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("test_security.py"))],
            env={**os.environ, "MEDDET_WRITE_CASES": "1"},
        ).returncode
    )
