"""The real CUDA code on a driver in host memory, compiled here: argument for argument what a GPU would get."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from meddet_yolo.trt.engine_file import write_engine
from tests.trt._fake_gpu import fake_plan
from tests.trt._toy_model import META, toy_model

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The folder of a libcuda.so.1 that needs no GPU."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, "-o", folder / "libcuda.so.1", HERE / "_fake_libcuda.c"], check=True)
    return folder


def _run(library, api, tmp_path, **environment):
    model = toy_model(tmp_path / "toy.onnx", ["b", 3, "h", "w"])
    engine = write_engine(tmp_path / "toy.engine", fake_plan(model), META)
    return subprocess.run(
        [sys.executable, "-m", "tests.trt._fake_driver_run", api, str(engine)],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(library), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("api", ["cuda-python", "pycuda"])
def test_a_whole_session(library, tmp_path, api):
    if api == "cuda-python" and (find_spec("cuda") is None or find_spec("cuda.bindings") is None):
        pytest.skip("cuda-python is not installed")
    ran = _run(library, api, tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["scores"] == [[0.5], [0.25], [0.75], [0.5, 0.125], [0.25, 0.5], [1.0]]
    assert found["gpu"] == "Fake GPU (compute capability 8.6)"
    assert found["launches"] == 3  # twice for one image, once for two; never at a shape's first run
    assert all(value > 0 for value in found["times"].values())
    assert "1 found" in found["device 1"] and "device=-1 was asked for" in found["device -1"]
    assert "900" in found["error"] or "CAPTURE" in found["error"]
    assert found["live"] == 0  # every buffer, event, stream, graph and context was given back


def test_no_gpu_in_a_machine_with_a_driver(library, tmp_path):
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        pytest.skip("cuda-python is not installed")
    ran = _run(library, "cuda-python", tmp_path, FAKE_NO_GPU="1")
    assert ran.returncode != 0
    assert "no CUDA GPU can be used: device=0 was asked for, 0 found" in ran.stderr
