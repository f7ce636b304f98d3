import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from meddet_yolo.compare import compare, executor
from meddet_yolo.compare.files import RUNS
from meddet_yolo.compare.harness import locked

STUB = [sys.executable, str(Path(__file__).with_name("_stub_worker.py"))]


@pytest.fixture
def arguments(data_set, monkeypatch):
    """What a comparison of stubs is called with, but for its folder."""
    monkeypatch.setattr(executor, "WORKER", STUB)
    return {
        "data": str(data_set),
        "student": "yolo11n.yaml",
        "methods": ["none", "native", {"other": {"lr0": 0.001}}],
        "teachers": ["yolo11s.yaml"],
        "seeds": 2,
        "folds": 2,
        "patient": r"(p\d+)_",
        "device": "cpu",
        "jobs": 3,
        "epochs": 4,
        "rounds": 50,
    }


def table(out: Path) -> dict:
    """Return what a comparison came to."""
    content = json.loads((out / "compare.json").read_text())
    return {key: content[key] for key in ("rows", "baseline", "best", "folds", "images", "patients")}


def executed(out: Path) -> Counter:
    return Counter((out / RUNS / "executed.txt").read_text().splitlines())


@pytest.mark.slow("starts processes")
def test_a_comparison_that_is_killed_goes_on_and_ends_with_the_same_table(arguments, tmp_path):
    text = compare(out=tmp_path / "whole", **arguments)
    assert "12 images of 6 patients" in text and "native" in text
    killed = tmp_path / "killed"
    script = (
        "import json, sys; from meddet_yolo.compare import compare, executor;"
        "executor.WORKER = json.loads(sys.argv[1]);"
        "compare(**json.loads(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(STUB), json.dumps({**arguments, "out": str(killed)})],
        env={**os.environ, "STUB_SECONDS": "0.3"},
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while len(list(killed.glob("runs/*/result.json"))) < 3 and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = set(killed.glob("runs/*/result.json"))
    assert 3 <= len(before) < 14
    stamps = {file: file.stat().st_mtime_ns for file in before}
    compare(out=killed, **arguments)
    assert table(killed) == table(tmp_path / "whole")
    assert {file: file.stat().st_mtime_ns for file in before} == stamps
    assert set(executed(killed).values()) == {1}  # no epoch of any run was done twice
    assert executed(killed) == executed(tmp_path / "whole")


def test_a_run_that_is_killed_goes_on(arguments, tmp_path):
    arguments["methods"] = ["none", {"killed": {}}]
    compare(out=tmp_path / "out", **arguments)
    assert set(executed(tmp_path / "out").values()) == {1}
    assert all(row["finished"] == row["planned"] and not row["failed"] for row in table(tmp_path / "out")["rows"])


def test_labels_are_set_aside_for_all_methods_alike(arguments, tmp_path):
    methods = ["none", {"more": {"distill": "response", "unlabelled": "auto"}}]
    compare(out=tmp_path / "out", **{**arguments, "methods": methods, "labelled": 0.5})
    data = {json.loads(file.read_text())["data"] for file in (tmp_path / "out").glob("runs/*-fold0/run.json")}
    assert data == {"../../folds/fold0/data.yaml"}
    lists = [(tmp_path / "out/folds/fold0" / f"{name}.txt").read_text().split() for name in ("train", "unlabelled")]
    assert [len(images) for images in lists] == [4, 2]
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["settings"]["labelled"] == 0.5


def test_a_run_that_fails_is_tried_twice_and_named_with_its_reason(arguments, tmp_path, capsys):
    arguments["methods"] = ["none", {"bad": {}}]
    text = compare(out=tmp_path / "out", **arguments)
    assert "failed: yolo11n-bad-seed0-fold0: it is bad" in text
    rows = {row["method"]: row for row in table(tmp_path / "out")["rows"]}
    assert len(rows["bad"]["failed"]) == 4 and not rows["bad"]["scores"]
    assert rows["none"]["scores"]["mAP50-95"]["value"] > 0
    assert "4 failed" in capsys.readouterr().out
    logs = [file for file in (tmp_path / "out").glob("runs/*bad*/log.txt")]
    assert len(logs) == 4


def test_what_waits_for_a_failed_run_fails_with_it(arguments, tmp_path):
    arguments.update(methods=["none", "native"], teachers=["yolo11s.yaml"])
    stub = STUB[1]
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import runpy, sys\nif 'teacher-' in sys.argv[1]:\n    sys.exit(3)\n"
        f"runpy.run_path({stub!r}, run_name='__main__')\n"
    )
    executor.WORKER = [sys.executable, str(broken)]
    text = compare(out=tmp_path / "out", **arguments)
    assert "failed: teacher-yolo11s-fold0: exit code 3" in text
    assert "failed: yolo11n-native-seed1-fold0: teacher-yolo11s-fold0 failed" in text
    executor.WORKER = STUB  # started again, it tries what failed again
    assert "failed: " not in compare(out=tmp_path / "out", **arguments)


def test_methods_and_seeds_can_be_added_but_not_changed(arguments, tmp_path):
    out = tmp_path / "out"
    compare(out=out, **{**arguments, "methods": ["none"], "seeds": 1})
    stamps = {file: file.stat().st_mtime_ns for file in out.glob("runs/*none*/result.json")}
    compare(out=out, **arguments)
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    with pytest.raises(ValueError, match=r"with epochs=4 \(now 5\): give the same arguments"):
        compare(out=out, **{**arguments, "epochs": 5})
    with pytest.raises(ValueError, match="other images, patients or folds"):
        compare(out=out, **{**arguments, "folds": 3})


def test_the_table_of_a_comparison_under_way_pools_what_all_methods_have(arguments, tmp_path):
    out = tmp_path / "out"
    compare(out=out, **arguments)
    for file in out.glob("runs/yolo11n-none-seed?-fold1/result.json"):
        file.unlink()
    text = compare(out=out, report=True, **arguments)
    assert "folds 0 of 2 only" in text and "yolo11n none: 2 of 4 runs are left to do" in text
    assert table(out)["folds"] == [0]


def test_two_comparisons_keep_out_of_each_others_folder(arguments, tmp_path):
    with locked(tmp_path / "out"), pytest.raises(RuntimeError, match="in use by another comparison"):
        compare(out=tmp_path / "out", **arguments)


def test_a_folder_that_cannot_be_written_to_is_refused(arguments, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=r"out=.*cannot be written to .*: name another folder"):
        compare(out=tmp_path / "file" / "out", **arguments)


def test_a_plan_is_read_from_a_file_and_what_is_given_wins(arguments, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({**arguments, "epochs": 2, "seeds": 3, "out": str(tmp_path / "out")}))
    compare(cfg=plan, seeds=1, methods=["none"], epochs=3)
    assert sorted(executed(tmp_path / "out")) == sorted(
        f"{name} {epoch}"
        for fold in range(2)
        for name in (f"yolo11n-none-seed0-fold{fold}", f"teacher-yolo11s-fold{fold}")
        for epoch in range(3)
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": None}, "data= is missing"),
        ({"data": "nothing.yaml"}, "nothing.yaml: no such file"),
        ({"folds": 7}, "folds=7, but there are only 6 patients"),
        ({"patient": None}, "add patient="),
        ({"jobs": 0}, "jobs=0"),
        ({"labelled": 0}, "labelled=0: expected a share"),
        ({"labelled": 1.5}, "labelled=1.5: expected a share"),
        ({"methods": [{"more": {"distill": "response", "unlabelled": "auto"}}]}, "set some aside with labelled=0.1"),
        ({"threads": "two"}, "threads='two'"),
        ({"cfg": "nothing.yaml"}, "cfg=nothing.yaml: no such file"),
        ({"epohs": 3}, "did you mean 'epochs'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(arguments, tmp_path, changed, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        compare(out=tmp_path / "out", **{**arguments, **changed})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_paths_may_be_given_as_paths(arguments, tmp_path):
    arguments.update(data=Path(arguments["data"]), methods=["none"], teachers=[], seeds=1)
    compare(out=tmp_path / "out", **arguments)
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["settings"]["data"] == str(arguments["data"])
