"""Two processes at the same work: no file is torn, and each of them succeeds or says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from meddet_yolo import DistillTrainer
from meddet_yolo.files import alone
from tests.dicom_files import make_dicom

ROOT = Path(__file__).resolve().parents[2]


LONGEST = 900  # seconds: starting takes a minute where as many other tests run as a machine has cores


def both(*arguments: str) -> list[tuple[int, str]]:
    """Run a command twice at once; return exit codes and what was printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for _ in range(2)
    ]
    try:
        printed = [child.communicate(timeout=LONGEST)[0] for child in started]
    finally:
        for child in started:  # where one took too long
            child.kill()
    return [(child.returncode, text) for child, text in zip(started, printed, strict=True)]


def dicom_folder(folder: Path, files: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(files):
        pixels = np.random.default_rng(number).integers(0, 4000, (64, 64)).astype(np.uint16)
        make_dicom(folder / f"a{number}.dcm", pixels, PatientID=f"patient-{number}")
    return folder


def no_leftovers(folder: Path) -> bool:
    return not list(folder.rglob("*.part")) and not list(folder.rglob("*.tmp"))


COMMAND = ("-c", "import sys; from meddet_yolo.cli import main; sys.exit(main())")


@pytest.mark.slow
def test_two_predictions_into_one_folder(tmp_path: Path, tiny_teachers: list[Path]) -> None:
    source = dicom_folder(tmp_path / "in", 12)
    where = [f"project={tmp_path}", "name=run", "exist_ok=True", "imgsz=64", "conf=0.001", "sr=True"]
    ended = both(*COMMAND, "predict", f"model={tiny_teachers[0]}", f"source={source}", *where)
    assert [code for code, _ in ended] == [0, 0], ended
    run = tmp_path / "run"
    assert {path.stem for path in run.glob("*.json")} == {path.stem for path in source.iterdir()}
    assert all(json.loads(path.read_text())["complete"] for path in run.glob("*.json"))
    pictures = list(run.glob("*.jpg"))
    assert len(pictures) == 12 and all(cv2.imread(str(path)) is not None for path in pictures)
    assert no_leftovers(run)


@pytest.mark.slow
def test_two_processes_build_one_cache(tmp_path: Path, tiny_teachers: list[Path]) -> None:
    images = dicom_folder(tmp_path / "images", 12)
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in images.iterdir():
        (labels / f"{path.stem}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    data = tmp_path / "d.yaml"
    data.write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [normal, herniated]\n")
    where = [f"project={tmp_path / 'runs'}", "imgsz=64", "workers=0", "plots=False", "batch=4"]
    ended = both(*COMMAND, "val", f"model={tiny_teachers[0]}", f"data={data}", *where)
    assert [code for code, _ in ended] == [0, 0], ended
    pictures = sorted((tmp_path / "labels.slices").glob("*.png"))
    assert len(pictures) == 12 and all(cv2.imread(str(path)) is not None for path in pictures)
    assert len(json.loads((tmp_path / "labels.slices" / "slices.json").read_text())) > 0
    assert no_leftovers(tmp_path)


@pytest.mark.slow
def test_two_conversions_into_one_folder(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    rows = ["image,x0,y0,x1,y1,class,patient"]
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (256, 256), np.uint8)
        cv2.imwrite(str(source / f"a{number}.png"), pixels)
        rows.append(f"a{number}.png,1,2,11,12,disc,p{number}")
    (source / "boxes.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    ended = both(*COMMAND, "convert", f"source={source / 'boxes.csv'}", f"out={out}", "patient=patient", "val=4")
    codes = [code for code, _ in ended]
    assert 0 in codes, ended
    for code, text in ended:  # the other came too late, or did the same again
        assert "Traceback" not in text and (code == 0 or "another process is writing to out=" in text), ended
    assert sum(len(list((out / "images" / part).iterdir())) for part in ("train", "val")) == 40
    assert all(cv2.imread(str(path)) is not None for path in (out / "images").rglob("*.png"))
    assert len(list((out / "labels").rglob("*.txt"))) == 40 and (out / "data.yaml").is_file()
    assert no_leftovers(out)


@pytest.mark.slow
def test_two_trainings_of_one_name(tmp_path: Path, tiny_data: Path) -> None:
    where = [f"data={tiny_data}", f"project={tmp_path}", "name=run", "exist_ok=True"]
    short = ["imgsz=64", "epochs=2", "batch=2", "workers=0", "plots=False", "device=cpu"]
    ended = both(*COMMAND, "train", "model=yolo11n.yaml", *where, *short)
    assert 0 in [code for code, _ in ended], ended
    for code, text in ended:  # the other was refused, or began when the first had ended
        assert "Traceback" not in text and (code == 0 or "another process is training in" in text), ended
    run = tmp_path / "run"
    assert (run / "args.yaml").is_file()  # the one that was refused took nothing away
    assert len((run / "results.csv").read_text().splitlines()) == 3
    assert {path.name for path in (run / "weights").iterdir()} == {"best.pt", "last.pt"}
    assert no_leftovers(run)


def test_a_second_training_in_a_folder_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    settings = {"model": "yolo11n.yaml", "data": str(tiny_data), "project": str(tmp_path), "name": "run", "imgsz": 64}
    trainer = DistillTrainer(overrides={**settings, "exist_ok": True, "epochs": 1, "plots": False, "device": "cpu"})
    with (
        alone(trainer.save_dir / ".train.lock", ""),
        pytest.raises(BlockingIOError, match="another process is training"),
    ):
        trainer.train()
    assert not (trainer.save_dir / "results.csv").exists()
    kept = {name: b"of the first" for name in ("args.yaml", "results.csv")}
    for name, content in kept.items():
        (trainer.save_dir / name).write_bytes(content)
    with (
        alone(trainer.save_dir / ".train.lock", ""),
        pytest.raises(BlockingIOError, match="another process is training"),
    ):
        DistillTrainer(overrides={**settings, "exist_ok": True, "epochs": 1, "plots": False, "device": "cpu"})
    assert {name: (trainer.save_dir / name).read_bytes() for name in kept} == kept
