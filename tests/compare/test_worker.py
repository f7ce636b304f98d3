import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meddet_yolo.compare.executor import WORKER
from meddet_yolo.compare.files import FOUND, PROGRESS, RESULT, RUNS, SPEC, read_json, write_json
from meddet_yolo.compare.folds import make_folds, read_images, write_folds
from meddet_yolo.compare.harness import prepare
from meddet_yolo.compare.plan_reader import make_plan
from meddet_yolo.compare.predictions import load_predictions
from meddet_yolo.compare.speed import measure_speed
from meddet_yolo.compare.worker import main
from meddet_yolo.evaluate import report
from meddet_yolo.registry import label_cache

HOW = json.dumps({"device": "cpu", "workers": 0})


@pytest.fixture(autouse=True)
def _label_caches(monkeypatch):
    """A run keeps its process from writing label caches; other tests get them back."""
    monkeypatch.setattr(label_cache, "_writing", True)


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set without label caches of other tests."""
    shutil.copytree(tiny_data.parent, tmp_path / "data", ignore=shutil.ignore_patterns("*.cache"))
    return tmp_path / "data" / tiny_data.name


@pytest.fixture
def out(data: Path, tmp_path: Path):
    """Prepare a comparison on the tiny data set; returns its folder and a function that makes the runs of a plan."""

    def make(epochs=2, labelled=1.0, **arguments):
        training = {"imgsz": 64, "epochs": epochs, "batch": 4, "cache": False}
        given = {"student": "yolo11n.yaml", "methods": ["none"], "teachers": [], **arguments}
        plan = make_plan(seeds=1, folds=2, training=training, **given)
        items, folder = read_images(data), tmp_path / "out"
        prepare(
            folder, plan.runs(), write_folds(folder / "folds", data, items, make_folds(items, 2, labelled=labelled))
        )
        return plan.runs()

    return tmp_path / "out", make


def test_a_given_teacher_is_measured_on_the_images_held_out(out, tiny_teachers, data):
    folder, make = out
    before = sorted(data.parent.rglob("*"))
    run = make(methods=["meddet"], teachers=[str(tiny_teachers[0])])[0]
    assert not run.trained
    assert main([str(folder / RUNS / run.name), HOW]) == 0
    boxes = load_predictions(folder / RUNS / run.name / FOUND)
    held_out = (folder / "folds" / "fold0" / "val.txt").read_text().split()
    assert [found.name for found, _ in boxes] == held_out
    assert all(len(truth) and truth.size == (64, 64) for _, truth in boxes)
    labels = Path(held_out[0].replace("images", "labels")).with_suffix(".txt").read_text().splitlines()
    assert len(boxes[0][1]) == len(labels)
    centre = (boxes[0][1].boxes[0, :2] + boxes[0][1].boxes[0, 2:]) / 2 / 64
    assert centre == pytest.approx([float(v) for v in labels[0].split()[1:3]], abs=1e-3)
    assert read_json(folder / RUNS / run.name / RESULT)["parameters"] > 1e5
    assert sorted(data.parent.rglob("*")) == before  # the data set's folder is only read


def test_a_failure_leaves_its_reason_in_a_line(out, tiny_teachers):
    folder, make = out
    run = make(methods=["meddet"], teachers=[str(tiny_teachers[0])])[0]
    spec = read_json(folder / RUNS / run.name / SPEC)
    (folder / RUNS / run.name / SPEC).write_text(json.dumps({**spec, "model": str(folder / "none.pt")}))
    with pytest.raises(FileNotFoundError):
        main([str(folder / RUNS / run.name), HOW])
    reason = (folder / RUNS / run.name / "failed.txt").read_text()
    assert "none.pt" in reason and reason.count("\n") == 1


def test_models_are_timed_once_and_again_with_a_new_one(out, tiny_teachers, monkeypatch):
    folder, make = out
    teachers = [str(path) for path in tiny_teachers]
    runs = [run for run in make(methods=["meddet"], teachers=teachers) if not run.trained]
    plan = make_plan("yolo11n.yaml", ["meddet"], teachers, 1, 2, {"imgsz": 64, "epochs": 2, "batch": 4, "cache": False})
    assert measure_speed(folder, plan) == {}
    write_json(folder / RUNS / runs[0].name / RESULT, {})
    first = measure_speed(folder, plan)
    assert list(first) == [(runs[0].student, "")] and first[runs[0].student, ""] > 0
    assert measure_speed(folder, plan) == first
    write_json(folder / RUNS / runs[1].name / RESULT, {})
    both = measure_speed(folder, plan)
    assert set(both) == {(run.student, "") for run in runs} and len(both) == 2
    monkeypatch.setattr(report, "measure_latency", None)  # not called any more
    assert measure_speed(folder, plan) == both


@pytest.mark.slow("trains")
def test_a_real_run_ends_with_its_comparison_and_resumes_from_its_last_epoch(out, tiny_teachers, data):
    folder, make = out
    before = sorted(data.parent.rglob("*"))
    run = make(epochs=4, methods=["meddet"], teachers=[str(tiny_teachers[0])])[1]
    place = folder / RUNS / run.name
    command = [*WORKER, str(place), HOW]
    starter = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", starter, *command], stdout=subprocess.PIPE, text=True)
    try:
        child = int(parent.stdout.readline())
        until = time.monotonic() + 200
        while not ((place / PROGRESS).is_file() and read_json(place / PROGRESS)["epoch"] >= 2):
            assert time.monotonic() < until, (place / "failed.txt").read_text()
            time.sleep(0.02)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not (place / RESULT).exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    result = read_json(place / RESULT)
    assert (result["epochs"], result["parts"]) == (4, 2)
    assert result["seconds_per_step"] > 0 and result["peak_memory_bytes"] > 1e8
    assert (place / "weights.pt").is_file() and len(load_predictions(place / FOUND)) == 4
    assert not (place / "train" / "weights").exists()
    assert len((place / "train" / "results.csv").read_text().splitlines()) == 5
    assert sorted(data.parent.rglob("*")) == before


@pytest.mark.slow("trains")
def test_a_student_learns_from_the_images_whose_labels_its_fold_has_set_aside(out, tiny_teachers, data):
    folder, make = out
    before = sorted(data.parent.rglob("*"))
    method = {"more": {"distill": "response", "unlabelled": "auto"}}
    run = make(epochs=1, labelled=0.5, methods=[method], teachers=[str(tiny_teachers[0])])[1]
    place = folder / RUNS / run.name
    assert main([str(place), HOW]) == 0
    header, values = [line.split(",") for line in (place / "train" / "results.csv").read_text().splitlines()]
    assert float(values[header.index("distill/unlabelled_images")]) > 0
    images = [(folder / "folds" / "fold0" / f"{part}.txt").read_text().split() for part in ("train", "unlabelled")]
    assert all(images) and set(images[0]).isdisjoint(images[1])
    assert sorted(data.parent.rglob("*")) == before
