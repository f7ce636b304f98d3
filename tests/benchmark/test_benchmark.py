"""`meddet benchmark` on tiny detectors: what it measures, builds, skips and refuses."""

import inspect
import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from meddet_yolo import MedDet, cli
from meddet_yolo.benchmark import benchmark
from meddet_yolo.benchmark.candidates import Source, Workshop
from meddet_yolo.benchmark.plots import pareto_front, plot_bubbles, plot_tradeoff
from meddet_yolo.benchmark.report import Result
from meddet_yolo.benchmark.sessions import TorchSession
from meddet_yolo.export.calibration import CALIBRATION_IMAGES, calibration_images
from meddet_yolo.trt.openvino_session import OpenVinoSession
from meddet_yolo.trt.runner import OnnxRunner, Runner

QUICK = {"imgsz": 64, "iterations": 20, "seconds": 0.2, "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint for the classes of `tiny_data`; its weights are random, its accuracy is measured all the same."""
    path = tmp_path_factory.mktemp("model") / "tiny.pt"
    Source("n", "meddet-n.yaml", trained=False, nc=2).model().save(path)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A data set with enough images to calibrate on."""
    from meddet_yolo.phantom import generate_phantom

    return generate_phantom(tmp_path_factory.mktemp("drawn") / "data", patients=14, imgsz=64, slices=1)


@pytest.fixture(scope="module")
def report(checkpoint, drawn, tmp_path_factory):
    """A run over everything this machine has; the folder and the text."""
    pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp("out")
    text = benchmark(
        [str(checkpoint)], str(drawn), precision="fp32,int8", backends="pytorch,onnxruntime,openvino,tensorrt",
        out=out, **QUICK,
    )  # fmt: skip
    return out, text, checkpoint


@pytest.mark.slow("measures every back end")
def test_every_back_end_is_measured(report):
    out, text, _ = report
    found = json.loads((out / "benchmark.json").read_text())
    measured = {(r["backend"], r["precision"]): r for r in found["results"]}
    both = {(b, p) for b in ("onnxruntime", "openvino") for p in ("fp32", "int8")}
    assert set(measured) == {("pytorch", "fp32"), *both}
    for result in measured.values():
        assert result["status"] == "measured", result["reason"]
        parts = result["latency"]
        assert set(parts) == {"total", "preprocess", "inference", "postprocess"}
        assert parts["total"]["count"] >= 20
        assert parts["total"]["p50_ms"] >= parts["inference"]["p50_ms"] > 0
        assert 0 <= result["map50_95"] <= 1
        assert result["images_per_second"] > 0 and result["gflops"] > 0 and result["parameters"] > 1e5
    same = [measured[b, "fp32"]["map50_95"] for b in ("pytorch", "onnxruntime", "openvino")]
    assert max(same) - min(same) < 0.01  # single precision is the same network everywhere
    assert found["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (out / "benchmark.md").read_text() in text


@pytest.mark.slow("measures every back end")
def test_what_was_left_out_is_said_once_with_the_reason(report):
    _, text, _ = report
    skipped = text.split("## Skipped")[1]
    assert "- pytorch: pytorch is measured in fp32 and fp16 (int8: PyTorch quantizes by other tools)" in skipped
    assert len(re.findall("^- tensorrt: ", skipped, re.MULTILINE)) == 1


@pytest.mark.slow("measures every back end")
def test_pictures_are_drawn(report):
    out, _, _ = report
    for name in ("tradeoff.png", "bubbles.png"):
        picture = cv2.imread(str(out / name))
        assert picture is not None and picture.std() > 5


@pytest.mark.slow("measures every back end")
def test_a_second_run_takes_the_exported_files(report, monkeypatch):
    out, _, checkpoint = report

    def refuse(*_, **__):
        raise AssertionError("exported again")

    monkeypatch.setattr("meddet_yolo.trt.onnx_export.export_onnx", refuse)
    text = benchmark([str(checkpoint)], None, backends="onnxruntime", out=out, **QUICK)
    assert "| onnxruntime | fp32 |" in text and "mAP" not in text


def test_int8_is_calibrated_anew_on_another_data_set(checkpoint, drawn, tmp_path, monkeypatch):
    """What was calibrated on one data set is not taken for another one with as many images."""
    from meddet_yolo.phantom import generate_phantom

    other = generate_phantom(tmp_path / "other", patients=14, imgsz=64, slices=1, seed=1)
    exported = []

    def export(model, file, **options):
        exported.append(np.stack(options["images"]).mean())
        Path(file).write_bytes(b"model")

    monkeypatch.setattr("meddet_yolo.trt.onnx_export.export_onnx", export)
    monkeypatch.setattr(Workshop, "_open", lambda self, candidate: None)
    for data in (drawn, other, other, drawn):
        Workshop(tmp_path, data=str(data)).make(Source("tiny", str(checkpoint)), "onnxruntime", "int8", 64, 1)
    assert len(exported) == 3 and exported[0] == exported[2] != exported[1]


def test_what_is_calibrated_is_what_an_export_takes(checkpoint, drawn, tmp_path, monkeypatch):
    """The same images as `meddet export precision=int8 data=...`, and as many."""
    seen = []

    def export(model, file, **options):
        seen.append(options["images"])
        raise InterruptedError

    monkeypatch.setattr("meddet_yolo.trt.onnx_export.export_onnx", export)
    with pytest.raises(InterruptedError):
        Workshop(tmp_path, data=str(drawn)).make(Source("tiny", str(checkpoint)), "onnxruntime", "int8", 64, 1)
    with pytest.raises(InterruptedError):
        MedDet(str(checkpoint)).export(format="onnx", precision="int8", imgsz=64, data=str(drawn))
    measured, exported = seen
    np.testing.assert_array_equal(np.stack(measured), np.stack(exported))
    assert inspect.signature(calibration_images).parameters["count"].default == CALIBRATION_IMAGES == 256


def test_a_benchmark_on_a_gpu_builds_there(checkpoint, tmp_path, monkeypatch):
    """An engine is built on the GPU that it is measured on, and taken again on no other one."""
    built, current = [], [0]

    @contextmanager
    def on_gpu(number):
        current.append(number)
        yield
        current.pop()

    def build(model, file, **options):
        built.append(current[-1])
        Path(file).write_bytes(b"engine")

    monkeypatch.setattr("meddet_yolo.benchmark.candidates.on_gpu", on_gpu)
    monkeypatch.setattr("meddet_yolo.benchmark.candidates.gpu_info", lambda: {"name": f"GPU {current[-1]}"})
    monkeypatch.setattr("meddet_yolo.benchmark.candidates.import_module", lambda name: SimpleNamespace(__version__="1"))
    monkeypatch.setattr("meddet_yolo.trt.builder.build_engine", build)
    monkeypatch.setattr(Workshop, "_open", lambda self, candidate: None)
    monkeypatch.setattr(Workshop, "_gpu_memory", lambda self: None)
    for device in (1, 1, 0):
        workshop = Workshop(tmp_path, device=device)
        workshop.gpu = True
        workshop.make(Source("tiny", str(checkpoint)), "tensorrt", "fp16", 64, 1)
    assert built == [1, 0]


def test_an_engine_is_built_where_it_cannot_run(checkpoint, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    pytest.importorskip("tensorrt_rtx")
    text = benchmark([str(checkpoint)], backends="rtx", precision="fp32", out=tmp_path, **QUICK)
    assert "## Built, not run" in text and "no CUDA GPU to run it on" in text
    assert (tmp_path / "files" / "tiny-64-b1-fp32-rtx.engine").stat().st_size > 1e5


def test_one_failing_model_does_not_end_the_run(checkpoint, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_text("no model")
    text = benchmark([str(checkpoint), str(broken)], backends=["onnxruntime"], out=tmp_path / "out", **QUICK)
    assert "## Failed" in text and "broken onnxruntime" in text
    assert "| tiny | onnxruntime |" in text


@pytest.mark.slow("measures every back end")
def test_a_given_onnx_file_is_measured_as_it_is(report, tmp_path):
    out, _, _ = report
    file = out / "files" / "tiny-64-b1-fp32.onnx"
    text = benchmark([str(file)], out=tmp_path, backends=["pytorch", "onnxruntime", "openvino"], **QUICK)
    assert text.count("| tiny-64-b1-fp32 |") == 2
    assert "exported already" in text
    with pytest.raises(ValueError, match=r"nothing could be measured: .*takes \(1, 3, 64, 64\), not 96 px"):
        benchmark([str(file)], out=tmp_path, backends="onnxruntime", **{**QUICK, "imgsz": 96})


def test_batches(checkpoint, tmp_path):
    text = benchmark([str(checkpoint)], batch=[1, 3], backends="pytorch", out=tmp_path, **QUICK)
    assert text.count("| 64 | 3 |") == text.count("| 64 | 1 |") == 1


@pytest.mark.slow("measures")
def test_heads_without_nms(checkpoint, tmp_path):
    text = benchmark([str(checkpoint)], backends="pytorch,onnxruntime", batch=2, out=tmp_path, end2end=True, **QUICK)
    assert text.count("| tiny |") == 2
    session = OnnxRunner(tmp_path / "files" / "tiny-64-b2-fp32-end2end.onnx").session
    session.buffer((2, 3, 64, 64))
    assert session.run((2, 3, 64, 64))[0].shape[2] == 6


def test_int8_needs_images(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="int8 is calibrated on images: give data="):
        benchmark([str(checkpoint)], backends="onnxruntime", precision="int8", out=tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model=none.pt"], "model=none.pt: no such file"),
        (["model=[]"], "model= is missing"),
        (["model=meddet-n.yaml", "backends=[tensorflow]"], "backends=tensorflow is unknown: use pytorch, onnxruntime"),
        (["model=meddet-n.yaml", "precision=int4"], "precision=int4 is unknown: use bf16, fp16, fp32, fp8, int8"),
        (["model=meddet-n.yaml", "imgsz=100"], "imgsz=100: expected multiples of 32"),
        (["model=meddet-n.yaml", "batch=0"], "batch=0: expected a number of images of 1 or more"),
        (["model=meddet-n.yaml", "iterations=0", "imgsz=32", "backends=pytorch"], "must be positive"),
        (["data=d.yaml"], "model= is missing"),
        (["modle=a.pt"], "did you mean 'model'?"),
    ],
)
def test_wrong_use_is_one_line(capsys, monkeypatch, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", *options]) in (1, 2)
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("meddet: error")]
    assert message in line


def test_the_command_prints_the_report(capsys, monkeypatch, tmp_path, messages):
    monkeypatch.chdir(tmp_path)
    options = [f"{key}={value}" for key, value in QUICK.items()]
    assert cli.main(["benchmark", "model=[meddet-n.yaml,yolo26n.yaml]", "backends=[pytorch]", *options]) == 0
    out = capsys.readouterr().out
    assert "| meddet-n | pytorch | fp32 | 64 | 1 | 2.60 |" in out and "| yolo26n |" in out
    assert "results: runs/benchmark" in out
    assert [line for line in messages if "making it ready" in line] == [
        f"{name} pytorch fp32 64px b1: making it ready" for name in ("meddet-n", "yolo26n")
    ]


# sessions -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow("measures every back end")
def test_all_sessions_say_the_same(report):
    """One network, one image, three back ends: the boxes are those of PyTorch."""
    out, _, checkpoint = report
    file = out / "files" / "tiny-64-b1-fp32.onnx"
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    source = Source("tiny", str(checkpoint))
    options = {"conf": 0.0, "iou": 1.0, "max_det": 84}  # every anchor
    onnx = OnnxRunner(file, threads=1, **options)
    expected = onnx(image)[0]
    assert len(expected) == 84
    others = [
        Runner(TorchSession(source.model().model, (64, 64)), **options),
        Runner(OpenVinoSession(file, metadata=onnx.session.metadata, threads=1), **options),
    ]
    for runner in others:
        (found,) = runner(image)
        np.testing.assert_allclose(np.sort(found.xyxy, axis=0), np.sort(expected.xyxy, axis=0), atol=0.05)
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)
        with pytest.raises(ValueError, match="takes"):
            runner.session.buffer((2, 3, 64, 64))


def test_openvino_is_named_when_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match="pip install openvino"):
        OpenVinoSession(tmp_path)


def test_untrained_models_are_the_same_every_time():
    one, two = (Source("n", "meddet-n.yaml", trained=False, nc=2) for _ in range(2))
    for a, b in zip(one.model().model.state_dict().values(), two.model().model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert one.model().model.model[-1].nc == 2
    assert one.has_end2end() and one.parameters > 2e6 and one.gflops(64) > 0


# pictures -------------------------------------------------------------------------------------------------------------


def test_the_pareto_front_holds_what_nothing_beats():
    points = np.random.default_rng(0).random((50, 2)).round(1)
    front = pareto_front([tuple(p) for p in points])
    for i, (cost, value) in enumerate(points):
        beaten = any((c <= cost and v >= value) and (c, v) != (cost, value) for c, v in points)
        if i in front:
            assert not beaten
        elif not beaten:  # an equal point may stand for it
            assert any((points[j] == points[i]).all() for j in front)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
    assert pareto_front([]) == []


def test_pictures_of_one_result_and_without_accuracy(tmp_path):
    latency = {"total": {"p50_ms": 3.0, "round_medians_ms": [2.0, 3.0, 4.0]}}
    one = Result("a", "onnxruntime", "fp32", 64, 1, parameters=10, gflops=1.0, latency=latency, images_per_second=9.0)
    exported = Result("b", "rtx", "int8", 96, 2, latency=latency, images_per_second=9.0)
    for number, results in enumerate(([one], [one, exported], [exported])):
        assert plot_tradeoff(results, tmp_path / f"t{number}.png").stat().st_size > 1000
        assert plot_bubbles(results, tmp_path / f"b{number}.png").stat().st_size > 1000
