"""`meddet evaluate`: from files and checkpoints to scores with intervals, written down and required."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from meddet_yolo.cli import main
from meddet_yolo.evaluate import inference
from meddet_yolo.evaluate.detection_files import coco_results
from meddet_yolo.evaluate.detections import Found
from meddet_yolo.evaluate.evaluation import evaluate
from meddet_yolo.evaluate.ground_truth import truth_of
from meddet_yolo.evaluate.measures import MEASURES, measure_class
from meddet_yolo.evaluate.statistics import bootstrap

IMAGES, SIZE = 16, (40, 60)  # two of each patient


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of two classes: two boxes in most images, none in every fourth."""
    generator = np.random.default_rng(0)
    for split in ("val", "test"):
        for number in range(IMAGES):
            image = tmp_path / "images" / split / f"{split}{number:02d}.png"
            label = tmp_path / "labels" / split / f"{split}{number:02d}.txt"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", SIZE[::-1]).save(image)
            count = 0 if number % 4 == 3 else 2
            rows = [
                f"{c} {x:.2f} 0.5 0.2 0.3" for c, x in zip((0, 1), generator.uniform(0.2, 0.8, count), strict=False)
            ]
            label.write_text("\n".join(rows))
    lines = ["image,patient,scanner"]
    lines += [f"{s}{n:02d}.png,p{n // 2},{'A' if n < 8 else 'B'}" for s in ("val", "test") for n in range(IMAGES)]
    (tmp_path / "patients.csv").write_text("\n".join(lines) + "\n")
    file = tmp_path / "data.yaml"
    file.write_text("train: images/val\nval: images/val\ntest: images/test\nnames: [disc, other]\n")
    return file


def _detections(data: Path, name: str, noise: float, missed: float = 0.0, split: str = "val") -> Path:
    """Write detections near the labels, some left out, with false alarms of low confidence."""
    generator = np.random.default_rng(1)
    found = []
    for truth in truth_of(data, split).images:
        keep = generator.random(len(truth)) >= missed
        boxes = truth.boxes[keep] + generator.normal(0, noise, (keep.sum(), 1))
        extra = np.array([[1.0, 1, 5, 5]])
        scores = np.append(generator.uniform(0.5, 1, len(boxes)), generator.uniform(0.05, 0.6))
        found.append(Found(truth.name, np.vstack([boxes, extra]), np.append(truth.classes[keep], 0), scores))
    file = data.parent / f"{name}.json"
    file.write_text(json.dumps(coco_results(found)))
    return file


def test_every_measure_has_scores_of_its_own_and_headlines_among_them(data):
    result = evaluate(_detections(data, "a", 0.2), data, out=data.parent / "out", rounds=20)
    scores = result.models[0].scores
    assert sum(len(measure_class(m)(result.names).headline) for m in MEASURES) == len(set(result.headline))
    assert set(result.headline) <= scores.keys()
    assert (result.images, result.patients, result.boxes) == (16, 8, {"disc": 12, "other": 12})
    assert all(i.unit == "patients" and i.level == 0.95 for i in scores.values())
    assert scores["AUROC/image"].value > 0.9 and scores["sensitivity@1fp"].value == 1
    for interval in scores.values():
        assert np.isfinite(interval.value) or interval.reason


def test_intervals_are_those_of_each_score_alone(data):
    file = _detections(data, "a", 2, missed=0.3)
    result = evaluate(file, data, out=data.parent / "out", rounds=60, measures="froc", seed=5)
    from meddet_yolo.evaluate.detection_files import read_detections
    from meddet_yolo.evaluate.detections import align
    from meddet_yolo.evaluate.measures import measure

    truth = truth_of(data)
    froc = measure("froc", truth.names)
    for f, t in zip(align(read_detections(file, truth), truth), truth.images, strict=True):
        froc.update(f, t)
    alone = bootstrap(lambda w: froc.compute(w)["FROC"], truth.patients, rounds=60, seed=5, scale="share")
    assert result.models[0].scores["FROC"] == alone and alone.low < alone.value < alone.high


def test_what_is_written_holds_every_score(data):
    out = data.parent / "out"
    result = evaluate([_detections(data, "a", 0.2), _detections(data, "b", 4, 0.4)], data, out=out, rounds=30)
    content = json.loads((out / "evaluation.json").read_text())
    assert [m["name"] for m in content["models"]] == ["a", "b"]
    interval = result.models[1].scores["FROC"]
    assert content["models"][1]["scores"]["FROC"]["low"] == interval.low
    assert content["models"][0]["scores"]["centre_mm"]["value"] is None  # no NaN in JSON
    assert content["models"][0]["details"]["froc"]["curves"]["all"]["sensitivity"][-1] == 1
    text = (out / "evaluation.md").read_text()
    assert f"| FROC | {result.models[0].scores['FROC']} | {interval} |" in text
    assert "undefined: the pixel spacing is unknown" in text and "16 images of 8 patients" in text
    assert "FROC" in str(result) and str(out) in str(result)


def test_every_model_is_told_before_it_is_judged(data, messages):
    files = [_detections(data, name, 0.2) for name in "ab"]
    evaluate(files, data, out=data.parent / "out", rounds=20)
    assert [line[:8] for line in messages if line.startswith("[")] == ["[1/2] a:", "[2/2] b:"]


def test_models_are_compared_with_the_first(data):
    files = [_detections(data, "good", 0.5), _detections(data, "bad", 4, 0.6), _detections(data, "same", 0.5)]
    result = evaluate(files, data, out=data.parent / "out", rounds=300)
    bad, same = result.comparisons
    assert (bad.first, bad.second) == ("bad", "good")
    sensitivity = bad.differences["sensitivity"]
    models = [m.scores["sensitivity"].value for m in result.models]
    assert sensitivity.value == pytest.approx(models[1] - models[0]) and sensitivity.high < 0 and sensitivity.p < 0.05
    assert same.differences["mAP50-95"].value == 0 and same.differences["mAP50-95"].p == 1
    assert all(bad.corrected[k] >= d.p for k, d in bad.differences.items() if d.p is not None)
    assert bad.corrected["sensitivity"] > sensitivity.p


def test_a_comparison_respects_each_models_threshold(data):
    files = [_detections(data, "a", 0.5), _detections(data, "b", 4, 0.6)]
    result = evaluate(files, data, out=data.parent / "out", rounds=30, threshold="f1")
    assert result.models[0].threshold != result.models[1].threshold
    from meddet_yolo.evaluate import evaluation as module
    from meddet_yolo.evaluate import measuring

    judged = [
        measuring.Judged(m.name, module._detections(Path(m.source), data, "val", truth_of(data), data, {}, None)[0],
                       m.threshold, None, None)
        for m in result.models
    ]  # fmt: skip
    pool = measuring._of_two((judged[0], judged[1]), truth_of(data), cut=True)
    both = measuring.make_measure("operating_point", truth_of(data).names, {"threshold": 0.0}, pool)
    for place, model in enumerate(result.models):
        weights = np.zeros((2, IMAGES), int)
        weights[place] = 1
        for key in ("sensitivity", "precision", "F1"):
            assert both.compute(weights.reshape(-1))[key] == pytest.approx(model.scores[key].value)
    assert any("chosen on the images it is judged on" in note for note in result.notes)


def test_subgroups_have_counts_and_scores_of_their_own(data):
    result = evaluate(
        _detections(data, "a", 2, 0.3), data, out=data.parent / "out", rounds=20, subgroups="scanner",
        table=data.parent / "patients.csv", measures=["operating_point", "froc"],
    )  # fmt: skip
    first, second = result.subgroups
    assert [(s.column, s.value, s.images, s.patients, s.boxes) for s in result.subgroups] == [
        ("scanner", "A", 8, 4, 12),
        ("scanner", "B", 8, 4, 12),
    ]
    whole = result.models[0].scores["sensitivity"].value
    parts = [s.scores["a"]["sensitivity"].value for s in (first, second)]
    assert whole == pytest.approx(np.mean(parts)) and set(first.scores["a"]) == set(result.headline)
    assert "| scanner | A | 8 | 4 | 12 | a | FROC |" in (data.parent / "out" / "evaluation.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measures": "mAP"}, "measures=mAP is no measure"),
        ({"require": "FROC>0.5"}, "require=FROC>0.5 is no requirement"),
        ({"require": "frog>=0.5"}, "there is no score frog; there are mAP50-95"),
        ({"subgroups": "scanner"}, r"add table=FILE\.csv"),
        ({"patient": "person"}, r"patient=person names a column of a table: add table=FILE\.csv"),
        ({"threshold": 2}, "threshold=2 must lie in"),
        ({"threshold": "f2"}, "threshold=f2 is no rule"),
        ({"threshold": "f1", "choose_on": "test"}, "tells nothing: give a number"),
        ({"recalibrate": "platt"}, "recalibrate=platt is unknown: use temperature or isotonic"),
        ({"recalibrate": "isotonic", "choose_on": "test"}, "tells nothing: give a number"),
        ({"store": True}, "store=true has nothing to store"),
        ({"store": True, "recalibrate": "isotonic"}, "is no exported model with a sidecar"),
        ({"noise": "rician"}, "noise= needs checkpoints"),
        ({"hit": "touch"}, "hit=touch is unknown"),
        ({"model": []}, "model= names no model"),
    ],
)
def test_refuses_wrong_arguments_in_one_line(data, change, message):
    arguments = {"model": _detections(data, "a", 1), "data": data, "out": data.parent / "out", "rounds": 3}
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(**{**arguments, **change})
    assert "\n" not in str(caught.value)


def test_refuses_subgroups_that_are_none(data):
    table = data.parent / "table.csv"
    table.write_text("image,age\n" + "".join(f"val{n:02d}.png,{n}\n" for n in range(IMAGES)) + "x.png,1\n")
    evaluated = {"model": _detections(data, "a", 1), "data": data, "out": data.parent / "out", "rounds": 3}
    with pytest.raises(ValueError, match="has no column 'sex'"):
        evaluate(**evaluated, table=table, subgroups="sex")
    table.write_text("image,age\nx.png,1\n")
    with pytest.raises(ValueError, match="has no age for any image"):
        evaluate(**evaluated, table=table, subgroups="age")


def test_unknown_patients_and_a_single_one_are_marked(data):
    file = _detections(data, "a", 1)
    table = data.parent / "patients.csv"
    table.write_text("image,patient\n" + "".join(f"val{n:02d}.png,p\n" for n in range(IMAGES)))
    one = evaluate(file, data, out=data.parent / "out", rounds=20, measures="froc")
    assert one.patients == 1 and one.models[0].scores["FROC"].reason == "only one patient"
    table.unlink()
    unknown = evaluate(file, data, out=data.parent / "out", rounds=20, measures=["froc", "auroc"])
    assert unknown.patients is None and unknown.models[0].scores["FROC"].unit == "images"
    assert unknown.models[0].scores["AUROC/patient"].reason == "patients are unknown"
    assert "over images" in (data.parent / "out" / "evaluation.md").read_text() and "patients are unknown" in str(
        unknown
    )


def test_the_command_prints_and_its_exit_code_tells_what_is_required(data, capsys, monkeypatch):
    monkeypatch.chdir(data.parent)
    file = _detections(data, "a", 0.5, missed=0.2)
    arguments = ["evaluate", f"model={file}", f"data={data}", "rounds=50", "measures=[froc,operating_point]"]
    assert main([*arguments, "require=sensitivity@1fp>=0.3"]) == 0
    assert "sensitivity@1fp" in capsys.readouterr().out
    assert (data.parent / "runs/evaluate/data-val/evaluation.json").is_file()
    assert main([*arguments, "require=[sensitivity@1fp>=0.3,fp_per_image<=0.01]"]) == 1
    printed = capsys.readouterr()
    assert "fp_per_image is" in printed.err and "required <= 0.01" in printed.err and printed.err.count("\n") == 1
    assert main([*arguments, "nothing=1"]) == 2


def test_a_requirement_is_of_the_bound_and_not_met_without_one(data):
    file, out = _detections(data, "a", 0.5, missed=0.2), data.parent / "out"
    options = {"out": out, "rounds": 60, "measures": "operating_point"}
    interval = evaluate(file, data, **options).models[0].scores["sensitivity"]
    between = (interval.low + interval.value) / 2
    for name, bound, met in (
        ("sensitivity", interval.low - 0.01, True),
        ("sensitivity", between, False),
        ("sensitivity/disc", 0.01, True),
    ):
        assert (not evaluate(file, data, require=f"{name}>={bound}", **options).unmet) is met
    options["measures"] = ["operating_point", "error_types"]
    exact = evaluate(_detections(data, "b", 0), data, require="errors/both<=0.5", **options)
    assert exact.models[0].scores["errors/both"].value == 0
    assert "the same in all resamples" in exact.unmet[0]
    # Nothing is missed, so that the bound comes from the number of patients with a box.
    patients = len({p for p, t in zip(truth_of(data).patients, truth_of(data).images, strict=True) if len(t)})
    perfect = exact.models[0].scores["sensitivity"]
    assert perfect.value == perfect.high == 1 and 1 - 6 / patients < perfect.low < 1 - 3 / patients


# models ---------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_run_once_and_gives_ultralytics_boxes(tiny_data, tiny_teachers, tmp_path, monkeypatch):
    from meddet_yolo import MedDet

    class Recorded(inference.CollectingValidator):
        folders: ClassVar[list[Path]] = []

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.folders.append(Path(self.save_dir))

    monkeypatch.setattr(inference, "CollectingValidator", Recorded)
    options = {"imgsz": 64, "device": "cpu", "batch": 2, "workers": 0}
    out = tmp_path / "out"
    first = evaluate(tiny_teachers[0], tiny_data, out=out, rounds=5, **options)
    assert len(Recorded.folders) == 1 and not Recorded.folders[0].exists()  # it has nothing to hold
    assert not first.models[0].cached and first.models[0].boxes > 0
    saved = MedDet(tiny_teachers[0]).val(
        data=str(tiny_data), save_json=True, plots=False, project=str(tmp_path / "val"), rect=True, **options
    )
    theirs = json.loads((Path(saved.save_dir) / "predictions.json").read_text())
    truth = truth_of(tiny_data)
    found, cached = inference.find(tiny_teachers[0], tiny_data, "val", truth, cache=out / "predictions", **options)
    assert cached and sum(map(len, found)) == len(theirs) == first.models[0].boxes
    for f in found:
        expected = [r for r in theirs if r["file_name"] == f.name]
        boxes = np.array([[*r["bbox"][:2], r["bbox"][0] + r["bbox"][2], r["bbox"][1] + r["bbox"][3]] for r in expected])
        np.testing.assert_allclose(f.boxes, boxes, atol=2e-3)
        np.testing.assert_allclose(f.scores, [r["score"] for r in expected], atol=1e-5)
        np.testing.assert_array_equal(f.classes, [r["category_id"] - 1 for r in expected])
    monkeypatch.setattr(inference, "YOLO", lambda *a, **k: pytest.fail("the model ran again"))
    again = evaluate(tiny_teachers[0], tiny_data, out=out, rounds=5, **options)
    assert again.models[0].cached and {k: str(v) for k, v in again.models[0].scores.items()} == {
        k: str(v) for k, v in first.models[0].scores.items()
    }


def test_predictions_depend_on_model_images_and_options(tiny_data, tiny_teachers):
    truth = truth_of(tiny_data)
    keys = {
        inference.predictions_key(tiny_teachers[0], truth, {}),
        inference.predictions_key(tiny_teachers[1], truth, {}),
        inference.predictions_key(tiny_teachers[0], truth, {"imgsz": 64}),
        inference.predictions_key(tiny_teachers[0], truth.subset([True] + [False] * (len(truth) - 1)), {}),
    }
    assert len(keys) == 4
    assert inference.predictions_key(tiny_teachers[0], truth, {}) in keys


def test_a_model_of_other_classes_or_none_is_refused_before_it_runs(tiny_data, tiny_teachers, tmp_path, monkeypatch):
    truth = truth_of(tiny_data)
    monkeypatch.setattr(inference, "CollectingValidator", None)
    other = type(truth)(truth.images, ("a", "b"), "elsewhere")
    with pytest.raises(ValueError, match=r"has the classes .*, but elsewhere has a, b"):
        inference.find(tiny_teachers[0], tiny_data, "val", other, imgsz=64, device="cpu", workers=0)
    with pytest.raises(FileNotFoundError, match=r"model=nowhere\.pt: no such file"):
        evaluate("nowhere.pt", tiny_data, out=tmp_path)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_recalibrated_confidences_are_judged_and_it_is_said(data, kind):
    file = _detections(data, "a", 1, 0.2)
    plain = evaluate(file, data, out=data.parent / "out", rounds=3, threshold="f1").models[0]
    result = evaluate(file, data, out=data.parent / "out", rounds=3, threshold="f1", recalibrate=kind)
    (model,) = result.models
    assert any("made probabilities by" in note for note in result.notes)
    assert any("recalibrated on the images it is judged on" in note for note in result.notes)
    # The order of boxes stays but for ties, and so do the curves; the threshold moves with the confidences.
    if kind == "temperature":
        assert model.scores["FROC"].value == plain.scores["FROC"].value
        assert model.scores["F1"].value == plain.scores["F1"].value and model.threshold != plain.threshold
    else:  # fitted on the same boxes, so that only rounding to bins is left
        assert model.scores["D-ECE"].value < plain.scores["D-ECE"].value / 2


def test_a_stored_recalibration_is_applied_by_evaluation_and_runner(tiny_data, tiny_teachers, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from ultralytics import YOLO

    from meddet_yolo.trt.engine_file import EngineFileError, write_sidecar
    from meddet_yolo.trt.recalibration import stored
    from meddet_yolo.trt.runner import open_runner

    copy = tmp_path / "a.pt"
    copy.write_bytes(tiny_teachers[0].read_bytes())
    file = Path(YOLO(str(copy)).export(format="onnx", imgsz=64, simplify=False, verbose=False))
    options = {"data": tiny_data, "out": tmp_path / "out", "rounds": 3, "workers": 0, "imgsz": 64}
    options |= {"measures": ["calibration"], "choose_on": "val"}
    with pytest.raises(EngineFileError, match="has no sidecar"):
        evaluate(file, **options, recalibrate="temperature", store=True)
    write_sidecar(file, {})
    fitted = evaluate(file, **options, recalibrate="temperature", store=True)
    again = evaluate(file, **options)
    assert again.models[0].cached and any("a temperature of" in note for note in again.notes)
    assert str(again.models[0].scores["D-ECE"]) == str(fitted.models[0].scores["D-ECE"])
    with open_runner(file) as runner:
        assert runner.recalibration == stored(file) is not None


def test_a_stored_recalibration_is_applied_by_predict_and_val(tiny_data, tiny_teachers, tmp_path, caplog):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from ultralytics import YOLO

    from meddet_yolo import MedDet
    from meddet_yolo.trt.engine_file import write_sidecar
    from meddet_yolo.trt.recalibration import Temperature, store

    copy = tmp_path / "a.pt"
    copy.write_bytes(tiny_teachers[0].read_bytes())
    file = Path(YOLO(str(copy)).export(format="onnx", imgsz=64, simplify=False, verbose=False))
    picture = truth_of(tiny_data).images[0].path
    options = {"imgsz": 64, "device": "cpu", "verbose": False}

    def predicted(conf: float):
        return MedDet(file, task="detect").predict(picture, conf=conf, **options)[0].boxes

    def validated():
        return MedDet(file, task="detect").val(data=str(tiny_data), workers=0, plots=False, **options).box.map

    plain, accuracy = predicted(0.001), validated()
    write_sidecar(file, {})
    half = Temperature(2.0)
    store(file, half)
    caplog.set_level("INFO", logger="ultralytics")
    caplog.clear()
    least = float(half([plain.conf.median()])[0])
    made = predicted(least)
    assert caplog.text.count("confidences are made probabilities (temperature, from its sidecar)") == 1
    expected = [p for p in half(plain.conf.numpy()) if p > least]
    assert 0 < len(made) < len(plain) and made.conf.numpy() == pytest.approx(expected, abs=1e-6)
    assert validated() == pytest.approx(accuracy)  # the order is as it was
    assert caplog.text.count("from its sidecar") == 2


def test_noise_is_joined_in_and_without_it_accuracy_is_vals(tiny_data, tiny_teachers, tmp_path):
    from meddet_yolo.evaluate.noise import noise_robustness

    options = {"noise": "rician", "sigma": [0, 0.2], "imgsz": 64, "workers": 0, "device": "cpu"}
    result = evaluate(tiny_teachers[0], tiny_data, out=tmp_path / "out", rounds=3, measures="counts", **options)
    alone = noise_robustness(tiny_teachers[0], tiny_data, save_dir=str(tmp_path / "alone"), **options)
    assert [(r.noise, r.sigma) for r in result.noise] == [("rician", 0.0), ("rician", 0.2)]
    assert [r.map50_95 for r in result.noise] == [r.map50_95 for r in alone.results]
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())["noise"]
    assert told[1]["sigma"] == 0.2 and (tmp_path / "out" / "noise" / "noise.csv").is_file()
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="noise-0"' in page and "## Under noise" in (tmp_path / "out" / "evaluation.md").read_text()


def test_a_readme_of_others_is_not_overwritten_and_ours_is(data):
    out = data.parent / "out"
    arguments = {"model": _detections(data, "a", 1), "data": data, "out": out, "rounds": 3, "measures": "counts"}
    evaluate(**arguments)
    evaluate(**arguments)
    (out / "README.md").write_text("# My project\n\nabout meddet-yolo\n")
    with pytest.raises(ValueError, match=r"has a README\.md of its own"):
        evaluate(**arguments)
    assert (out / "README.md").read_text().startswith("# My project")
