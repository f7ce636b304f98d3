import json
import sys

import numpy as np
import pytest
from ultralytics.nn.backends.base import BaseBackend

from meddet_yolo import MedDet
from meddet_yolo.trt import backends, builder
from meddet_yolo.trt import compile as compiling
from meddet_yolo.trt.backends import load_backend
from meddet_yolo.trt.builder import build_engine
from meddet_yolo.trt.compile import BuildError, as_capabilities
from meddet_yolo.trt.engine_file import read_engine, read_sidecar, sha256
from meddet_yolo.trt.graph import load_onnx, nmode_nodes
from meddet_yolo.trt.precision import PrecisionError

from ._fake_builder import FLAGS, fake_tensorrt

GPU = {"name": "NVIDIA Fake 9000", "compute_capability": "8.9", "driver": "580.1"}


def facts(path):
    return read_engine(path).metadata


# TensorRT-RTX, which really builds here -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    return load_backend("rtx")


def test_static(rtx, student, tmp_path):
    path = build_engine(student, tmp_path / "s.engine", runtime="rtx", imgsz=64, compute_capability=8.6)
    found = facts(path)
    assert set(found["meddet_audit"]["matrix"]) == {"fp16"} and found["meddet_audit"]["matrix"]["fp16"] > 80
    assert found["meddet_audit"]["source"] in {"build log", "inspector"}
    assert set(found["meddet_parity"]) == {"fp32", "fp16"}
    assert found["meddet_runtime"] == "rtx" and found["meddet_runtime_version"] == rtx.version
    assert found["meddet_compute_capability"] == ["8.6"]
    assert [t["shape"] for t in found["meddet_tensors"]] == [[1, 3, 64, 64], [1, 84, 84]]
    assert (found["batch"], found["imgsz"], found["end2end"], found["task"]) == (1, [64, 64], False, "detect")
    assert found["names"] == student.names
    assert found["meddet_preprocessing"]["padding"] == 114 and "torch" in found["meddet_versions"]
    assert read_sidecar(path)["sha256"] == sha256(path)
    theirs = BaseBackend.read_metadata(path)
    assert {k for k in theirs if not k.startswith("meddet_")} <= {
        *("description", "author", "date", "version", "license", "docs", "stride", "task", "head", "batch", "imgsz"),
        *("names", "args", "channels", "end2end"),
    }


@pytest.mark.slow("builds an engine")
def test_dynamic(rtx, dynamic, tmp_path):
    path = build_engine(dynamic, tmp_path / "d.engine", runtime="rtx", batch=4, max_imgsz=128, min_imgsz=64)
    found = facts(path)
    assert found["meddet_profile"] == {"min": [1, 3, 64, 64], "opt": [4, 3, 96, 96], "max": [4, 3, 128, 128]}
    assert found["args"]["dynamic"] is True and found["batch"] == 4
    assert set(found["meddet_audit"]["matrix"]) == {"fp16"}


@pytest.mark.slow("builds an engine")
def test_end_to_end_and_fp32(rtx, student, tmp_path):
    path = build_engine(student, tmp_path / "e.engine", runtime="rtx", imgsz=64, end2end=True, precision="fp32")
    found = facts(path)
    assert found["end2end"] is True and found["meddet_tensors"][1]["shape"][2] == 6
    assert set(found["meddet_audit"]["matrix"]) == {"fp32"}


@pytest.mark.slow("builds an engine")
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantized(rtx, whole, calibration, tmp_path, precision):
    path = build_engine(
        whole, tmp_path / "q.engine", runtime="rtx", precision=precision, images=calibration, compute_capability="8.9"
    )
    matrix = facts(path)["meddet_audit"]["matrix"]
    assert matrix[precision] > 4 * matrix["fp16"] and set(matrix) == {precision, "fp16"}


@pytest.mark.slow("builds engines")
@pytest.mark.parametrize("name", ["meddet-s.yaml", "meddet11-n.yaml"])
def test_other_scales_and_families(rtx, name, tmp_path):
    path = build_engine(MedDet(name), tmp_path / "s.engine", runtime="rtx", imgsz=64)
    assert set(facts(path)["meddet_audit"]["matrix"]) == {"fp16"}


def test_every_generation_it_names(rtx, whole, tmp_path):
    targets = ",".join(rtx.targets)
    path = build_engine(whole, tmp_path / "s.engine", runtime="rtx", compute_capability=targets)
    assert facts(path)["meddet_compute_capability"] == targets.split(",")


def test_hopper_is_no_target(rtx, whole, tmp_path):
    if "9.0" in rtx.targets:
        pytest.fail("TensorRT-RTX names Hopper now: say so in docs/tensorrt.md")
    with pytest.raises(ValueError, match=r"9\.0 is no target .*Hopper is no target"):
        build_engine(whole, tmp_path / "s.engine", runtime="rtx", compute_capability=9.0)


@pytest.mark.slow("builds an engine")
def test_nms_in_the_graph(rtx, student, tmp_path):
    with pytest.raises(ValueError, match="TensorRT-RTX has no NMS"):
        build_engine(student, tmp_path / "s.engine", runtime="rtx", imgsz=64, nms=True)
    path = builder.export_onnx(student, tmp_path / "n.onnx", imgsz=64, nms=True, options={"conf": 0.05})
    with pytest.raises(BuildError, match=r"TensorRT-RTX has no NonZero.*nms left out"):
        build_engine(path, tmp_path / "s.engine", runtime="rtx")
    assert not (tmp_path / "s.engine").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timing_cache": "x"}, "timing_cache= does not exist in TensorRT-RTX"),
        ({"version_compatible": True}, "version_compatible= does not exist"),
        ({"hardware_compatible": True}, "compute_capability=8.6,8.9"),
        ({"strongly_typed": False}, "is for TensorRT 10"),
        ({"compute_capability": "sm77"}, r"7\.7 is no target of TensorRT-RTX"),
    ],
)
def test_what_rtx_has_not(rtx, whole, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build_engine(whole, tmp_path / "s.engine", runtime="rtx", **options)


def test_a_request_that_is_not_honoured_leaves_no_engine(rtx, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "to_half", lambda model: model.__class__.FromString(model.SerializeToString()))
    with pytest.raises(PrecisionError, match="precision=fp16 was not honoured"):
        build_engine(whole, tmp_path / "s.engine", runtime="rtx")
    assert not list(tmp_path.iterdir())


def test_weights_cannot_be_stripped_without_a_gpu(rtx, whole, tmp_path):
    if backends.gpu_info() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(BuildError, match="need a GPU while they build"):
        build_engine(whole, tmp_path / "s.engine", runtime="rtx", strip=True)


# TensorRT 10 and 11, as their documentation has them ------------------------------------------------------------------


@pytest.fixture
def tensorrt(monkeypatch):
    """A function that puts a fake TensorRT of a version in place."""

    def put(version="10.13.0", gpu=GPU, **options):
        backend = fake_tensorrt(version, **options)
        monkeypatch.setattr(builder, "load_backend", lambda runtime: backend)
        monkeypatch.setattr(compiling, "gpu_info", lambda: gpu)
        return backend

    return put


@pytest.mark.parametrize("version", ["10.13.0", "11.4.0"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_types_come_from_the_graph(tensorrt, whole, calibration, tmp_path, version, precision):
    backend = tensorrt(version)
    images = calibration if precision == "int8" else None
    path = build_engine(whole, tmp_path / "s.engine", precision=precision, images=images)
    matrix = facts(path)["meddet_audit"]["matrix"]
    assert max(matrix, key=matrix.get) == ("fp32" if precision == "tf32" else precision)
    trt, config = backend.module, backend.module.configs[-1]
    assert trt.networks[-1].flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert (trt.BuilderFlag.TF32 in config.flags) == (precision == "tf32")
    assert {f.name for f in config.flags} <= {"TF32"}
    assert facts(path)["meddet_audit"]["source"] == "inspector" and facts(path)["meddet_gpu"] == GPU


def test_flags_of_tensorrt_10(tensorrt, whole, calibration, tmp_path):
    trt = tensorrt("10.13.0").module
    path = build_engine(whole, tmp_path / "s.engine", strongly_typed=False)
    assert trt.networks[-1].flags == 1 << trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    assert {f.name for f in trt.configs[-1].flags} == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    held = {layer.name for layer in trt.networks[-1].layers if layer.precision == "float32"}
    rounds = {layer.name for layer in trt.networks[-1].layers if layer.node.op_type == "Round"}
    assert rounds and rounds <= held
    assert nmode_nodes(load_onnx(whole)) & held
    assert not any(layer.outputs for layer in trt.networks[-1].layers if layer.node.op_type == "Cast")
    assert facts(path)["meddet_audit"]["matrix"].keys() == {"fp16"}
    build_engine(whole, tmp_path / "s.engine", strongly_typed=False, precision="int8", images=calibration)
    assert {f.name for f in trt.configs[-1].flags} == {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}


def test_flags_are_refused_where_there_are_none(tensorrt, whole, tmp_path):
    tensorrt("11.4.0")
    with pytest.raises(ValueError, match=r"TensorRT 11\.4\.0 takes all types from the graph"):
        build_engine(whole, tmp_path / "s.engine", strongly_typed=False)


@pytest.mark.parametrize("version", ["10.13.0", "11.4.0"])
def test_an_engine_of_another_precision_is_an_error(tensorrt, whole, tmp_path, version):
    tensorrt(version, dishonest=True)
    with pytest.raises(PrecisionError, match=r"precision=fp16 was not honoured: .* fp32"):
        build_engine(whole, tmp_path / "s.engine")
    assert not list(tmp_path.iterdir())


def test_dynamic_shapes_become_a_profile(tensorrt, dynamic, tmp_path):
    trt = tensorrt().module
    build_engine(
        dynamic, tmp_path / "s.engine", precision="fp32", imgsz=[64, 96], batch=8, min_batch=2, max_imgsz=[96, 128]
    )
    (profile,) = trt.configs[-1].profiles
    assert profile.shapes == {"images": ((2, 3, 32, 32), (8, 3, 64, 96), (8, 3, 96, 128))}


def test_an_end_to_end_head_needs_as_many_anchors_as_it_selects(tensorrt, student, tmp_path):
    trt = tensorrt().module
    options = {"max_det": 100}
    build_engine(
        student, tmp_path / "s.engine", precision="fp32", imgsz=128, dynamic=True, end2end=True, options=options
    )
    low = trt.configs[-1].profiles[0].shapes["images"][0]
    assert low == (1, 3, 96, 96)  # 64 pixels have 84 anchors, 96 have 189


def test_the_options_reach_tensorrt(tensorrt, whole, tmp_path):
    trt = tensorrt().module
    (tmp_path / "s.onnx").write_bytes(b"an export of the user's")
    path = build_engine(
        whole,
        tmp_path / "s.engine",
        workspace=1.5,
        version_compatible=True,
        hardware_compatible=True,
        refit=True,
        optimization_level=4,
        keep_onnx=True,
    )
    config = trt.configs[-1]
    assert config.pools == {trt.MemoryPoolType.WORKSPACE: 3 << 29}
    assert {f.name for f in config.flags} == {"VERSION_COMPATIBLE", "REFIT"}
    assert config.hardware_compatibility_level is trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.builder_optimization_level == 4
    assert facts(path)["meddet_onnx"] == "s.engine.onnx" and load_onnx(tmp_path / "s.engine.onnx")
    assert (tmp_path / "s.onnx").read_bytes() == b"an export of the user's"
    build_engine(whole, tmp_path / "t.engine", precision="fp32", hardware_compatible="same")
    assert trt.configs[-1].hardware_compatibility_level is trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


def test_the_timing_cache_is_kept_for_each_gpu_and_version(tensorrt, whole, tmp_path, caplog):
    trt = tensorrt("10.13.0").module
    build_engine(whole, tmp_path / "s.engine", precision="fp32", timing_cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name == "NVIDIA_Fake_9000-sm8.9-trt10.13.0.cache" and file.read_bytes() == b"cache of 10.13.0"
    build_engine(whole, tmp_path / "s.engine", precision="fp32", timing_cache=tmp_path / "cache")
    assert trt.configs[-1].cache.blob == b"cache of 10.13.0"
    tensorrt("11.4.0")
    build_engine(whole, tmp_path / "s.engine", precision="fp32", timing_cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not caplog.text
    build_engine(whole, tmp_path / "s.engine", precision="fp32", timing_cache=file)  # a file of the other version
    assert "is of another GPU or version" in caplog.text and file.read_bytes() == b"cache of 11.4.0"


def test_what_fails_on_a_gpu(tensorrt, whole, dynamic, tmp_path):
    tensorrt(gpu=None)
    with pytest.raises(BuildError, match=r"this machine has none.*runtime=rtx"):
        build_engine(whole, tmp_path / "s.engine")
    tensorrt(fails=True)
    with pytest.raises(
        BuildError, match=r"could not build the engine: Error Code 2: OutOfMemory \(no room for tactic\)"
    ):
        build_engine(whole, tmp_path / "s.engine")
    tensorrt(unsupported={"Round"})
    with pytest.raises(BuildError, match=r"does not accept fp16.onnx: In node .* operator: Round"):
        build_engine(whole, tmp_path / "s.engine")
    tensorrt()
    with pytest.raises(ValueError, match="compute_capability= is for runtime=rtx"):
        build_engine(whole, tmp_path / "s.engine", compute_capability=8.6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp17"}, "fp32, tf32, fp16, int8, fp8"),
        ({"precision": "int8"}, "give data="),
        ({"workspace": 0}, "positive number of GiB"),
        ({"optimization_level": 7}, "0 to 5"),
        ({"hardware_compatible": "all"}, "true, false, ampere or same"),
        ({"batch": 0}, "min_batch <= batch"),
        ({"min_imgsz": 32}, "are for dynamic=True"),
        ({"imgsz": 96}, "fixed size 64 x 64"),
    ],
)
def test_wrong_arguments(tensorrt, whole, tmp_path, options, message):
    tensorrt()
    with pytest.raises(ValueError, match=message):
        build_engine(whole, tmp_path / "s.engine", **options)
    assert not list(tmp_path.iterdir())


def test_impossible_profiles(tensorrt, dynamic, tmp_path):
    tensorrt()
    for options in ({"max_imgsz": 64}, {"min_imgsz": 128}, {"min_imgsz": 40}):
        with pytest.raises(ValueError, match="multiples of 32"):
            build_engine(dynamic, tmp_path / "s.engine", **options)


def test_a_quantized_onnx_keeps_its_own_calibration(tensorrt, whole, calibration, tmp_path):
    tensorrt()
    from meddet_yolo.trt.quantize import quantize_onnx

    quantized = quantize_onnx(load_onnx(whole), calibration)
    (tmp_path / "q.onnx").write_bytes(quantized.SerializeToString())
    path = build_engine(tmp_path / "q.onnx", precision="int8")
    assert path == tmp_path / "q-int8.engine" and facts(path)["meddet_audit"]["matrix"]["int8"] > 50
    with pytest.raises(ValueError, match="has Q/DQ nodes, so its engine is quantized"):
        build_engine(tmp_path / "q.onnx")


def test_missing_and_unknown_runtimes(monkeypatch, whole):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ImportError, match=r'pip install "meddet-yolo\[trt\]".*runtime=rtx'):
        build_engine(whole)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(ImportError, match=r'pip install "meddet-yolo\[rtx\]"'):
        build_engine(whole, runtime="rtx")
    with pytest.raises(ValueError, match="use one of tensorrt, rtx"):
        build_engine(whole, runtime="cuda")
    old = type(sys)("tensorrt")
    old.__version__ = "8.6.1"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(RuntimeError, match=r"10\.0 or newer"):
        build_engine(whole)


def test_the_fake_has_the_names_that_the_real_one_has(rtx):
    """TensorRT-RTX shares TensorRT 11's API: what both have is written alike in the fake."""
    fake, real = fake_tensorrt("11.4.0").module, rtx.module
    assert set(FLAGS) <= set(real.BuilderFlag.__members__)
    for name in (
        "ProfilingVerbosity",
        "HardwareCompatibilityLevel",
        "MemoryPoolType",
        "LayerInformationFormat",
        "LayerType",
    ):
        assert set(getattr(fake, name).__members__) <= set(getattr(real, name).__members__)
    config, network = fake.Builder(None), fake.Builder(None).create_network(0)
    for made, kind in ((config, real.Builder), (fake.Builder(None).create_builder_config(), real.IBuilderConfig)):
        public = {n for n in dir(type(made)) if not n.startswith("_")} - {"trt"}
        assert public <= set(dir(kind))
    assert {"num_layers", "get_layer", "get_input", "num_inputs"} <= set(dir(real.INetworkDefinition)) & set(
        dir(network)
    )


def test_gpu_generations_as_they_are_written():
    assert as_capabilities([8.6, 12.0, "sm_120", "89", 75, 12]) == ("8.6", "12.0", "8.9", "7.5")
    assert as_capabilities("[8.6, 12.0]") == ("8.6", "12.0") and as_capabilities(None) == ()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("NVIDIA GeForce RTX 4090, 8.9, 580.65.06", {"name": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9"}),
        ("No devices were found", None),
    ],
)
def test_what_nvidia_smi_says(monkeypatch, tmp_path, output, expected):
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho '{output}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = backends.gpu_info()
    assert found == (None if expected is None else {**expected, "driver": "580.65.06"})
    monkeypatch.setenv("PATH", "")
    assert backends.gpu_info() is None


class _Driver:
    """A CUDA driver with two GPUs; `current` is the number of the one that the thread's context is on."""

    def __init__(self, current=None, works=True):
        self.current, self.works = current, works

    def cuInit(self, flags):
        return 0 if self.works else 100

    def cuCtxGetDevice(self, device):
        if self.current is None:
            return 201
        device._obj.value = self.current
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = number
        return 0

    def cuDeviceGetPCIBusId(self, text, length, device):
        text.value = f"0000:0{7 - device.value}:00.0".encode()
        return 0


@pytest.mark.parametrize(
    ("driver", "asked"),
    [
        (_Driver(current=1), "0000:06:00.0"),
        (_Driver(), "0000:07:00.0"),
        (_Driver(works=False), "0"),
        (None, "0"),
    ],
)
def test_the_gpu_that_is_described_is_the_current_one(monkeypatch, tmp_path, driver, asked):
    def load(name):
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr("ctypes.CDLL", load)
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\nfor last; do :; done\necho "$last, 8.9, 580.1"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backends.gpu_info() == {"name": f"--id={asked}", "compute_capability": "8.9", "driver": "580.1"}


def test_the_header_is_json(whole, tensorrt, tmp_path):
    tensorrt()
    path = build_engine(whole, tmp_path / "s.engine")
    header = json.dumps(BaseBackend.read_metadata(path))
    assert np.isfinite(json.loads(header)["meddet_parity"]["fp16"]["scores"])
