"""The picture of what a check has found."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from meddet_yolo import cli
from meddet_yolo.data.audit import Finding
from meddet_yolo.data.convert import convert
from meddet_yolo.data.convert.contact_sheet import TILES, choose


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of four patients with a tiny box, an object of two classes, and a validation image from training."""
    labels = {
        "p1": "0 0.5 0.5 0.2 0.2\n0 0.2 0.2 0.01 0.01\n",
        "p2": "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n",
        "p3": "1 0.3 0.3 0.2 0.2\n",
        "p4": "1 0.4 0.4 0.2 0.2\n",
    }
    for name, text in labels.items():
        part = "val" if name == "p4" else "train"
        for kind in ("images", "labels"):
            (tmp_path / "d" / kind / part).mkdir(parents=True, exist_ok=True)
        seed = 3 if name == "p4" else int(name[1])
        noise = np.random.default_rng(seed).uniform(0, 255, (120, 100)).astype(np.float32)
        cv2.imwrite(str(tmp_path / "d" / "images" / part / f"{name}.png"), cv2.GaussianBlur(noise, (0, 0), 5))
        (tmp_path / "d" / "labels" / part / f"{name}.txt").write_text(text)
    yaml = tmp_path / "d" / "data.yaml"
    yaml.write_text("train: images/train\nval: images/val\nnames: {0: a, 1: b}\n")
    return yaml


def red(image: np.ndarray) -> int:
    """Number of pixels of the colour of boxes in question."""
    return int((np.abs(image.astype(int) - (0x2B, 0x00, 0xE4)).sum(2) < 30).sum())


def test_a_check_draws_what_it_finds(data: Path, tmp_path: Path) -> None:
    result = convert(data, tmp_path / "out", check=True, patient="image")
    assert result.pictures == tmp_path / "out" / "findings.png" and result.report == tmp_path / "out" / "report.md"
    assert f"pictures={result.pictures}" in str(result)
    kinds = {finding.kind: finding for finding in result.audit.findings}
    assert kinds.keys() >= {"tiny box", "object with two classes", "leak: the same image in train and val"}
    assert kinds["tiny box"].boxes == (1,) and kinds["object with two classes"].boxes == (0, 1)
    image = cv2.imread(str(result.pictures))
    assert image.shape[1] > 300 and red(image) > 50


def test_nothing_found_draws_nothing(data: Path, tmp_path: Path) -> None:
    """And a picture of an earlier check goes."""
    out = tmp_path / "out"
    assert convert(data, out, check=True, patient="image").pictures
    for part, name in (("train", "p1"), ("train", "p2"), ("val", "p4")):
        (data.parent / "labels" / part / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.2 0.2\n")
    noise = np.random.default_rng(9).uniform(0, 255, (120, 100)).astype(np.float32)
    cv2.imwrite(str(data.parent / "images" / "val" / "p4.png"), cv2.GaussianBlur(noise, (0, 0), 5))
    result = convert(data, out, check=True, patient="image")
    assert result.audit.findings == [] and result.pictures is None and not (out / "findings.png").exists()
    assert (out / "report.md").exists()


def test_without_a_folder_nothing_is_written(data: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = convert(data, check=True, patient="image")
    assert result.pictures is None and result.report is None and sorted(tmp_path.rglob("*")) == before


def test_the_command_names_the_picture(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"source={data}", "check=True", "patient=image", f"out={tmp_path / 'out'}"]
    assert cli.main(["convert", *arguments]) == 1  # a leak
    assert f"pictures={tmp_path / 'out' / 'findings.png'}" in capsys.readouterr().out


def test_every_kind_is_shown() -> None:
    many = [Finding("tiny box", str(i), (i,)) for i in range(1000)]
    few = [Finding("huge box", "", (0,)), Finding("leak: the same image in train and val", "", (0, 1))]
    shown = choose([*many, *few])
    assert len(shown) == TILES and shown[0] == few[1] and few[0] in shown
    assert choose([]) == []
