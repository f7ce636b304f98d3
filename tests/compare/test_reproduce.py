"""The paper's tables: their figures, what their rows train, and a whole reproduction with runs that take no time."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from meddet_yolo import cfg
from meddet_yolo.compare import executor, paper, reproduce
from meddet_yolo.compare.paper import METHODS, TABLES, TEACHERS
from meddet_yolo.compare.plots import plot_sizes

MODULE = importlib.import_module("meddet_yolo.compare.reproduce")  # which the function of its name hides
STUB = [sys.executable, str(Path(__file__).with_name("_stub_worker.py"))]
KNOWN = Path(__file__).resolve().parents[3] / "shared" / "paper.md"
RECIPE = yaml.safe_load((Path(cfg.__file__).parent / "distill" / "paper.yaml").read_text(encoding="utf-8"))


def test_every_row_has_something_to_train_and_everything_that_is_trained_a_row():
    rows = {row.method for table in TABLES.values() for row in table.rows}
    assert rows == {*METHODS, *TEACHERS}


@pytest.mark.skipif(not KNOWN.is_file(), reason="the paper's figures are not here")
@pytest.mark.parametrize("name", TABLES)
def test_figures_are_the_papers(name):
    known = set(re.findall(r"\d+(?:\.\d+)?", KNOWN.read_text(encoding="utf-8")))
    for row in TABLES[name].rows:
        given = (row.mean_precision, "{:.1f}"), (row.recall, "{:.3f}"), (row.fps, "{:.1f}")
        given += (row.parameters, "{:.2f}"), (row.gflops, "{:.2f}")
        assert {form.format(value) for value, form in given if value is not None} <= known


def test_one_row_has_one_figure_in_all_tables():
    figures: dict[str, set[float]] = {}
    for table in TABLES.values():
        for row in table.rows:
            figures.setdefault(row.method, set()).add(row.mean_precision)
    assert all(len(values) == 1 for values in figures.values())


def test_methods_and_trainings_are_the_recipes():
    shared = {key: value for key, value in MODULE._TRAINING.items() if key not in {"inherit"}}
    assert {key: float(v) if isinstance(v, int | float) else v for key, v in shared.items()} == {
        key: float(RECIPE[key]) if isinstance(RECIPE[key], int | float) else RECIPE[key] for key in shared
    }
    assert METHODS["MedDet"] == {key: RECIPE[key] for key in METHODS["MedDet"]}
    assert [f"{name}.pt" for name in TEACHERS] == RECIPE["teachers"] and f"{paper.STUDENT}.yaml" == RECIPE["model"]
    gpu = MODULE.PRESETS["gpu"].training
    assert {key: RECIPE[key] for key in gpu} == gpu


def test_the_phantom_has_the_papers_counts():
    for preset in ("cpu", "gpu"):
        phantom = MODULE.PRESETS[preset].phantom
        assert phantom["patients"] == 914 and phantom["preset"] == "paper" and phantom["test_fraction"] == 0
        assert round(phantom["val_fraction"] * 914) == 183


@pytest.mark.slow("starts twenty processes")
def test_all_tables_and_pictures_of_one_call_and_nothing_is_done_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "WORKER", STUB)
    text = reproduce("paper", out=tmp_path, device="cpu", jobs=3)
    tables = json.loads((tmp_path / "paper.json").read_text())["tables"]
    assert {name: len(rows) for name, rows in tables.items()} == {
        name: len(table.rows) for name, table in TABLES.items()
    }
    ours = json.loads((tmp_path / "compare.json").read_text())["rows"]
    scores = {row["method"] or row["student"]: row["scores"]["mAP50-95"]["value"] for row in ours}
    for name, table in TABLES.items():
        for row, entry in zip(table.rows, tables[name], strict=True):
            assert entry["mAP50-95"].startswith(f"{scores[row.method]:.3f} [")
            assert entry["paper's mAP"] == f"{row.mean_precision:.1f}"
    whole = tables["students"][-1]
    assert (whole["paper's FPS"], whole["paper's (M)"], whole["paper's (G)"]) == ("19.8", "10.42", "31.69")
    assert whole["parameters (M)"] == "1.00" and 0.4 < float(whole["multiply-adds (G)"]) < 1  # stubs; 64 px
    assert "multiply-adds" not in text.split("## Fusion of the teachers")[1]
    assert (tmp_path / "boxes.jpg").is_file() and "![boxes](boxes.jpg)" in text
    done = (tmp_path / "runs" / "executed.txt").read_text()
    assert reproduce("paper", out=tmp_path, device="cpu", tables="fusion").count("## ") == 1
    assert (tmp_path / "runs" / "executed.txt").read_text() == done


def test_the_places_of_nmode_are_the_plain_student_with_it(tmp_path):
    from meddet_yolo.evaluate.info import build_model, measure_size

    plain = measure_size(build_model("gfl-mobilenetv2", nc=2), 64)
    for name, keys in MODULE._methods(["nmode-backbone", "nmode-fpn"], tmp_path).items():
        model = build_model(keys["student"], nc=2)
        layer = {"nmode-backbone": 0, "nmode-fpn": 1}[name]
        assert [hasattr(module, "nmode") for module in model.model[:2]] == [layer == 0, layer == 1]
        assert measure_size(model, 64).parameters == plain.parameters


def test_bubbles(tmp_path):
    row = {"parameters": 10**7, "milliseconds_per_image": 40.0, "scores": {"mAP50-95": {"value": 0.4}}}
    points = [("a", row, 4.0), ("b", {**row, "scores": {}}, 9.0)]
    assert plot_sizes(points, tmp_path / "sizes.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"what": "papre"}, "what must be one of paper, got 'papre': did you mean 'paper'?"),
        ({"preset": "gqu"}, "preset must be one of smoke, cpu, gpu, got 'gqu': did you mean 'gpu'?"),
        ({"tables": ["fusion", "rival"]}, "got 'rival': did you mean 'rivals'?"),
        ({"methods": ["none"]}, "methods= is set by the paper: `meddet compare` takes one of yours"),
        ({"data": "nothing.yaml"}, "nothing.yaml: no such file"),
    ],
)
def test_bad_input_is_refused_in_a_line(tmp_path, changed, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        reproduce(**{"out": tmp_path / "out", **changed})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow("trains four detectors in processes of their own")
def test_a_table_of_real_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "TEACHERS", ("gfl-resnet50",))
    text = reproduce("paper", out=tmp_path, tables="placement", device="cpu")
    assert "failed" not in text and text.count(" | 8") == 3
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4
