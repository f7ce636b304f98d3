from types import SimpleNamespace

import pytest

from meddet_yolo.trt import refit
from meddet_yolo.trt.backends import Backend
from meddet_yolo.trt.compile import BuildError
from meddet_yolo.trt.engine_file import read_engine, read_sidecar, sha256, write_engine
from meddet_yolo.trt.refit import refit_engine


class _Engine:
    def __init__(self, plan):
        self.plan = plan

    def create_serialization_config(self):
        flags = {"EXCLUDE_WEIGHTS"}
        return SimpleNamespace(flags=flags, clear_flag=flags.discard)

    def serialize_with_config(self, config):
        return self.plan if "EXCLUDE_WEIGHTS" not in config.flags else b"stripped"


class _Refitter:
    def __init__(self, engine, logger):
        self.engine, self.logger, self.weights = engine, logger, None

    def refit_cuda_engine(self):
        self.engine.plan += self.weights
        return True


class _ParserRefitter:
    def __init__(self, refitter, logger):
        self.refitter, self.logger = refitter, logger

    def refit_from_file(self, path):
        with open(path, "rb") as file:
            self.refitter.weights = file.read()
        if self.refitter.weights == b"foreign":
            self.logger.log("Severity.ERROR", "missing weights for /model.0/conv")
            return False
        return True


class _Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        return None if plan == b"old" else _Engine(plan)


@pytest.fixture
def trt(monkeypatch):
    module = SimpleNamespace(
        __version__="10.13.0",
        ILogger=type("ILogger", (), {"__init__": lambda self: None}),
        Runtime=_Runtime,
        Refitter=_Refitter,
        OnnxParserRefitter=_ParserRefitter,
        SerializationFlag=SimpleNamespace(EXCLUDE_WEIGHTS="EXCLUDE_WEIGHTS"),
    )
    monkeypatch.setattr(refit, "load_backend", lambda runtime: Backend("tensorrt", module))
    monkeypatch.setattr(refit, "gpu_info", lambda: {"name": "GPU"})
    return module


@pytest.fixture
def stripped(tmp_path):
    (tmp_path / "s.onnx").write_bytes(b" and weights")
    return write_engine(
        tmp_path / "s.engine", b"plan", {"meddet_strip": True, "meddet_onnx": "s.onnx", "task": "detect"}
    )


def test_a_stripped_engine_gets_its_weights(trt, stripped):
    assert refit_engine(stripped) == stripped
    found = read_engine(stripped)
    assert found.plan == b"plan and weights" and found.metadata["meddet_strip"] is False
    assert found.metadata["task"] == "detect"
    assert found.metadata["meddet_weights_sha256"] == sha256(stripped.with_suffix(".onnx"))
    assert read_sidecar(stripped)["sha256"] == sha256(stripped)


def test_other_weights_into_another_file(trt, stripped, tmp_path):
    (tmp_path / "new.onnx").write_bytes(b" and new weights")
    path = refit_engine(stripped, tmp_path / "new.onnx", tmp_path / "new.engine")
    assert read_engine(path).plan == b"plan and new weights" and read_engine(stripped).plan == b"plan"


def test_what_cannot_be_refitted(trt, stripped, tmp_path, monkeypatch):
    fixed = write_engine(tmp_path / "f.engine", b"plan", {"task": "detect"})
    with pytest.raises(ValueError, match="takes no weights"):
        refit_engine(fixed)
    with pytest.raises(ValueError, match="onnx= is missing"):
        refit_engine(write_engine(tmp_path / "r.engine", b"plan", {"meddet_refit": True}))
    with pytest.raises(FileNotFoundError, match="holds the weights"):
        refit_engine(stripped, tmp_path / "none.onnx")
    with pytest.raises(BuildError, match="cannot load"):
        refit_engine(write_engine(tmp_path / "o.engine", b"old", {"meddet_strip": True, "meddet_onnx": "s.onnx"}))
    (tmp_path / "foreign.onnx").write_bytes(b"foreign")
    with pytest.raises(BuildError, match=r"does not take the weights of .*missing weights for /model\.0/conv"):
        refit_engine(stripped, tmp_path / "foreign.onnx")
    monkeypatch.setattr(refit, "gpu_info", lambda: None)
    with pytest.raises(BuildError, match="this machine has none"):
        refit_engine(stripped)
    assert read_engine(stripped).plan == b"plan"


def test_the_names_are_those_of_the_real_one():
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    assert hasattr(real.Refitter, "refit_cuda_engine") and hasattr(real.OnnxParserRefitter, "refit_from_file")
    assert "EXCLUDE_WEIGHTS" in real.SerializationFlag.__members__
    assert {"create_serialization_config", "serialize_with_config"} <= set(dir(real.ICudaEngine))
    assert "clear_flag" in dir(real.ISerializationConfig)
