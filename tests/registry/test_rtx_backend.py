"""TensorRT-RTX engines inside Ultralytics, on a TensorRT-RTX whose GPU is this machine's memory."""

import ctypes
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends import TensorRTBackend

from meddet_yolo import MedDet
from meddet_yolo.registry import register
from meddet_yolo.registry import rtx_backend as backend
from meddet_yolo.registry.rtx_backend import RTXBackend, runtime_cache_path
from meddet_yolo.trt.backends import Backend
from meddet_yolo.trt.engine_file import EngineFileError, write_engine
from meddet_yolo.trt.graph import load_onnx, metadata_of
from meddet_yolo.trt.onnx_export import export_onnx
from meddet_yolo.trt.parity import compare

VERSION = "1.7.1.116"


class _Cache:
    def __init__(self):
        self.kernels = b""

    def deserialize(self, blob):
        if not blob.startswith(b"kernels"):
            return False
        self.kernels = blob
        return True

    def serialize(self):
        return self.kernels


class _Context:
    """Runs the ONNX model that a fake plan is, on the addresses it is given."""

    def __init__(self, engine, config):
        self.engine, self.cache, self.addresses, self.shape = engine, config.cache, {}, engine.shape
        assert config.cuda_graph_strategy == "whole"

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.profile
        if any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return False
        self.shape = shape
        return True

    def get_tensor_shape(self, name):
        return self.engine.run(np.zeros(self.shape, np.float32)).shape if name == "output0" else self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        if stream != 7 or self.engine.broken:
            return False
        size = int(np.prod(self.shape))
        images = np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.addresses["images"]))
        result = np.ascontiguousarray(self.engine.run(images.reshape(self.shape)), np.float32)
        ctypes.memmove(self.addresses["output0"], result.ctypes.data, result.nbytes)
        self.cache.kernels = self.cache.kernels or b"kernels"
        return True


class _Engine:
    num_io_tensors = 2
    broken = False

    def __init__(self, plan):
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self.shape = tuple(d if isinstance(d, int) else -1 for d in self.session.get_inputs()[0].shape)
        dynamic = -1 in self.shape
        self.profile = ((1, 3, 32, 32), (1, 3, 64, 64), (4, 3, 128, 128)) if dynamic else (self.shape,) * 3

    def run(self, images):
        return self.session.run(None, {"images": images})[0]

    def get_tensor_name(self, k):
        return ("images", "output0")[k]

    def get_tensor_mode(self, name):
        return "in" if name == "images" else "out"

    def get_tensor_dtype(self, name):
        return "f32"

    def get_tensor_shape(self, name):
        return self.shape

    def get_tensor_profile_shape(self, name, k):
        return self.profile

    def create_runtime_config(self):
        config = SimpleNamespace(cuda_graph_strategy=None, cache=None, create_runtime_cache=_Cache)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, config):
        return _Context(self, config)


class _Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, plan):
        if plan.startswith(b"broken"):
            self.logger.log("Severity.ERROR", "no kernel image")
            return None
        return _Engine(plan)


@pytest.fixture
def gpu(monkeypatch):
    """Put a TensorRT-RTX in place that runs on the CPU."""
    trt = SimpleNamespace(
        __version__=VERSION,
        ILogger=type("ILogger", (), {}),
        Runtime=_Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        float32="f32",
        float16="f16",
        int32="i32",
        int8="i8",
        bool="b",
    )

    @contextmanager
    def stream(_):
        yield 7

    @contextmanager
    def on(_):
        yield

    monkeypatch.setattr(backend, "load_backend", lambda runtime: Backend("rtx", trt))
    monkeypatch.setattr(backend, "_gpu_of", lambda device, path: torch.device("cpu"))
    monkeypatch.setattr(backend, "_on", on)
    monkeypatch.setattr(backend, "_side_stream", stream)
    return trt


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    model = MedDet("meddet-n.yaml")
    for branch in model.model.model[-1].cv3:
        torch.nn.init.normal_(branch[-1].weight, std=3.0)
        torch.nn.init.constant_(branch[-1].bias, -2.0)
    model.model.eval()
    return model


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return {
        False: export_onnx(student, folder / "s.onnx", imgsz=64),
        True: export_onnx(student, folder / "d.onnx", imgsz=64, dynamic=True, batch=4),
    }


def engine_of(onnx_file, path, **ours):
    import ast

    left = metadata_of(load_onnx(onnx_file))
    keys = ("stride", "batch", "imgsz", "names", "args", "channels", "end2end")
    header = {"task": "detect", **{k: ast.literal_eval(left[k]) for k in keys}}
    ours = {"meddet_runtime": "rtx", "meddet_runtime_version": VERSION, **ours}
    return write_engine(path, Path(onnx_file).read_bytes(), {**header, **ours})


@pytest.mark.parametrize("kind", [YOLO, MedDet])
def test_an_engine_predicts_as_its_model(gpu, student, exported, tmp_path, kind):
    path = engine_of(exported[False], tmp_path / "s.engine")
    picture = (255 * np.random.default_rng(0).random((48, 64, 3))).astype(np.uint8)
    options = {"imgsz": 64, "conf": 0.1, "rect": False, "verbose": False}
    theirs = student.predict(picture, **options)[0]
    ours = kind(str(path), task="detect").predict(picture, **options)[0]
    assert len(ours) == len(theirs) > 0 and ours.names == theirs.names
    # The order of boxes of the same score means nothing.
    boxes, scores = compare(theirs.boxes.data.numpy()[None], ours.boxes.data.numpy()[None], 64)
    assert boxes < 1e-4 and scores < 1e-4


def test_dynamic_shapes(gpu, student, exported, tmp_path):
    runner = AutoBackend(str(engine_of(exported[True], tmp_path / "d.engine")), device=torch.device("cpu"))
    assert isinstance(runner.backend, RTXBackend) and runner.dynamic
    for shape in ((1, 3, 64, 64), (3, 3, 96, 64)):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = student.model(images)[0]
        torch.testing.assert_close(runner(images), expected, atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match=r"from \(1, 3, 32, 32\) to \(4, 3, 128, 128\), got \(1, 3, 256, 256\)"):
        runner(torch.zeros(1, 3, 256, 256))


def test_a_static_engine_names_its_shape(gpu, exported, tmp_path):
    runner = RTXBackend(engine_of(exported[False], tmp_path / "s.engine"), torch.device("cpu"))
    with pytest.raises(ValueError, match="predict with its imgsz and batch"):
        runner.forward(torch.zeros(1, 3, 32, 32))


def test_compiled_kernels_are_kept(gpu, exported, tmp_path, monkeypatch):
    path = engine_of(exported[False], tmp_path / "s.engine")
    cache = runtime_cache_path(path)
    RTXBackend(path, torch.device("cpu"))
    assert not cache.exists()  # nothing has been compiled yet
    RTXBackend(path, torch.device("cpu")).forward(torch.zeros(1, 3, 64, 64))
    assert cache.read_bytes() == b"kernels"
    again = RTXBackend(path, torch.device("cpu"))
    assert again._cache.kernels == b"kernels"
    written = cache.stat().st_mtime_ns
    again.forward(torch.zeros(1, 3, 64, 64))
    assert cache.stat().st_mtime_ns == written
    cache.write_bytes(b"of another GPU")
    RTXBackend(path, torch.device("cpu")).forward(torch.zeros(1, 3, 64, 64))
    assert cache.read_bytes() == b"kernels"
    cache.unlink()

    def refuse(**_):
        raise OSError("read-only file system")

    monkeypatch.setattr(backend.tempfile, "mkstemp", refuse)
    RTXBackend(path, torch.device("cpu")).forward(torch.zeros(1, 3, 64, 64))  # runs all the same
    assert not cache.exists()


def test_what_does_not_load(gpu, exported, tmp_path):
    with pytest.raises(RuntimeError, match=rf"built by TensorRT-RTX 1\.2\.0 .* installed is {VERSION}"):
        RTXBackend(engine_of(exported[False], tmp_path / "a.engine", meddet_runtime_version="1.2.0"), "cpu")
    with pytest.raises(RuntimeError, match="without weights"):
        RTXBackend(engine_of(exported[False], tmp_path / "b.engine", meddet_strip=True), "cpu")
    path = write_engine(tmp_path / "c.engine", b"broken", {"meddet_runtime": "rtx", "meddet_runtime_version": VERSION})
    with pytest.raises(RuntimeError, match=r"cannot load .* no kernel image"):
        RTXBackend(path, "cpu")
    path = engine_of(exported[False], tmp_path / "d.engine")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineFileError, match="damaged or was replaced"):
        RTXBackend(path, "cpu")


def test_a_failing_engine_is_named(gpu, exported, tmp_path):
    runner = RTXBackend(engine_of(exported[False], tmp_path / "s.engine"), torch.device("cpu"))
    runner.model.broken = True
    with pytest.raises(RuntimeError, match=r"failed to run .*s\.engine"):
        runner.forward(torch.zeros(1, 3, 64, 64))


def test_without_a_gpu_it_says_so(exported, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    path = engine_of(exported[False], tmp_path / "s.engine")
    with pytest.raises(RuntimeError, match=r"needs an NVIDIA GPU; .* format=onnx or format=openvino"):
        YOLO(str(path), task="detect").predict(np.zeros((64, 64, 3), np.uint8), verbose=False)


def test_other_engines_go_to_ultralytics(tmp_path, monkeypatch):
    path = write_engine(tmp_path / "t.engine", b"plan", {"task": "detect", "meddet_runtime": "tensorrt"})
    monkeypatch.setattr(TensorRTBackend, "load_model", lambda self, weight: setattr(self, "loaded", weight))
    chosen = AutoBackend._BACKEND_MAP["engine"](path, device="cpu")
    assert type(chosen) is TensorRTBackend and chosen.loaded == path
    before = AutoBackend._BACKEND_MAP["engine"]
    register()
    assert AutoBackend._BACKEND_MAP["engine"] is before


@pytest.mark.slow("converts")
@pytest.mark.parametrize("ours", [True, False])
def test_openvino_models_are_computed_as_they_were_checked(student, tmp_path, ours):
    """In single precision where the export says so, also on a CPU that has bfloat16; as OpenVINO likes where not."""
    openvino = pytest.importorskip("openvino")
    from meddet_yolo.trt.openvino_export import export_openvino
    from meddet_yolo.trt.runner import open_runner

    path = export_openvino(student, tmp_path / "s_openvino_model", imgsz=64)
    if not ours:
        next(path.glob("*.json")).unlink()
    model = YOLO(str(path), task="detect")
    model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False, device="cpu")
    compiled = model.predictor.model.backend.ov_compiled_model
    default = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    assert found == ("f32" if ours else default) == open_runner(path).session.precision


def test_an_empty_engine_is_named(tmp_path):
    path = tmp_path / "s.engine"
    path.touch()
    with pytest.raises(ValueError, match=r"s\.engine is empty: .* export it again"):
        YOLO(str(path), task="detect").predict(np.zeros((64, 64, 3), np.uint8), verbose=False)


@pytest.mark.gpu
def test_a_real_engine_on_a_real_gpu(student, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from meddet_yolo.trt.builder import build_engine

    try:
        path = build_engine(student, tmp_path / "s.engine", runtime="rtx", imgsz=64, precision="fp32")
        engine = YOLO(str(path), task="detect")
        picture = (255 * np.random.default_rng(0).random((64, 64, 3))).astype(np.uint8)
        ours = engine.predict(picture, imgsz=64, conf=0.2, verbose=False)[0].boxes.data.cpu()
    except RuntimeError as error:
        if "cannot load" in str(error):
            pytest.skip(f"TensorRT-RTX does not support this GPU: {error}")
        raise
    theirs = student.predict(picture, imgsz=64, conf=0.2, device="cpu", verbose=False)[0].boxes.data
    assert len(ours) == len(theirs) > 0
    assert max(compare(theirs.numpy()[None], ours.numpy()[None], 64)) < 1e-2
    assert runtime_cache_path(path).stat().st_size > 0
