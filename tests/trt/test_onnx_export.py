import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meddet_yolo import MedDet
from meddet_yolo.trt import onnx_export
from meddet_yolo.trt.engine_file import read_sidecar, sha256
from meddet_yolo.trt.graph import input_shape, load_onnx, metadata_of
from meddet_yolo.trt.onnx_export import export_onnx, onnx_predictor
from meddet_yolo.trt.openvino_export import export_openvino
from meddet_yolo.trt.original import as_pair, sample_images
from meddet_yolo.trt.parity import TOLERANCES, ParityError, Tolerance, batched, check_parity, compare

EXACT = TOLERANCES["fp32"]


def parities(path):
    return read_sidecar(path)["meddet_parity"]


def test_static_export_is_the_model(student, whole):
    images = np.stack(sample_images((64, 64)))
    with torch.no_grad():
        model = student.model.eval()
        model.end2end = False
        expected = model(torch.from_numpy(images[:1]))[0].numpy()
    found = onnx_predictor(whole)(images[:1])
    assert np.abs(expected - found)[:, :4].max() / 64 < 1e-4 and np.abs(expected - found)[:, 4:].max() < 1e-4
    assert found[:, 4:].max() > 0.1  # there is something to compare
    facts = parities(whole)["fp32"]
    assert 0 < facts["scores"] < 1e-4 and facts["images"] == len(images)
    assert read_sidecar(whole)["sha256"] == sha256(whole)
    assert json.loads(metadata_of(load_onnx(whole))["meddet_parity"].replace("'", '"')) == parities(whole)


def test_dynamic_export_takes_other_sizes(student, dynamic):
    assert input_shape(load_onnx(dynamic)) == (None, 3, None, None)
    images = np.random.default_rng(0).random((2, 3, 64, 128)).astype(np.float32)
    with torch.no_grad():
        expected = student.model(torch.from_numpy(images))[0].numpy()
    boxes, scores = compare(expected, onnx_predictor(dynamic)(images), 128)
    assert boxes < 1e-4 and scores < 1e-4


@pytest.mark.parametrize(
    "options", [{"end2end": True}, {"nms": True, "options": {"conf": 0.05}}], ids=["end2end", "nms"]
)
def test_selecting_heads(student, tmp_path, options):
    path = export_onnx(student, tmp_path / "s.onnx", imgsz=64, **options)
    found = onnx_predictor(path)(np.stack(sample_images((64, 64)))[:1])
    assert found.ndim == 3 and found.shape[2] == 6
    assert metadata_of(load_onnx(path))["end2end"] == str("end2end" in options)


def test_half_precision_has_a_tolerance_of_its_own(student, tmp_path):
    path = export_onnx(student, tmp_path / "s.onnx", imgsz=64, half=True)
    facts = parities(path)
    assert set(facts) == {"fp32", "fp16"} and facts["fp16"]["scores"] > facts["fp32"]["scores"]
    assert facts["fp16"]["tolerance"]["scores"] == TOLERANCES["fp16"].scores


def test_a_parity_failure_leaves_nothing(student, tmp_path, monkeypatch):
    real = onnx_export.onnx_predictor
    monkeypatch.setattr(onnx_export, "onnx_predictor", lambda path: lambda x: real(path)(x) + np.float32(0.01))
    with pytest.raises(
        ParityError, match=r"PyTorch and ONNX Runtime disagree on 2 images: .*scores by 0\.01 \(allowed 0\.0001\)"
    ):
        export_onnx(student, tmp_path / "s.onnx", imgsz=64)
    assert not list(tmp_path.iterdir())


def test_a_model_is_not_asked_for_more_than_float32_gives(student, tmp_path, monkeypatch, caplog):
    real, own = onnx_export.onnx_predictor, onnx_export.reference_predictor

    def rounding(model, exported, end2end, double=False):
        predict = own(model, exported, end2end, double)
        return lambda x: predict(x) + np.float32(1e-3 if double else 0)

    monkeypatch.setattr(onnx_export, "onnx_predictor", lambda path: lambda x: real(path)(x) + np.float32(3e-3))
    with pytest.raises(ParityError):
        export_onnx(student, tmp_path / "s.onnx", imgsz=64)
    monkeypatch.setattr(
        onnx_export, "reference_predictor", rounding
    )  # a model whose rounding is a third of the difference
    facts = parities(export_onnx(student, tmp_path / "s.onnx", imgsz=64))["fp32"]
    assert facts["tolerance"]["scores"] == pytest.approx(4e-3, rel=0.01) and "own rounding" in caplog.text


def test_an_old_export_survives_a_failure(student, tmp_path, monkeypatch):
    (tmp_path / "s.onnx").write_bytes(b"old")
    monkeypatch.setattr(onnx_export, "onnx_predictor", lambda path: lambda x: np.full((2, 84, 84), np.nan, np.float32))
    with pytest.raises(ParityError):
        export_onnx(student, tmp_path / "s.onnx", imgsz=64)
    assert (tmp_path / "s.onnx").read_bytes() == b"old"


@pytest.mark.slow("converts")
def test_openvino_is_the_model(student, tmp_path):
    openvino = pytest.importorskip("openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # PyTorch's about its tracer mean nothing to a user
        path = export_openvino(student, tmp_path / "s_openvino_model", imgsz=64)
    assert (path / "metadata.yaml").is_file()
    bin_file = next(path.glob("*.bin"))
    assert parities(bin_file)["fp32"]["scores"] < 1e-4
    compiled = openvino.Core().compile_model(str(next(path.glob("*.xml"))), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = np.random.default_rng(0).random((1, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = student.model(torch.from_numpy(images))[0].numpy()
    boxes, scores = compare(expected, np.asarray(compiled(images)[0]), 64)
    assert boxes < 1e-4 and scores < 1e-4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp17"}, ValueError, "fp32, fp16, int8, fp8"),
        ({"precision": "int8"}, ValueError, "give data="),
        ({"precision": "int8", "half": True}, ValueError, "exclude each other"),
        ({"end2end": True, "nms": True}, ValueError, "exclude each other"),
        ({"imgsz": (1, 2, 3)}, ValueError, "height, width"),
        ({"imgsz": -3}, ValueError, "height, width"),
        ({"images": [np.zeros((3, 32, 32), np.float32)]}, ValueError, r"expected \(C, H, W\) = \(3, 64, 64\)"),
    ],
)
def test_wrong_arguments(student, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        export_onnx(student, tmp_path / "s.onnx", **{"imgsz": 64, **options})
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_exported(student, whole, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        export_onnx(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"give the \.pt file"):
        export_onnx(MedDet(str(whole), task="detect"))
    with pytest.raises(ValueError, match="no end-to-end head"):
        export_onnx(MedDet("yolo11n.yaml"), tmp_path / "s.onnx", imgsz=64, end2end=True)


def test_sizes_are_rounded_up_to_the_stride(student, tmp_path, caplog):
    path = export_onnx(student, tmp_path / "s.onnx", imgsz=(40, 64))
    assert input_shape(load_onnx(path)) == (1, 3, 64, 64)
    assert "no multiple of the stride 32" in caplog.text
    assert as_pair([32, 64]) == (32, 64)


# the gate itself -----------------------------------------------------------------------------------------------------


@given(st.floats(0, 0.05), st.sampled_from([1, 4, 5]))
def test_the_gate_measures_what_is_changed(change, channel):
    expected = np.random.default_rng(0).random((2, 6, 20)).astype(np.float32)
    got = expected.copy()
    got[1, channel, 7] += change
    boxes, scores = compare(expected, got, 64)
    wanted = abs(float(got[1, channel, 7]) - float(expected[1, channel, 7]))
    assert (boxes * 64 if channel < 4 else scores) == pytest.approx(wanted, abs=1e-6)
    assert (scores if channel < 4 else boxes) == 0


def test_boxes_of_nothing_are_not_compared_where_rounding_is_allowed():
    expected = np.zeros((1, 5, 2), np.float32)
    expected[0, 4] = 0.9, 0.01
    got = expected.copy()
    got[0, 0, 1] = 30
    assert compare(expected, got, 64, confidence=0.1) == (0, 0)
    assert compare(expected, got, 64)[0] == pytest.approx(30 / 64)
    got[0, 0, 0] = 3
    assert compare(expected, got, 64, confidence=0.1)[0] == pytest.approx(3 / 64)


def rows(*boxes):
    return np.array([boxes], np.float32)


def test_rows_are_matched_whatever_their_order():
    a, b, c = (0, 0, 9, 9, 0.9, 0), (5, 5, 30, 30, 0.8, 1), (1, 1, 4, 4, 0.5, 0)
    assert compare(rows(a, b, c), rows(b, c, a), 64) == (0, 0)
    boxes, scores = compare(rows(a, b, c), rows((0, 0, 9, 12, 0.9, 0), b, c), 64)
    assert boxes == pytest.approx(3 / 64) and scores == 0
    assert compare(rows(a, b, c), rows((0, 0, 9, 9, 0.7, 0), b, c), 64)[1] == pytest.approx(0.2)


def test_a_lost_or_invented_row_counts_with_its_score():
    a, b, c = (0, 0, 9, 9, 0.9, 0), (5, 5, 30, 30, 0.8, 1), (1, 1, 4, 4, 0.1, 0)
    assert compare(rows(a, c), rows(b, c), 64)[1] == pytest.approx(0.8)
    assert compare(rows(a, b), rows(a, (5, 5, 30, 30, 0.8, 2)), 64)[1] >= 0  # class changed at the cut-off
    assert compare(rows(a, b, c), rows(a, (5, 5, 30, 30, 0.8, 2), c), 64)[1] == pytest.approx(0.7)


def test_nan_and_shapes_never_pass():
    nothing = np.zeros((1, 3, 8, 8), np.float32)
    fine = np.ones((1, 6, 20), np.float32)
    bad = fine.copy()
    bad[0, 0, 0] = np.nan
    for reference, exported, message in (
        (fine, bad, "disagree"),
        (bad, fine, "not finite"),
        (fine, fine[:, :5], "shape"),
    ):
        with pytest.raises(ParityError, match=message):
            check_parity(lambda x, r=reference: r, lambda x, e=exported: e, nothing, EXACT, "a and b")


def test_the_tolerance_is_the_limit():
    nothing = np.zeros((1, 3, 100, 100), np.float32)
    fine = np.ones((1, 6, 20), np.float32)
    near = fine + np.float32(0.009)
    assert check_parity(lambda x: fine, lambda x: near, nothing, Tolerance(1e-4, 1e-2), "").holds
    with pytest.raises(ParityError):
        check_parity(lambda x: fine, lambda x: near, nothing, Tolerance(8e-5, 1e-2), "")


def test_a_static_batch_is_filled_up():
    seen = []

    def predict(x):
        seen.append(x.shape)
        return x.sum((2, 3))

    images = np.random.default_rng(0).random((5, 3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(batched(predict, 2)(images), images.sum((2, 3)))
    assert seen == [(2, 3, 4, 4)] * 3
