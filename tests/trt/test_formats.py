"""The one table of formats: every entry exports, opens and says what it is."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from meddet_yolo.trt.formats import FORMATS, format_of
from meddet_yolo.trt.openvino_export import export_openvino
from meddet_yolo.trt.openvino_session import OpenVinoSession, inference_precision, model_file
from meddet_yolo.trt.request import ExportRequest
from meddet_yolo.trt.runner import Runner, open_runner

EVERYTHING = {"conf": 0.0, "iou": 1.0, "max_det": 84}  # every anchor of 64 pixels


@pytest.fixture(scope="module")
def image():
    coarse = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    return cv2.resize(coarse, (90, 50), interpolation=cv2.INTER_LINEAR)


@pytest.fixture(scope="module")
def vino(student, tmp_path_factory):
    """OpenVINO exports by precision."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("vino")
    made = {}
    for precision in ("fp32", "fp16"):
        request = ExportRequest(precision=precision, imgsz=64)
        made[precision] = FORMATS["openvino"].export(student, folder / f"{precision}_openvino_model", request)
    return made


def in_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 here when nobody tells it."""
    openvino = pytest.importorskip("openvino")
    return openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string() == "bf16"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_found_by_its_files(name):
    form = FORMATS[name]
    assert form.name == name
    found = format_of(f"best{form.suffix}")
    assert found is not None and type(found) is type(form)
    assert format_of("best.pt") is None


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_measured_can_be_made(name):
    form = FORMATS[name]
    others = [other for other in FORMATS.values() if other.suffix in form.also]
    for precision in form.measured:
        assert any(precision in each.precisions for each in (form, *others))
    with pytest.raises(ValueError, match="precision="):
        form.check("fp99")


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_missing_is_named(name, monkeypatch):
    form = FORMATS[name]
    monkeypatch.setattr("meddet_yolo.trt.formats.find_spec", lambda module: None)
    package = {"onnx": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}[name]
    assert form.unavailable(gpu=True) == f"{package} is not installed: pip install {package}"
    if name == "tensorrt":
        assert "no CUDA GPU" in form.unavailable(gpu=False)


@pytest.mark.parametrize("name", ["onnx", pytest.param("openvino", marks=pytest.mark.slow("converts"))])
def test_exported_and_opened_it_is_the_model(student, image, tmp_path, name):
    form = FORMATS[name]
    if form.unavailable():
        pytest.skip(form.unavailable())
    path = form.export(student, tmp_path / f"s{form.suffix}", ExportRequest(precision="fp32", imgsz=64))
    assert format_of(path) is form and form.facts(path)["meddet_precision"] == "fp32"
    with open_runner(path, threads=1, **EVERYTHING) as runner:
        (found,) = runner(image)
    assert runner.names == student.names
    with Runner(FORMATS["onnx"].open(FORMATS["onnx"].export(student, tmp_path / "r.onnx", ExportRequest(
        precision="fp32", imgsz=64)), threads=1), **EVERYTHING) as reference:  # fmt: skip
        (expected,) = reference(image)
    assert len(found) == len(expected) == 84
    np.testing.assert_allclose(np.sort(found.xyxy, axis=0), np.sort(expected.xyxy, axis=0), atol=0.05)


def test_every_precision_has_a_file_of_its_own(student, tmp_path, monkeypatch):
    """An export in half precision leaves the one in single precision where it is."""
    monkeypatch.chdir(tmp_path)  # where the exports of a model without a checkpoint go
    form = FORMATS["onnx"]
    whole = form.export(student, None, ExportRequest(precision="fp32", imgsz=64))
    before = whole.read_bytes()
    half = form.export(student, None, ExportRequest(precision="fp16", imgsz=64))
    assert (whole.name, half.name) == ("meddet-n.onnx", "meddet-n-fp16.onnx")
    assert whole.read_bytes() == before and len(half.read_bytes()) < 0.6 * len(before)
    assert (form.precision_of(whole), form.precision_of(half)) == ("fp32", "fp16")


@pytest.mark.slow("converts")
def test_openvino_is_computed_as_it_was_checked(vino):
    for precision, path in vino.items():
        assert FORMATS["openvino"].facts(path)["meddet_inference_precision"] == "f32"
        assert inference_precision(path) == inference_precision(model_file(path)) == "f32"
        assert FORMATS["openvino"].open(path).precision == "f32"
        assert FORMATS["openvino"].describe(path) == [f"OpenVINO, precision {precision}, computed in f32"]


@pytest.mark.slow("converts")
def test_openvino_of_others_is_left_to_openvino(vino, tmp_path):
    foreign = tmp_path / "foreign_openvino_model"
    foreign.mkdir()
    for file in vino["fp32"].iterdir():
        if file.suffix != ".json":
            (foreign / file.name).write_bytes(file.read_bytes())
    assert inference_precision(foreign) is None
    assert FORMATS["openvino"].precision_of(foreign) == ("bf16" if in_bfloat16() else "fp32")
    assert FORMATS["openvino"].precision_of(vino["fp16"]) == "fp16"
    assert OpenVinoSession(foreign).precision == ("bf16" if in_bfloat16() else "f32")
    assert OpenVinoSession(foreign, precision="f32").precision == "f32"


@pytest.mark.slow("converts")
def test_bfloat16_is_a_precision_of_its_own(student, vino, image, tmp_path):
    request = ExportRequest(precision="bf16", imgsz=64)
    if not in_bfloat16():
        with pytest.raises(ValueError, match="seems to have no bfloat16"):
            FORMATS["openvino"].export(student, tmp_path / "b_openvino_model", request)
        assert not list(tmp_path.iterdir())
        return
    path = FORMATS["openvino"].export(student, tmp_path / "b_openvino_model", request)
    facts = FORMATS["openvino"].facts(path)
    assert facts["meddet_precision"] == facts["meddet_inference_precision"] == "bf16"
    assert list(facts["meddet_parity"]) == ["fp32", "bf16"]  # first what the file holds, then what it is computed in
    assert facts["meddet_parity"]["fp32"]["tolerance"]["scores"] < facts["meddet_parity"]["bf16"]["tolerance"]["scores"]
    with open_runner(path, **EVERYTHING) as half, open_runner(vino["fp32"], **EVERYTHING) as whole:
        assert (half.session.precision, whole.session.precision) == ("bf16", "f32")
        difference = np.abs(np.sort(half(image)[0].confidence) - np.sort(whole(image)[0].confidence)).max()
    assert difference < 0.1


@pytest.mark.slow("converts")
def test_an_openvino_model_of_dynamic_shape_runs(student, image, tmp_path):
    pytest.importorskip("openvino")
    path = export_openvino(student, tmp_path / "d_openvino_model", imgsz=64, batch=2, dynamic=True)
    with open_runner(path, **EVERYTHING) as runner:
        one, two = runner(image), runner([image, image])
    np.testing.assert_allclose(two[1].confidence, one[0].confidence, atol=1e-5)
    np.testing.assert_allclose(two[0].confidence, one[0].confidence, atol=1e-5)
    with pytest.raises(RuntimeError, match="is closed"):
        runner(image)


@pytest.mark.slow("converts")
def test_an_older_model_may_be_replaced_and_nothing_else(student, vino, tmp_path):
    target = tmp_path / "s_openvino_model"
    for _ in range(2):
        assert export_openvino(student, target, imgsz=64) == target
    (target / "notes.doc").write_text("mine")
    with pytest.raises(ValueError, match=r"other things in it \(notes\.doc\)"):
        export_openvino(student, target, imgsz=64)
    assert (target / "notes.doc").read_text() == "mine"
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        export_openvino(student, target / "notes.doc", imgsz=64)


def test_what_is_no_openvino_model(tmp_path):
    pytest.importorskip("openvino")
    with pytest.raises(FileNotFoundError, match=r"no \.xml file in this folder"):
        open_runner(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_runner(tmp_path / "none_openvino_model")
    (tmp_path / "x.xml").write_text("<net>")
    with pytest.raises(ValueError, match="no model that OpenVINO can load"):
        open_runner(tmp_path)


def test_the_table_needs_neither_torch_nor_ultralytics():
    code = (
        "import sys; sys.modules.update(torch=None, ultralytics=None); from meddet_yolo.trt import formats, runner; "
        "print(*formats.FORMATS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(FORMATS)
