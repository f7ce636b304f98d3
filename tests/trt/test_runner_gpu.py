"""The runner on a real GPU, with every TensorRT and every CUDA library that is installed."""

import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from meddet_yolo.benchmark.candidates import Source
from meddet_yolo.trt.cuda_backends import open_cuda
from meddet_yolo.trt.engine_session import IncompatibleEngineError
from meddet_yolo.trt.runner import EngineRunner, OnnxRunner

pytestmark = pytest.mark.gpu

RUNTIMES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
EVERYTHING = {"conf": 0.0, "iou": 1.0, "max_det": 100}
IMAGE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def _has(module):
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module", params=[name for name, module in RUNTIMES.items() if _has(module)] or ["none"])
def files(request, tmp_path_factory):
    """An ONNX file and its engine, of static, dynamic and end-to-end students."""
    if request.param == "none":
        pytest.skip("neither tensorrt nor tensorrt-rtx is installed")
    from meddet_yolo.trt.builder import build_engine
    from meddet_yolo.trt.onnx_export import export_onnx

    made = {}
    source = Source("n", "meddet-n.yaml", trained=False, nc=2)
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    folder = tmp_path_factory.mktemp(request.param)
    for name, options in {
        "static": {"batch": 2},
        "end2end": {"end2end": True},
        "dynamic": {"batch": 4, "dynamic": True},
    }.items():
        onnx = export_onnx(source.model(), folder / f"{name}.onnx", imgsz=160, **options)
        built = {"runtime": request.param, "precision": "fp32", "imgsz": 160, "batch": options.get("batch", 1)}
        if request.param == "rtx":
            built["compute_capability"] = capability
        made[name] = (onnx, build_engine(onnx, folder / f"{name}.engine", **built))
    return made


def _scores(runner, images=IMAGE):
    return [np.sort(found.confidence) for found in runner(images)]


@pytest.mark.parametrize("kind", ["static", "end2end", "dynamic"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_an_engine_says_what_onnx_runtime_says(files, kind, cuda_graph):
    onnx, engine = files[kind]
    with OnnxRunner(onnx, **EVERYTHING) as reference:
        expected = _scores(reference)[0]
    with EngineRunner(engine, cuda_graph=cuda_graph, **EVERYTHING) as runner:
        for _ in range(4):  # without the graph, at its capture, and from it
            np.testing.assert_allclose(_scores(runner)[0], expected, atol=2e-3)
        assert not cuda_graph or kind == "dynamic" or runner.session.uses_graph
        assert all(value >= 0 for value in runner.session.times().values())
        assert runner.session.times()["compute"] > 0


@pytest.mark.parametrize("api", ["pycuda", "cuda-python"])
def test_both_cuda_libraries(files, api):
    if not _has({"pycuda": "pycuda", "cuda-python": "cuda.bindings"}[api]):
        pytest.skip(f"{api} is not installed")
    onnx, engine = files["static"]
    with OnnxRunner(onnx, **EVERYTHING) as reference, EngineRunner(engine, cuda=api, **EVERYTHING) as runner:
        expected = _scores(reference)[0]
        for _ in range(3):
            np.testing.assert_allclose(_scores(runner)[0], expected, atol=2e-3)


def test_shapes_change(files):
    onnx, engine = files["dynamic"]
    with OnnxRunner(onnx, **EVERYTHING) as reference, EngineRunner(engine, **EVERYTHING) as runner:
        for size in ((160, 160), (80, 160), (160, 96), (80, 160), (80, 160), (80, 160)):
            image = np.ascontiguousarray(np.resize(IMAGE, (*size, 3)))
            for count in (1, 3):
                for mine, theirs in zip(
                    _scores(runner, [image] * count), _scores(reference, [image] * count), strict=True
                ):
                    np.testing.assert_allclose(mine, theirs, atol=2e-3)


def test_threads_share_a_runner(files):
    _, engine = files["end2end"]
    wrong = []
    with EngineRunner(engine, **EVERYTHING) as runner:
        images = [np.full((64, 64, 3), level, np.uint8) for level in (10, 120, 250)]
        expected = [_scores(runner, image)[0] for image in images]

        def work(number):
            for _ in range(50):
                if not np.allclose(_scores(runner, images[number])[0], expected[number], atol=1e-4):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_memory_comes_back(files):
    _, engine = files["dynamic"]
    EngineRunner(engine).close()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(5):
        with EngineRunner(engine) as runner:
            runner(IMAGE)
    assert before - torch.cuda.mem_get_info()[0] < 64e6


def test_torch_works_beside_it(files):
    """Both use the device's primary context."""
    _, engine = files["static"]
    tensor = torch.arange(1000, device="cuda")
    with EngineRunner(engine, **EVERYTHING) as runner:
        first = _scores(runner)[0]
        assert int(tensor.sum()) == 499500
        np.testing.assert_array_equal(_scores(runner)[0], first)
    assert int(tensor.max()) == 999


def test_an_engine_for_another_gpu_is_refused(files, tmp_path):
    from meddet_yolo.trt.engine_file import read_engine, write_engine

    file = read_engine(files["static"][1])
    other = {**file.metadata, "meddet_compute_capability": ["1.0"], "meddet_hardware_compatible": False}
    with pytest.raises(IncompatibleEngineError, match=r"built for GPUs of compute capability 1\.0"):
        EngineRunner(write_engine(tmp_path / "other.engine", file.plan, other))


def test_a_damaged_plan_is_refused(files, tmp_path):
    from meddet_yolo.trt.engine_file import read_engine, write_engine

    file = read_engine(files["static"][1])
    with pytest.raises(IncompatibleEngineError, match="cannot load"):
        EngineRunner(write_engine(tmp_path / "damaged.engine", b"\0" * 64 + file.plan[64:], file.metadata))


def test_the_gpu_is_described():
    cuda = open_cuda()
    assert cuda.gpu.capability == torch.cuda.get_device_capability()
    assert cuda.gpu.name == torch.cuda.get_device_name()
    cuda.close()
