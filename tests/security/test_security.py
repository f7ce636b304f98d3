"""No file runs code unless it is trusted: every case of docs/security.md, and that the document tells the truth."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from ultralytics import YOLO

from meddet_yolo import MedDet, load_detector
from meddet_yolo.data.dataset import MedDetDataset
from meddet_yolo.registry import is_trusted, trusting
from tests.security import security_cases as cases
from tests.security.security_cases import CASES, Bench, Case

ANSWERS: dict[str, str] = {}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teachers: list[Path]) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    shutil.copytree(tiny_data.parent, folder / "data")
    made = Bench(folder, folder / "data" / tiny_data.name, tiny_teachers[0])
    cases.make_files(made)
    return made


@pytest.fixture(autouse=True)
def _no_proof(bench: Bench) -> Iterator[None]:
    yield
    if bench.proof.is_dir():
        bench.proof.rmdir()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_is_refused_in_one_line(bench: Bench, case: Case) -> None:
    before = sorted(bench.folder.rglob("*"))
    code, line = bench.run(case.command)
    ANSWERS[case.name] = bench.tidy(line)
    assert not bench.proof.exists(), "it ran"
    assert code != 0
    assert len(line.splitlines()) == 1 and case.says in line
    if not os.environ.get("MEDDET_WRITE_CASES"):
        assert case.row(ANSWERS[case.name]) in cases.table_in_document(), "the table in docs/security.md is another"
    if not case.command.startswith("benchmark"):  # which reports what failed
        new = [path for path in sorted(bench.folder.rglob("*")) if path not in before]
        assert [path.suffix for path in new] in ([], [".cache"]), "a refused run leaves nothing"


def test_the_table_has_a_row_for_each_case() -> None:
    assert len(cases.table_in_document().strip().splitlines()) == len(cases.HEADER.strip().splitlines()) + len(CASES)


def test_the_table_is_what_the_commands_answer() -> None:
    if len(ANSWERS) < len(CASES):
        pytest.skip("the cases above were not all run")
    made = cases.HEADER + "".join(case.row(ANSWERS[case.name]) for case in CASES)
    if os.environ.get("MEDDET_WRITE_CASES"):
        before, begin, rest = cases.DOCUMENT.read_text(encoding="utf-8").partition(cases.BEGIN)
        _, end, after = rest.partition(cases.END)
        cases.DOCUMENT.write_text(f"{before}{begin}{made}{end}{after}", encoding="utf-8")
    assert cases.table_in_document() == made, "python tests/security/security_cases.py writes it anew"


# With trust, all of it runs: the cases above would notice.


@pytest.mark.parametrize(
    "command",
    [
        "info model=foreign.pt trust=true",
        "val model=foreign.pt data=DATA trust",
        "train resume=trusts_itself.pt trust=true",
        "info model=activation.yaml trust=true",
        "info model=row.yaml trust=True",
        "val model=TEACHER data=python.yaml trust=true",
        "val model=TEACHER data=bash.yaml trust=true noise=rician",
    ],
)
def test_trusted_files_run(bench: Bench, command: str) -> None:
    assert bench.run(command)[0] != 0  # what is left when it has run is no model and no data
    assert bench.proof.is_dir()


def test_trust_is_said_in_words_that_are_known(bench: Bench) -> None:
    assert "expected trust=true" in bench.run("info model=foreign.pt trust=yes")[1]
    assert "would run foreign code" in bench.run("info model=foreign.pt trust=false")[1]


def test_trust_in_python_is_for_one_model(bench: Bench) -> None:
    trusted = MedDet(bench.folder / "beside.pt", trust=True)
    assert bench.proof.is_dir()
    bench.proof.rmdir()
    for load in (
        lambda: MedDet(bench.folder / "beside.pt"),
        lambda: YOLO(bench.folder / "beside.pt"),
        lambda: MedDet(bench.teacher).load(bench.folder / "beside.pt"),
        lambda: load_detector(bench.folder / "beside.pt"),
        lambda: strip(bench.folder / "beside.pt"),
    ):
        with pytest.raises((ValueError, pickle.UnpicklingError), match=r"foreign code|Weights only"):
            load()
        assert not bench.proof.exists()
    assert not is_trusted()
    trusted.load(bench.folder / "beside.pt")
    bench.proof.rmdir()
    MedDet(bench.teacher).load(bench.folder / "beside.pt", trust=True)
    bench.proof.rmdir()
    with trusting():
        load_detector(bench.folder / "beside.pt")
    assert bench.proof.is_dir() and not is_trusted()


def strip(path: Path) -> None:
    from ultralytics.utils.torch_utils import torch_load

    torch_load(path, map_location="cpu")  # as Ultralytics reads a run's checkpoints when it is over


def test_trust_does_not_survive_a_failure_or_reach_another_thread() -> None:
    with pytest.raises(KeyError), trusting():
        raise KeyError
    seen = []
    with trusting():
        thread = threading.Thread(target=lambda: seen.append(is_trusted()))
        thread.start()
        thread.join()
    assert seen == [False] and not is_trusted()
    with pytest.raises(ValueError, match="trust must be true or false"), trusting("yes"):
        pass


# Label caches


def test_a_hostile_label_cache_is_read_anew(bench: Bench) -> None:
    path = cases.poison_label_cache(bench)
    data = yaml.safe_load(bench.data.read_text())
    arguments = {"img_path": str(bench.data.parent / "images" / "train"), "data": data, "imgsz": 64, "augment": False}
    labels = MedDetDataset(**arguments).labels
    assert not bench.proof.exists() and len(labels) == 6
    assert b"mkdir" not in path.read_bytes(), "it was not written anew"
    again = MedDetDataset(**arguments).labels
    assert [label["im_file"] for label in again] == [label["im_file"] for label in labels]


def test_a_label_cache_does_not_bring_in_other_files(bench: Bench) -> None:
    arguments = {
        "img_path": str(bench.data.parent / "images" / "train"),
        "data": yaml.safe_load(bench.data.read_text()),
        "imgsz": 64,
        "augment": False,
    }
    want = MedDetDataset(**arguments).im_files
    path = bench.data.parent / "labels" / "train.cache"
    cache = np.load(path, allow_pickle=True).item()
    for change in ({"im_file": "/etc/hostname"}, {"bboxes": "many"}, {"cls": np.zeros((9, 1), "float32")}):
        poisoned = {**cache, "labels": [{**cache["labels"][0], **change}, *cache["labels"][1:]]}
        with path.open("wb") as stream:
            np.save(stream, poisoned)
        assert MedDetDataset(**arguments).im_files == want
