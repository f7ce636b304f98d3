import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.nn.backends.base import BaseBackend

from meddet_yolo.trt.engine_file import (
    EngineFileError,
    read_engine,
    read_sidecar,
    sha256,
    sidecar_path,
    write_engine,
)

HEADER = {
    "task": "detect",
    "stride": 32,
    "batch": 2,
    "imgsz": [64, 96],
    "names": {0: "Bandscheibe (gesund)", 1: "œdème", 2: "椎間板"},
    "args": {"nms": None, "dynamic": True},
    "channels": 3,
    "end2end": False,
    "meddet_precision": "fp16",
    "meddet_audit": {"matrix": {"fp16": 88}},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_ultralytics_reads_our_header(tmp_path):
    path = write_engine(tmp_path / "a" / "s.engine", b"\x00plan\xff", HEADER)
    offset, header = BaseBackend.engine_header(path)
    assert path.read_bytes()[offset:] == b"\x00plan\xff"
    assert header == json.loads(json.dumps(HEADER))

    class Backend(BaseBackend):
        def load_model(self, weight):
            self.apply_metadata(self.read_metadata(weight))

        def forward(self, im):
            raise NotImplementedError

    backend = Backend(path, "cpu")
    assert (backend.task, backend.stride, backend.batch, backend.imgsz, backend.dynamic) == (
        "detect",
        32,
        2,
        [64, 96],
        True,
    )
    assert list(backend.names.values()) == list(HEADER["names"].values())
    assert backend.end2end is False and backend.meddet_precision == "fp16"


def test_we_read_what_ultralytics_writes(tmp_path):
    header = json.dumps({"task": "detect", "names": {"0": "disc"}}).encode()  # as utils/export/engine.py does
    (tmp_path / "u.engine").write_bytes(len(header).to_bytes(4, "little", signed=True) + header + b"plan")
    found = read_engine(tmp_path / "u.engine")
    assert found.plan == b"plan" and found.metadata == {"task": "detect", "names": {0: "disc"}}


@settings(max_examples=50, deadline=None)
@given(metadata=st.dictionaries(st.text(), VALUES), plan=st.binary(min_size=1))
def test_any_metadata_and_plan_come_back(tmp_path_factory, metadata, plan):
    metadata.pop("names", None)
    path = write_engine(tmp_path_factory.mktemp("e") / "x.engine", plan, metadata)
    found = read_engine(path)
    assert found.plan == plan and found.metadata == metadata
    assert path.read_bytes()[: -len(plan)][4:].isascii()


def test_sidecar_has_hash_size_and_metadata(tmp_path):
    path = write_engine(tmp_path / "s.engine", b"plan", HEADER)
    sidecar = read_sidecar(path)
    assert sidecar["sha256"] == sha256(path) and sidecar["bytes"] == path.stat().st_size
    assert sidecar["file"] == "s.engine" and sidecar["meddet_precision"] == "fp16"
    assert sidecar_path(path).read_bytes().isascii()


def test_a_changed_engine_is_noticed(tmp_path):
    path = write_engine(tmp_path / "s.engine", b"plan", HEADER)
    path.write_bytes(path.read_bytes()[:-1] + b"N")
    with pytest.raises(EngineFileError, match=r"not the file that s\.engine\.json describes"):
        read_engine(path)
    assert read_engine(path, verify=False).plan == b"plaN"
    sidecar_path(path).unlink()
    assert read_engine(path).plan == b"plaN"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x01\x00", "no metadata header"),
        (b"ptrt" + b"\x00" * 100, "no metadata header"),
        ((200).to_bytes(4, "little") + b"{}", "no metadata header"),
        ((-5).to_bytes(4, "little", signed=True) + b"{}plan", "no metadata header"),
        ((4).to_bytes(4, "little") + b"\xff\xfe\x00\x01plan", "not valid JSON"),
        ((2).to_bytes(4, "little") + b"[]plan", "must be a JSON object"),
        ((2).to_bytes(4, "little") + b"{}", "ends after its header"),
    ],
)
def test_foreign_and_damaged_files(tmp_path, content, message):
    (tmp_path / "x.engine").write_bytes(content)
    with pytest.raises(EngineFileError, match=message):
        read_engine(tmp_path / "x.engine")


def test_missing_and_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_engine(tmp_path / "x.engine")
    with pytest.raises(EngineFileError, match="empty"):
        write_engine(tmp_path / "x.engine", b"", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_sidecar(tmp_path, content):
    path = write_engine(tmp_path / "s.engine", b"plan", {})
    sidecar_path(path).write_text(content)
    with pytest.raises(EngineFileError, match="JSON"):
        read_engine(path)


def test_an_interrupted_write_leaves_the_old_engine_and_no_rubbish(tmp_path, monkeypatch):
    path = write_engine(tmp_path / "s.engine", b"old", {})

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_engine(path, b"new", {})
    assert path.read_bytes().endswith(b"old")
    assert [p.name for p in tmp_path.iterdir()] == ["s.engine"]
