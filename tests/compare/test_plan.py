import inspect
import re
from pathlib import Path

import pytest
import yaml

from meddet_yolo.compare import compare
from meddet_yolo.compare.plan import with_head
from meddet_yolo.compare.plan_reader import make_plan


def plan(student="yolo11n.yaml", methods=("none",), teachers=(), seeds=1, folds=2, **training):
    return make_plan(student, methods, teachers, seeds, folds, training)


def test_every_combination_is_a_run_of_its_own():
    runs = plan(["yolo11n.yaml", "yolov8n.yaml"], ["none", {"low": {"lr0": 0.001}}], seeds=3, folds=2).runs()
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * 3 * 2
    assert {run.seed for run in runs} == {0, 1, 2}
    assert {run.training.get("lr0") for run in runs if run.method == "low"} == {0.001}
    assert not any(run.needs for run in runs)


def test_teachers_are_trained_once_a_fold_before_the_runs_that_need_them():
    runs = plan(
        methods=["none", "native", "meddet"],
        teachers=[{"model": "yolo11s.yaml", "epochs": 7}],
        seeds=2,
        epochs=3,
    ).runs()
    names = [run.name for run in runs]
    teachers = [run for run in runs if run.kind == "teacher"]
    assert [(t.fold, t.training["epochs"], t.trained) for t in teachers] == [(0, 7, True), (1, 7, True)]
    for run in runs:
        assert all(names.index(need) < names.index(run.name) for need in run.needs)
        if run.method == "none":
            assert not run.needs and "teachers" not in run.training
        elif run.method == "meddet":
            assert run.needs == (f"teacher-yolo11s-fold{run.fold}",)
            assert run.training["teachers"] == [f"<teacher-yolo11s-fold{run.fold}>"]
            assert run.training["distill"] == "meddet"
        elif run.method == "native":
            assert run.training["distill_model"] == f"<teacher-yolo11s-fold{run.fold}>"
            assert "teachers" not in run.training


def test_given_checkpoints_are_used_as_they_are_with_a_warning(tmp_path):
    checkpoint = tmp_path / "a.pt"
    checkpoint.write_bytes(b"x")
    made = plan(methods=["meddet"], teachers=[str(checkpoint)])
    assert "may have seen" in made.warnings[0]
    assert [run.trained for run in made.runs()] == [False, True, False, True]
    assert not plan(methods=["meddet"], teachers=[str(checkpoint)], folds=1).warnings


def test_a_method_of_ones_own_name_adds_to_it():
    runs = plan(methods={"meddet": {"dist_weight": 3}}, teachers=["yolo11s.yaml"]).runs()
    assert {(r.training["distill"], r.training["dist_weight"]) for r in runs if r.method} == {("meddet", 3)}


def test_a_method_can_choose_teachers_and_students(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("nc: 2\n")
    runs = plan(
        {"p": "yolo11n.yaml", "q": "yolov8n.yaml"},
        {
            "own": {"student": {"p": str(mine), "q": "yolov10n.yaml"}},
            "one": {"distill": "meddet", "teachers": ["yolo11m"]},
        },
        ["yolo11s.yaml", "yolo11m.yaml"],
        folds=1,
    ).runs()
    assert {(r.student, r.model) for r in runs if r.method == "own"} == {("p", str(mine)), ("q", "yolov10n.yaml")}
    assert next(r.digest for r in runs if r.model == str(mine))
    assert {r.needs for r in runs if r.method == "one"} == {("teacher-yolo11m-fold0",)}


def test_a_method_can_change_the_options_of_the_head():
    runs = plan("meddet11-n.yaml", {"stock": {"head": {"branches": []}}, "own": {}}).runs()
    assert [dict(r.head) for r in runs] == [{"branches": []}, {}] * 2
    content = with_head("meddet11-n.yaml", {"branches": []})
    before = with_head("meddet11-n.yaml", {})
    assert content["head"][-1][-1][-1]["branches"] == [] != before["head"][-1][-1][-1]["branches"]
    assert content["backbone"] == before["backbone"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["nativ"]}, "method 'nativ' is unknown: did you mean 'native'"),
        ({"methods": ["meddet"]}, "method meddet needs a teacher: add teachers="),
        ({"methods": []}, "methods= is missing"),
        ({"methods": [{"a": {"lr00": 1}}]}, "method a: lr00 is no key of a training: did you mean 'lr0'"),
        ({"methods": [{"a": {"data": "x"}}]}, "method a: data is set by the comparison"),
        ({"methods": [{"a": {"epochs": "many"}}]}, "method a: .*epochs"),
        ({"methods": ["none", "none"]}, "none is there twice"),
        ({"epohs": 2}, "the plan: epohs is no key of a training: did you mean 'epochs'"),
        ({"cache": "disk"}, "cache=disk would write beside the images"),
        ({"student": []}, "student= is missing"),
        ({"student": "nothing.pt"}, "nothing.pt: no such file"),
        ({"student": "yolo99n.yaml"}, "does not exist"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"folds": 0}, "folds=0"),
        ({"teachers": [{"epochs": 3}]}, "has no `model`"),
        (
            {"methods": {"a": {"distill": "meddet", "teachers": ["b"]}}, "teachers": ["yolo11s.yaml"]},
            "'b' is none of the",
        ),
        ({"methods": {"a": {"head": {"inject": "act"}}}}, "needs a model whose head has options"),
        ({"methods": {"a": {"student": {"x": "yolo11n.yaml"}}}}, "no model for student yolo11n"),
    ],
)
def test_what_is_not_valid_is_refused_in_one_line(arguments, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        plan(**arguments)
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)


def test_the_example_of_the_documentation_is_a_plan():
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1])
    own = {key: recipe.pop(key) for key in ("data", "student", "teachers", "methods", "seeds", "folds", "out")}
    del own["methods"]["other"]  # names files that are not there
    made = make_plan(own["student"], own["methods"], own["teachers"], own["seeds"], own["folds"], recipe)
    assert len(made.runs()) == 2 * 6 * 3 * 4 + 4
    keys = page.partition("## Plans")[2].partition("\n## ")[0]
    table = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", keys, re.M))))
    assert table | {"cfg", "training"} == set(inspect.signature(compare).parameters)
