import csv
import json
import random
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset

from meddet_yolo import MedDet, cli
from meddet_yolo.data.dataset import build_dataset
from meddet_yolo.data.mri_noise import MRINoiseConfig
from meddet_yolo.evaluate import noise as module
from meddet_yolo.evaluate.noise import _degrade, noise_robustness, short_names


def dataset(data, imgsz=48, **options):
    checked = check_det_dataset(str(data))
    return build_dataset(
        get_cfg(overrides={"imgsz": imgsz, **options}), checked["val"], 2, checked, mode="val", rect=True
    )


@pytest.mark.parametrize("imgsz", [32, 64, 96])  # smaller than the images, as large, larger
def test_without_noise_images_are_those_of_the_stock_data_set(tiny_data, imgsz):
    plain, degraded = dataset(tiny_data, imgsz), dataset(tiny_data, imgsz)
    degraded.degrade = partial(_degrade, noise="rician", sigma=0.0, seed=0)
    for mine, theirs in zip(degraded, plain, strict=False):
        np.testing.assert_array_equal(mine["img"], theirs["img"])
        assert list(mine["ori_shape"]) == list(theirs["ori_shape"])
        assert list(mine["resized_shape"]) == list(theirs["resized_shape"])


def test_noise_is_added_before_resizing_and_belongs_to_the_image(tiny_data):
    degraded = dataset(tiny_data, 32)
    seen = []
    degraded.degrade = lambda image: seen.append(image.shape) or _degrade(image, noise="rician", sigma=0.3, seed=0)
    forward = [degraded[i]["img"] for i in range(len(degraded))]
    backward = [degraded[i]["img"] for i in reversed(range(len(degraded)))][::-1]
    assert set(seen) == {(64, 64, 3)} and degraded.load_image(0)[0].shape == (32, 32, 3)
    for first, second, clean in zip(forward, backward, dataset(tiny_data, 32), strict=False):
        np.testing.assert_array_equal(first, second)
        assert (first != clean["img"]).any()


def test_the_same_noise_grows_with_its_strength(tiny_data):
    image = cv2.imread(str(next((tiny_data.parent / "images" / "val").iterdir())))
    clean = image.astype(float)
    weak, strong = (_degrade(image, noise="rician", sigma=s, seed=0) - clean for s in (0.05, 0.1))
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.9
    other = _degrade(image, noise="rician", sigma=0.1, seed=1) - clean
    assert np.corrcoef(other.ravel(), strong.ravel())[0, 1] < 0.7


@pytest.fixture
def self_labelled(tiny_data, tiny_teachers, tmp_path):
    """The data set with what the first model finds as its labels, so that its accuracy is not 0."""
    root = tmp_path / "data"
    shutil.copytree(tiny_data.parent, root, ignore=shutil.ignore_patterns("*.cache"))
    model = YOLO(tiny_teachers[0])
    for image in (root / "images" / "val").iterdir():
        boxes = model.predict(image, imgsz=64, conf=1e-6, max_det=3, verbose=False, save=False)[0].boxes
        lines = [
            f"{int(c)} " + " ".join(f"{v:.6f}" for v in box) for c, box in zip(boxes.cls, boxes.xywhn, strict=True)
        ]
        (root / "labels" / "val" / f"{image.stem}.txt").write_text("\n".join(lines))
    return root / tiny_data.name


def test_report_agrees_with_val_and_is_written(self_labelled, tiny_teachers, tmp_path):
    tiny_data, options = (
        self_labelled,
        {"imgsz": 64, "project": str(tmp_path), "device": "cpu", "conf": 1e-6, "rect": False},
    )
    report = noise_robustness(tiny_teachers, tiny_data, noise=["rician", "gibbs"], sigma=[0.2, 0.0], **options)
    clean, noisy = (next(r for r in report.results if r.sigma == s) for s in (0.0, 0.2))
    assert clean.map50 > 0 and clean.map50 != noisy.map50
    models = [path.stem for path in tiny_teachers]
    order = [(r.noise, r.model, r.sigma) for r in report.results]
    assert order == [(n, m, s) for n in ("rician", "gibbs") for m in models for s in (0.0, 0.2)]
    for model, path in zip(models, tiny_teachers, strict=True):
        box = YOLO(path).val(data=str(tiny_data), name="plain", plots=False, **options).box
        clean = next(r for r in report.results if (r.model, r.sigma) == (model, 0.0))
        assert (clean.map50_95, clean.map50, clean.recall) == pytest.approx((box.map, box.map50, box.mr), abs=1e-9)
    saved = json.loads((report.save_dir / "noise.json").read_text())
    assert [r["map50"] for r in saved["results"]] == [r.map50 for r in report.results]
    assert set(saved["units"]) == {"rician", "gibbs"}
    with (report.save_dir / "noise.csv").open() as file:
        assert [float(row["recall"]) for row in csv.DictReader(file)] == [r.recall for r in report.results]
    assert cv2.imread(str(report.save_dir / "noise.png")).shape[1] > 800
    assert "kept" in str(report) and str(report.save_dir) in str(report)


def test_what_was_measured_before_an_interruption_is_kept(tiny_data, tiny_teachers, tmp_path, monkeypatch):
    original, calls = module._validate, []

    def stop(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, "_validate", stop)
    with pytest.raises(KeyboardInterrupt):
        noise_robustness(tiny_teachers, tiny_data, sigma=[0, 0.1], imgsz=64, project=str(tmp_path))
    assert len(json.loads((tmp_path / "noise" / "noise.json").read_text())["results"]) == 2


def test_command_prints_the_table_for_several_models(tiny_data, tiny_teachers, tmp_path, capsys):
    models = ",".join(map(str, tiny_teachers))
    arguments = ["val", f"model=[{models}]", f"data={tiny_data}", "noise=spikes", "sigma=[0,0.1]", "imgsz=64"]
    assert cli.main([*arguments, f"project={tmp_path}", "name=try"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("spikes")] == [
        ["spikes", path.stem, sigma] for path in tiny_teachers for sigma in ("0", "0.1")
    ]
    assert (tmp_path / "try" / "noise.png").is_file()


def test_method_of_a_model_returns_the_report(tiny_data, tiny_teachers, tmp_path):
    report = MedDet(tiny_teachers[0]).val(data=tiny_data, noise="bias", sigma=0.5, imgsz=64, project=str(tmp_path))
    assert [(r.model, r.noise, r.sigma) for r in report.results] == [(tiny_teachers[0].stem, "bias", 0.5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["noise=ricin"], "noise must be one of rician"),
        (["noise=rician", "sigma=[0,x]"], "sigma must be a number or a list of them"),
        (["noise=rician", "sigma=[]"], "sigma is an empty list"),
        (["noise=gibbs", "sigma=[0,1]"], "at least 0 and below 1, got 1.0"),
        (["noise=rician", "sigma=-0.1"], "at least 0, got -0.1"),
        (["noise=rician", "seed=-1"], "seed must be a whole number"),
        (["sigma=0.1"], "noise= is missing"),
        (["noise=rician", "data=none.yaml"], "none.yaml"),
        (["noise=rician", "model=none.pt"], "model=none.pt: no such file"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(
    arguments, message, tiny_data, tiny_teachers, tmp_path, capsys
):
    given = {"model": tiny_teachers[0], "data": tiny_data, "project": tmp_path}
    given.update(a.split("=", 1) for a in arguments)
    assert cli.main(["val", *(f"{k}={v}" for k, v in given.items())]) != 0
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_names_tell_models_apart():
    paths = [Path(p) for p in ("r/a/weights/best.pt", "r/b/weights/best.pt", "r/b/weights/last.pt")]
    assert short_names(paths) == ["a/weights/best", "b/weights/best", "b/weights/last"]
    assert short_names(paths[:1]) == ["best"]
    with pytest.raises(ValueError, match="given twice"):
        short_names([Path("a.pt"), Path("a.pt")])


def test_training_data_get_noise_image_by_image_and_validation_data_never(tiny_data):
    checked = check_det_dataset(str(tiny_data))
    still = {"imgsz": 64, "mosaic": 0.0, "hsv_v": 0.0, "translate": 0.0, "scale": 0.0, "fliplr": 0.0}
    clean, noisy = get_cfg(overrides=still), get_cfg(overrides=still)
    for key, value in MRINoiseConfig(mri_noise=1.0).to_dict().items():
        setattr(noisy, key, value)
    random.seed(0)  # a strength may be drawn so small that it changes no grey value
    for mode, changed in (("train", True), ("val", False)):
        pair = [build_dataset(cfg, checked["train"], 2, checked, mode=mode) for cfg in (noisy, clean)]
        different = [(pair[0][i]["img"] != pair[1][i]["img"]).any() for i in range(len(pair[0]))]
        assert all(different) if changed else not any(different)
        if changed:  # what the data set keeps for mosaics stays clean, and each look is another
            first = pair[0]
            np.testing.assert_array_equal(first.load_image(0)[0], pair[1].load_image(0)[0])
            assert (first[0]["img"] != first[0]["img"]).any()


def test_training_refuses_bad_noise_and_records_good(tiny_data, tmp_path, capsys):
    base = ["train", "model=yolo11n.yaml", f"data={tiny_data}", "epochs=1", f"project={tmp_path}"]
    assert cli.main([*base, "mri_noise=2"]) == 1
    assert "mri_noise must be a number of at least 0 and at most 1, got 2" in capsys.readouterr().err
    assert cli.main([*base, "mri_nois=0.5"]) == 2
    assert "did you mean 'mri_noise'" in capsys.readouterr().err
    from meddet_yolo import DistillTrainer

    trainer = DistillTrainer(
        overrides={"model": "yolo11n.yaml", "data": str(tiny_data), "project": str(tmp_path), "mri_noise": 0.5}
    )
    assert trainer.args.mri_noise == 0.5 and trainer.args.mri_noise_sigma == 0.1
    assert "mri_noise: 0.5" in (trainer.save_dir / "args.yaml").read_text()


def test_shipped_data_set_is_found_by_name(tmp_path, monkeypatch, capsys, tiny_data, tiny_teachers):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["val", f"model={tiny_teachers[0]}", "data=cdh1848.yaml", "imgsz=64"]) == 1
    assert "cdh1848" in capsys.readouterr().err
    shutil.copytree(tiny_data.parent, tmp_path / "cdh1848")
    arguments = ["val", f"model={tiny_teachers[0]}", "data=cdh1848.yaml", "imgsz=64", f"project={tmp_path / 'runs'}"]
    assert cli.main(arguments) == 0
