"""A folder in which every second file is hostile: every sound one is done, every other one is named with its reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest

from meddet_yolo import MedDet
from meddet_yolo.data.convert import convert
from meddet_yolo.imaging.pictures import write_pictures
from meddet_yolo.imaging.search import find_volumes
from tests.dicom_files import make_dicom
from tests.hostile.made import deflated_dicom, nifti1, nifti2, png

PAIRS = 100


def _pixels(number: int) -> np.ndarray:
    """A picture of its own."""
    image = np.random.default_rng(number).integers(0, 4000, (8, 8)).astype(np.uint16)
    return np.kron(image, np.ones((8, 8), np.uint16))


def _random(path: Path) -> Path:
    path.write_bytes(Random(path.name).randbytes(500))
    return path


def _cut(path: Path) -> Path:
    make_dicom(path, _pixels(0))
    path.write_bytes(path.read_bytes()[:4000])
    return path


# Makers of hostile files, by stem.
HOSTILE: list[Callable[[Path, str], Path]] = [
    lambda f, n: make_dicom(f / f"{n}.dcm", _pixels(0), NumberOfFrames=1_000_000),
    lambda f, n: make_dicom(f / f"{n}.dcm", _pixels(0), PixelSpacing=["1e-300", "1e-300"]),
    lambda f, n: make_dicom(f / f"{n}.dcm", _pixels(0), PixelSpacing=["1e-9", "1e9"]),
    lambda f, n: make_dicom(f / f"{n}.dcm", np.zeros((256, 256), np.uint16), spacing=(0.001, 50.0)),
    lambda f, n: make_dicom(f / f"{n}.dcm", _pixels(0), Rows=60_000, Columns=60_000),
    lambda f, n: deflated_dicom(f / f"{n}.dcm", 300 << 20),
    lambda f, n: nifti1(f / f"{n}.nii", zooms=(1e30, 1e30, 1e30)),
    lambda f, n: nifti2(f / f"{n}.nii", (2**31, 2**31, 2**31)),
    lambda f, n: nifti2(f / f"{n}.nii", (4, 5, 6), offset=2**62),
    lambda f, n: nifti1(f / f"{n}.nii.gz", (1024, 1024, 1024), voxels=bytes(100 << 20)),
    lambda f, n: _random(f / f"{n}.dcm"),
    lambda f, n: _cut(f / f"{n}.dcm"),
    lambda f, n: _random(f / f"{n}.nii.gz"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 sound DICOM files and 100 hostile ones."""
    top = tmp_path_factory.mktemp("pairs") / "images"
    top.mkdir()
    for number in range(PAIRS):
        make_dicom(top / f"sound{number:03d}.dcm", _pixels(number), PatientID=f"patient-{number:03d}")
        HOSTILE[number % len(HOSTILE)](top, f"hostile{number:03d}")
    return top


def _stems(paths: list[Path] | set[Path]) -> set[str]:
    return {path.name.partition(".")[0] for path in paths}


SOUND = {f"sound{number:03d}" for number in range(PAIRS)}
HOSTILE_STEMS = {f"hostile{number:03d}" for number in range(PAIRS)}


@pytest.mark.slow
def test_slices(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"skipped .* and 99 more; 100 pictures are in"):
        write_pictures(folder, tmp_path / "out", slices="all")
    assert _stems(set((tmp_path / "out").iterdir())) == SOUND


@pytest.mark.slow
def test_predict(folder: Path, tmp_path: Path, tiny_teachers: list[Path]) -> None:
    png(folder / "hostile_bomb.png", 12_000, 12_000, bytes(1 << 20))
    model = MedDet(tiny_teachers[0])
    arguments = {"imgsz": 64, "save": True, "project": tmp_path, "name": "run", "exist_ok": True, "conf": 0.001}
    run = tmp_path / "run"
    run.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("sound000.jpg", "sound000.json"):
        (run / name).symlink_to(victim)
    try:
        results = list(model.predict([str(path) for path in sorted(folder.iterdir())], stream=True, **arguments))
    finally:
        (folder / "hostile_bomb.png").unlink()
    assert len(results) == PAIRS
    skipped = model.predictor.dataset.skipped
    assert _stems([item.path for item in skipped]) == HOSTILE_STEMS | {"hostile_bomb"}
    assert len(skipped) == PAIRS + 1
    assert all(item.reason for item in skipped)
    assert _stems(set(run.glob("*.json"))) == _stems(set(run.glob("*.jpg"))) == SOUND
    assert all(json.loads(path.read_text())["complete"] for path in run.glob("*.json"))
    assert {path.suffix for path in run.iterdir()} == {".jpg", ".json"}
    assert victim.read_text() == "mine"


@pytest.mark.slow
def test_train(folder: Path, tmp_path: Path, tiny_teachers: list[Path]) -> None:
    labels = folder.parent / "labels"
    labels.mkdir(exist_ok=True)
    for stem in SOUND | HOSTILE_STEMS:
        (labels / f"{stem}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    for stem in HOSTILE_STEMS:
        (labels / f"{stem}_s001.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    data = tmp_path / "d.yaml"
    data.write_text(f"path: {folder.parent}\ntrain: images\nval: images\nnames: [normal, herniated]\n")
    model = MedDet(tiny_teachers[0])
    model.train(data=str(data), epochs=1, imgsz=64, batch=50, workers=0, project=tmp_path, name="run", plots=False)
    seen = model.trainer.train_loader.dataset
    assert _stems([Path(file) for file in seen.im_files]) == SOUND
    assert _stems([item.path for item in seen.skipped]) == HOSTILE_STEMS
    assert all(item.reason for item in seen.skipped)
    assert (tmp_path / "run" / "weights" / "last.pt").is_file()


@pytest.mark.slow
def test_convert(folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "boxes.csv").open("w", newline="") as rows:
        writer = csv.writer(rows)
        writer.writerow(("image", "x0", "y0", "x1", "y1", "class"))
        writer.writerows((path.name, 8, 8, 24, 24, "disc") for path in sorted(folder.iterdir()))
    result = convert(tmp_path / "boxes.csv", tmp_path / "out", images=folder, patient=r"/?(\w+)\.", val=10)
    assert _stems(set((tmp_path / "out").rglob("images/*/*.png"))) == SOUND
    assert {Path(problem.partition(": ")[0]).name.partition(".")[0] for problem in result.problems} == HOSTILE_STEMS
    assert len(result.problems) == PAIRS
    assert all(cv2.imread(str(path)) is not None for path in (tmp_path / "out").rglob("*.png"))


def test_every_hostile_file_is_refused_in_little_time(tmp_path: Path) -> None:
    for number, make in enumerate(HOSTILE):
        make(tmp_path, f"a{number}")
    found = find_volumes(tmp_path, "all")
    reasons = [skipped.reason for skipped in found.skipped]
    for volume in found.volumes:
        reasons += [item.reason for item in volume.read()]  # type: ignore[union-attr]
    assert len(reasons) == len(HOSTILE)
    assert not [reason for reason in reasons if "memory at hand" in reason]
