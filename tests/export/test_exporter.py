import json
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from ultralytics import YOLO
from ultralytics.utils import YAML

from meddet_yolo import MedDet, cli
from meddet_yolo.export.calibration import calibration_images
from meddet_yolo.export.exporter import on_gpu
from meddet_yolo.export.formats import is_ours
from meddet_yolo.export.request import EXPORT_KEYS, gpu_number
from meddet_yolo.model import OWN_KEYS
from meddet_yolo.trt import builder, onnx_export
from meddet_yolo.trt.engine_file import read_engine, read_sidecar
from meddet_yolo.trt.preprocess import preprocess


@pytest.fixture
def checkpoint(tiny_teachers, tmp_path):
    """A checkpoint in a folder of its own, beside which exports appear."""
    path = tmp_path / "best.pt"
    path.write_bytes(tiny_teachers[1].read_bytes())
    return path


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Take the builder's place: remember what it was asked for."""
    seen = {}

    def build(model, out, **options):
        seen.update(options, out=out)
        facts = {"meddet_runtime": "rtx", "meddet_runtime_version": "1", "meddet_precision": options["precision"]}
        facts |= {"meddet_audit": {"matrix": {"fp16": 1}, "kinds": {}}, "meddet_parity": {}}
        from meddet_yolo.trt.engine_file import write_engine

        return write_engine(tmp_path / "x.engine", b"plan", facts)

    monkeypatch.setattr(builder, "build_engine", build)
    return seen


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({}, "fp16"),
        ({"precision": "fp32"}, "fp32"),
        ({"quantize": 16}, "fp16"),
        ({"half": True}, "fp16"),
        ({"quantize": 32}, "fp32"),
        ({"half": True, "precision": "fp16"}, "fp16"),
    ],
)
def test_the_precision_in_all_its_spellings(checkpoint, asked, given, precision):
    MedDet(str(checkpoint)).export(format="engine", runtime="rtx", **given)
    assert asked["precision"] == precision


def test_keys_reach_the_builder(checkpoint, asked, tiny_data):
    MedDet(str(checkpoint)).export(
        format="engine",
        runtime="rtx",
        imgsz=64,
        batch=2,
        dynamic=True,
        nms=False,
        workspace=2,
        compute_capability=(8.6, 8.9),
        int8=True,
        data=str(tiny_data),
        calibration="entropy",
        calibration_images=5,
        max_imgsz=96,
        max_det=50,
        device="cpu",
        verbose=False,
    )
    images = asked.pop("images")
    assert len(images) == 5 and images[0].shape == (3, 64, 64)
    assert asked == {
        "precision": "int8",
        "runtime": "rtx",
        "imgsz": 64,
        "batch": 2,
        "dynamic": True,
        "end2end": True,
        "nms": False,
        "workspace": 2,
        "compute_capability": (8.6, 8.9),
        "calibration": "entropy",
        "max_imgsz": 96,
        "options": {"max_det": 50},
        "out": None,
    }


def test_all_keys_of_the_command_are_understood():
    import inspect

    known = set(inspect.signature(builder.build_engine).parameters) | set(
        inspect.signature(onnx_export.export_onnx).parameters
    )
    assert EXPORT_KEYS - {"calibration_images"} <= known
    assert OWN_KEYS["export"] == EXPORT_KEYS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "data= is missing: precision=int8 is calibrated on images of your application"),
        ({"precision": "fp32", "half": True}, "ask for different precisions"),
        ({"quantize": "w8a16"}, "precision=fp32, fp16, int8 or fp8"),
        ({"format": "onnx", "runtime": "rtx"}, "runtime= is for format=engine, not for format=onnx"),
        ({"format": "openvino", "calibration": "entropy"}, "not for format=openvino"),
        ({"format": "openvino", "precision": "int8"}, "int8"),
        ({"format": "torchscript", "precision": "fp16"}, "is for format=engine, onnx or openvino"),
        ({"device": "dla:0"}, "yolo export"),
        ({"precision": "int8", "data": "d", "split": "nowhere"}, "split=nowhere: .* has no such split"),
        ({"precision": "int8", "data": "d", "calibration_images": 0}, "at least 1"),
        ({"lr0": 0.1}, "lr0= has no meaning"),
        ({"device": [0, 1]}, r"device=\[0, 1\]: expected the number of one GPU"),
        ({"device": "gpu"}, "device=gpu: expected the number of one GPU"),
    ],
)
def test_what_does_not_fit_is_refused(checkpoint, asked, tiny_data, options, message):
    if options.get("data") == "d" or options.get("format") == "openvino":
        options = {**options, "data": str(tiny_data)}
    with pytest.raises(ValueError, match=message):
        MedDet(str(checkpoint)).export(**{"format": "engine", **options})
    assert not asked
    assert [p.name for p in checkpoint.parent.iterdir()] == ["best.pt"]


def test_calibration_images_are_what_the_predictor_feeds(tiny_data):
    files = sorted((tiny_data.parent / "images" / "train").glob("*.png"))
    images = calibration_images(tiny_data, (96, 64), count=100)
    assert len(images) == len(files) and images[0].dtype == np.float32
    expected = preprocess([cv2.imread(str(files[0]))], (96, 64))[0][0]
    np.testing.assert_array_equal(images[0], expected)
    some = calibration_images(tiny_data, (64, 64), count=3)
    assert len(some) == 3  # spread over the split: its first and its last image are among them
    last = preprocess([cv2.imread(str(files[-1]))], (64, 64))[0][0]
    np.testing.assert_array_equal(some[-1], last)
    assert len(calibration_images(tiny_data, (64, 64), split="val")) == 2


def test_shipped_data_sets_are_known_by_name(checkpoint, asked, tiny_data, monkeypatch):
    monkeypatch.setattr("meddet_yolo.export.calibration.find_data", {"shipped.yaml": str(tiny_data)}.get)
    MedDet(str(checkpoint)).export(format="engine", imgsz=64, precision="int8", data="shipped.yaml")
    assert len(asked["images"]) == len(list((tiny_data.parent / "images" / "train").glob("*.png")))


def test_a_data_set_that_is_only_described_is_found(checkpoint, asked):
    """`cdh1848.yaml` comes with the package, its images do not: what is missing is they, not the file."""
    with pytest.raises(FileNotFoundError, match="images"):
        MedDet(str(checkpoint)).export(format="engine", imgsz=64, precision="int8", data="cdh1848.yaml")
    assert not asked


@pytest.mark.parametrize("device", [[0], (0,), "[0]", 0, "0", "cuda:0", "cuda", None, "", "cpu", ["cpu"]])
def test_every_spelling_of_one_device_is_taken(checkpoint, asked, device):
    MedDet(str(checkpoint)).export(format="engine", device=device)
    assert asked["precision"] == "fp16"


@pytest.mark.parametrize(("device", "number"), [([1], 1), ("cuda:2", 2), ("3,", 3), ("cuda", 0), ("cpu", None)])
def test_the_number_of_a_gpu(device, number):
    assert gpu_number(device) == number


def test_the_chosen_gpu_is_the_current_one(monkeypatch):
    chosen = []

    @contextmanager
    def choose(number):
        chosen.append(number)
        yield

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.device", choose)
    monkeypatch.setattr("torch.zeros", lambda *_, device: chosen.append(device))
    with on_gpu([1]):
        assert chosen == [1, "cuda"]
    with pytest.raises(ValueError, match="device=2: no such GPU; this machine has 2"), on_gpu(2):
        pass


def test_dicom_data_sets_calibrate_too(tmp_path):
    pytest.importorskip("pydicom")
    from tests.dicom_files import make_dicom

    rng = np.random.default_rng(0)
    for k in range(3):
        pixels = rng.integers(0, 1000, (40, 60)).astype(np.uint16)
        make_dicom(tmp_path / "images" / "train" / f"s{k}.dcm", pixels, position=(4.0 * k, 0.0, 0.0))
        label = tmp_path / "labels" / "train" / f"s{k}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.2 0.2\n")
    data = tmp_path / "d.yaml"
    data.write_text("train: images/train\nval: images/train\nnames: {0: disc}\n")
    images = calibration_images(data, (64, 64))
    assert len(images) == 3 and {image.shape for image in images} == {(3, 64, 64)}
    assert all(0 <= image.min() < 0.2 and 0.8 < image.max() <= 1 for image in images)  # windowed, not raw


def test_onnx_predicts_as_the_checkpoint(checkpoint, tiny_data):
    path = MedDet(str(checkpoint)).export(format="onnx", imgsz=64, data=str(tiny_data))
    assert path == str(checkpoint.with_suffix(".onnx"))
    assert read_sidecar(path)["meddet_parity"]["fp32"]["images"] == 4
    picture = sorted((tiny_data.parent / "images" / "val").glob("*.png"))[0]
    options = {"imgsz": 64, "conf": 1e-4, "rect": False, "verbose": False}
    ours = YOLO(path, task="detect").predict(picture, **options)[0]
    theirs = YOLO(str(checkpoint)).predict(picture, **options)[0]
    assert ours.names == theirs.names == YAML.load(tiny_data)["names"]
    np.testing.assert_allclose(ours.boxes.conf, theirs.boxes.conf, atol=1e-4)


def test_stages_are_told_as_they_begin(checkpoint, messages):
    MedDet(str(checkpoint)).export(format="onnx", imgsz=64)
    begins = ["writing the graph of", "comparing it with PyTorch", "parity fp32"]
    assert [b for line in messages for b in begins if line.startswith(b)] == begins


def test_the_command_builds_an_engine(checkpoint, tiny_data, capsys):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    command = f"export model={checkpoint} format=engine runtime=rtx precision=fp32 imgsz=64 compute_capability=8.6,8.9"
    assert cli.main(command.split()) == 0
    path = checkpoint.with_name("best-fp32.engine")
    engine = read_engine(path).metadata
    assert engine["names"] == YAML.load(tiny_data)["names"]
    assert engine["meddet_compute_capability"] == ["8.6", "8.9"]
    assert set(engine["meddet_audit"]["matrix"]) == {"fp32"}
    sidecar = json.loads(Path(f"{path}.json").read_text())
    assert sidecar["meddet_precision"] == "fp32" and len(sidecar["sha256"]) == 64
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["onnx", "openvino", "engine"])
def test_a_folder_is_no_place_for_an_export(checkpoint, tmp_path, form):
    """Nothing that stands there is touched, before any work is done."""
    if form == "openvino":
        pytest.importorskip("openvino")
    if form == "engine":
        pytest.importorskip("tensorrt_rtx")
    kept = tmp_path / "mine" / "letter.doc"
    kept.parent.mkdir()
    kept.write_text("dear")
    runtime = {"runtime": "rtx"} if form == "engine" else {}
    with pytest.raises(ValueError, match=r"out=.*mine is a folder"):
        MedDet(str(checkpoint)).export(format=form, imgsz=64, out=str(kept.parent), **runtime)
    assert kept.read_text() == "dear" and list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("format=engine runtime=rtx precison=fp16", 2, "did you mean 'precision'?"),
        ("format=onx imgsz=64", 1, "format=onx is unknown: did you mean 'onnx'?"),
        ("format=openvno imgsz=64", 1, "did you mean 'openvino'?"),
        ("format=engine runtime=cuda", 1, "use one of tensorrt, rtx"),
        ("format=engine runtime=rtx precision=int8", 1, "data= is missing"),
        ("format=engine runtime=rtx imgsz=64 data=none.yaml", 1, "none.yaml"),
        ("format=onnx opset=7 imgsz=64", 1, "opset"),
        ("format=engine runtime=rtx imgsz=64 precision=fp99", 1, "fp32, tf32, fp16, int8, fp8"),
    ],
)
def test_wrong_use_is_one_clear_line(checkpoint, capsys, command, code, message):
    assert cli.main(["export", f"model={checkpoint}", *command.split()]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("meddet: error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not list(checkpoint.parent.glob("best.[!p]*"))


def test_other_formats_stay_ultralytics(checkpoint):
    path = MedDet(str(checkpoint)).export(format="torchscript", imgsz=64)
    assert Path(path).suffix == ".torchscript" and not is_ours("torchscript")
