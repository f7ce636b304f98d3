import json
import re

import pytest
import torch
from ultralytics import YOLO

from meddet_yolo import cli, quickstart

ARGUMENTS = {"epochs": 2, "imgsz": 32, "patients": 2, "seed": 3, "device": "cpu"}
WEIGHTS = ("teacher-s.pt", "teacher-n.pt", "student-alone.pt", "student-distilled.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "out"
    with pytest.MonkeyPatch.context() as patch:
        # The layouts are what they are; what is trained here is the smallest of each.
        patch.setattr(quickstart, "TEACHERS", {"teacher-s": "yolo11n.yaml", "teacher-n": "yolov8n.yaml"})
        quickstart.quickstart(out, **ARGUMENTS)
    return out


def stamps(folder) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in (*WEIGHTS, "report.json")}


@pytest.mark.slow("trains")
def test_it_leaves_models_report_and_pictures(folder):
    students = [YOLO(folder / name).model for name in WEIGHTS[2:]]
    # Same seed, same number of steps: only distillation can have made the two differ.
    same = [torch.equal(a, b) for a, b in zip(students[0].parameters(), students[1].parameters(), strict=True)]
    assert not all(same)
    told = json.loads((folder / "report.json").read_text())
    assert [m["name"] for m in told["models"]] == ["teacher s", "teacher n", "student alone", "student distilled"]
    page = (folder / "report.md").read_text()
    assert "not how well the method does" in page
    assert re.search(r"the distilled student inherited \d+ of \d+ tensors, [\d.]+ % of the parameters", page)
    picture = folder / re.search(r"!\[Boxes\]\((.*)\)", page)[1]
    assert picture.stat().st_size > 1000


@pytest.mark.slow("trains")
def test_what_is_done_is_not_done_again(folder, capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "TEACHERS", {"teacher-s": "yolo11n.yaml", "teacher-n": "yolov8n.yaml"})
    before = stamps(folder)
    quickstart.quickstart(folder, **ARGUMENTS)
    out = capsys.readouterr().out
    assert len(re.findall(r"done before", out)) == 7
    assert "mAP50-95" in out
    assert stamps(folder) == before

    (folder / "student-distilled.pt").unlink()
    quickstart.quickstart(folder, **ARGUMENTS)
    changed = {name for name, stamp in stamps(folder).items() if stamp != before[name]}
    assert changed == {"student-distilled.pt", "report.json"}


@pytest.mark.slow("trains")
def test_another_run_does_not_overwrite_this_one(folder, capsys):
    arguments = [f"{k}={v}" for k, v in {**ARGUMENTS, "epochs": 9}.items()]
    assert cli.main(["quickstart", f"out={folder}", *arguments]) == 1
    assert "epochs=2" in capsys.readouterr().err


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="new folder"):
        quickstart.quickstart(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_interrupted_step_is_done_again(tmp_path, monkeypatch, capsys):
    """Nothing is noted of a step that did not end, and the steps before it are kept."""
    out = tmp_path / "out"

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "_train", interrupted)
    assert cli.main(["quickstart", f"out={out}", "patients=2", "imgsz=32"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(json.loads((out / "quickstart.json").read_text())["seconds"]) == 1
    assert cli.main(["quickstart", f"out={out}", "patients=2", "imgsz=32"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert "done before" in lines[0]
    assert lines[1].startswith("[2/7] train")
