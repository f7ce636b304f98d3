"""The engine session on a fake GPU: buffers, order, graphs, shapes and every error; and that the fake is faithful."""

import inspect
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from meddet_yolo.trt import engine_file
from meddet_yolo.trt.cuda_api import Cuda, CudaError
from meddet_yolo.trt.cuda_backends import open_cuda
from meddet_yolo.trt.engine_file import EngineFileError, sha256, sidecar_path, write_engine
from meddet_yolo.trt.engine_session import EngineSession, IncompatibleEngineError
from meddet_yolo.trt.runner import EngineRunner, Runner
from tests.trt._fake_gpu import FAKED, FakeCuda, fake_backend, fake_plan
from tests.trt._toy_model import META, toy_model

SHAPES = {"static": [2, 3, 64, 64], "dynamic": ["b", 3, "h", "w"]}


@pytest.fixture
def engine(tmp_path):
    def make(kind="static", name="student.engine", **metadata):
        model = toy_model(tmp_path / f"{kind}.onnx", SHAPES[kind])
        return write_engine(tmp_path / name, fake_plan(model), {**META, **metadata})

    return make


def _open(path, gpu=None, version="10.13.0", trust=False, cuda_graph=True, **engine_options):
    gpu = gpu or FakeCuda()
    backend = fake_backend(gpu, version, **engine_options)
    return EngineSession(path, cuda=gpu, backend=backend, trust=trust, cuda_graph=cuda_graph), gpu


def _run(session, values, size=(64, 64)):
    """Run images of one brightness each; return the confidences, which must be these."""
    shape = (len(values), 3, *size)
    batch = session.buffer(shape)
    batch[:] = np.asarray(values, np.float32)[:, None, None, None]
    return session.run(shape)[0][:, 0, 4].tolist()


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_static_engine_runs(engine, cuda_graph):
    session, gpu = _open(engine(), cuda_graph=cuda_graph)
    with gpu.current():
        pass
    for values in ([0.5, 0.25], [0.125, 1.0], [0.75, 0.0], [0.5, 0.5]):
        assert _run(session, values) == values
    assert session.uses_graph == cuda_graph
    assert gpu.log.count("launch") == (3 if cuda_graph else 0)
    session.close()


def test_the_order_of_work(engine):
    """In, compute, out, wait; the graph holds the computing alone and is captured on the second run."""
    session, gpu = _open(engine())
    step = ["record", "to_device", "record", "{}", "record", "to_host", "record", "synchronize"]
    gpu.log.clear()
    _run(session, [0.5, 0.5])
    assert gpu.log == [s.format("execute") for s in step]
    gpu.log.clear()
    _run(session, [0.5, 0.5])
    assert gpu.log == ["begin_capture", "execute", "end_capture", *(s.format("launch") for s in step)]
    gpu.log.clear()
    _run(session, [0.5, 0.5])
    assert gpu.log == [s.format("launch") for s in step]


def test_all_memory_is_taken_at_the_start(engine):
    session, gpu = _open(engine("dynamic"))
    blocks = set(gpu.memory_blocks)
    for batch, size in ((1, (32, 32)), (4, (160, 160)), (2, (96, 64))):
        _run(session, [0.5] * batch, size)
    assert set(gpu.memory_blocks) == blocks
    assert "allocate" not in gpu.log[gpu.log.index("to_device") :]
    assert session.memory() == sum(block.size for block in gpu.memory_blocks.values())


def test_shapes_change_and_the_graph_with_them(engine):
    session, gpu = _open(engine("dynamic"))
    for size in ((64, 64), (64, 96), (64, 64), (160, 160)):  # never twice in a row: no capture
        assert _run(session, [0.25, 0.5], size) == [0.25, 0.5]
    assert "begin_capture" not in gpu.log
    for value in (0.125, 0.5, 0.75):
        assert _run(session, [value], (160, 160)) == [value]
    assert session.uses_graph and gpu.log.count("begin_capture") == 1
    assert _run(session, [0.5, 1.0, 0.25], (32, 32)) == [0.5, 1.0, 0.25]
    assert not session.uses_graph and gpu.log.count("free_graph") == 1
    assert _run(session, [1.0, 0.5, 0.25], (32, 32)) == [1.0, 0.5, 0.25]
    assert session.uses_graph
    session.close()
    assert gpu.log.count("free_graph") == 2


def test_an_engine_that_cannot_be_captured_goes_on_without(engine):
    session, _ = _open(engine(), not_capturable=True)
    for _ in range(4):
        assert _run(session, [0.5, 0.25]) == [0.5, 0.25]
    assert not session.uses_graph


def test_half_precision_input(tmp_path):
    model = toy_model(tmp_path / "half.onnx", [1, 3, 64, 64], TensorProto.FLOAT16)
    session, _ = _open(write_engine(tmp_path / "half.engine", fake_plan(model), META))
    assert session.buffer((1, 3, 64, 64)).dtype == np.float16
    assert _run(session, [0.5]) == [0.5]


def test_several_outputs_and_the_times(tmp_path):
    model = toy_model(tmp_path / "two.onnx", [1, 3, 64, 64], outputs=2)
    session, _ = _open(write_engine(tmp_path / "two.engine", fake_plan(model), META))
    session.buffer((1, 3, 64, 64))[:] = 0.25
    first, second = session.run((1, 3, 64, 64))
    assert first.shape == (1, 1, 6) and second.tolist() == [[[0.25]]]
    times = session.times()
    assert list(times) == ["to_device", "compute", "to_host"] and all(value > 0 for value in times.values())


def test_a_runner_on_an_engine(engine):
    """Batches, half-filled ones, and boxes in the image's pixels."""
    session, gpu = _open(engine())
    white = np.full((128, 64, 3), 255, np.uint8)
    with Runner(session) as runner:
        for count in (1, 2, 5):
            found = runner([white] * count)
            assert len(found) == count
            for one in found:
                inside = (0.5 * 255 + 0.5 * 114) / 255  # half the input is grey padding
                assert one.confidence.tolist() == pytest.approx([inside], abs=1e-3)
                # The image is 32 wide in the input, from 16 on; 8..24 there is -16..16 here, clipped.
                assert one.xyxy.tolist() == [[0, 16, 16, 80]]
        assert runner.names == {0: "disc"}
    assert gpu.closed


def test_a_runner_gives_dynamic_engines_small_inputs(engine):
    session, _ = _open(engine("dynamic", imgsz=[160, 160]))
    seen = []
    run = session.run
    session.run = lambda shape: (seen.append(tuple(shape)), run(shape))[1]
    runner = Runner(session)
    runner([np.zeros((80, 160, 3), np.uint8)] * 5)
    assert seen == [(4, 3, 96, 160), (1, 3, 96, 160)]


def test_threads_share_a_runner_on_an_engine(engine):
    session, _ = _open(engine())
    wrong = []
    with Runner(session, conf=0.0) as runner:

        def work(level):
            image = np.full((64, 64, 3), level, np.uint8)
            for _ in range(20):
                if runner(image)[0].confidence.tolist() != pytest.approx([level / 255], abs=1e-3):
                    wrong.append(level)

        threads = [threading.Thread(target=work, args=(level,)) for level in (40, 120, 250)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


# errors ---------------------------------------------------------------------------------------------------------------


def test_a_shape_the_engine_does_not_take(engine):
    session, _ = _open(engine())
    with pytest.raises(ValueError, match=r"takes input shapes \(2, 3, 64, 64\), got \(1, 3, 64, 64\)"):
        session.buffer((1, 3, 64, 64))
    session, _ = _open(engine("dynamic"))
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\) to \(4, 3, 160, 160\), got \(5, 3, 64, 64\)"):
        session.buffer((5, 3, 64, 64))
    assert _run(session, [0.5]) == [0.5]


def test_a_failing_gpu_is_named_and_can_recover(engine):
    session, gpu = _open(engine())
    _run(session, [0.5, 0.5])
    gpu.fail = "to_host"
    with pytest.raises(CudaError, match="to_host failed: CUDA_ERROR_LAUNCH_FAILED"):
        _run(session, [0.5, 0.5])
    gpu.fail = None
    gpu.queue.clear()
    assert _run(session, [0.5, 0.25]) == [0.5, 0.25]
    assert gpu.captured is None


def test_an_engine_that_refuses_to_run(engine):
    session, _ = _open(engine(), broken=True)
    with pytest.raises(CudaError, match=r"student\.engine failed to run: cannot enqueue"):
        _run(session, [0.5, 0.5])


def test_a_closed_session(engine):
    session, gpu = _open(engine())
    session.close()
    session.close()
    assert gpu.closed
    with pytest.raises(RuntimeError, match="is closed"):
        session.run((2, 3, 64, 64))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        EngineRunner(tmp_path / "none.engine")


def test_an_engine_nobody_vouches_for(engine):
    path = engine()
    sidecar_path(path).unlink()
    with pytest.raises(EngineFileError, match=r"no student\.engine\.json .* an engine is code .* trust=True"):
        _open(path)
    assert _run(_open(path, trust=True)[0], [0.5, 0.5]) == [0.5, 0.5]
    known = sha256(path)
    gpu = FakeCuda()
    EngineSession(path, cuda=gpu, backend=fake_backend(gpu), expected_sha256=known.upper())
    with pytest.raises(EngineFileError, match="it is another file"):
        EngineSession(path, cuda=gpu, backend=fake_backend(gpu), expected_sha256="0" * 64)


def test_a_file_that_was_changed(engine):
    path = engine()
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(EngineFileError, match="is not the file that"):
        _open(path)


@pytest.mark.parametrize("known", [True, False])
def test_the_bytes_that_were_hashed_are_the_ones_that_run(engine, monkeypatch, known):
    """A file that is replaced while it is opened is either refused or run as it was vouched for."""
    path, other = engine(), engine(name="other.engine", description="other")
    expected = sha256(path) if known else None
    read = Path.read_bytes
    swaps = []

    def swap(self):
        if self.suffix == ".engine":
            swaps.append(self)
            self.write_bytes(read(other))

    def replaced_after_reading(self):
        content = read(self)
        swap(self)
        return content

    def replaced_after_opening(self, *args, **kwargs):
        content = io.BytesIO(read(self))
        swap(self)
        return content

    monkeypatch.setattr(Path, "read_bytes", replaced_after_reading)
    monkeypatch.setattr(engine_file, "open", replaced_after_opening, raising=False)
    gpu = FakeCuda()
    session = EngineSession(path, cuda=gpu, backend=fake_backend(gpu), expected_sha256=expected)
    assert swaps == [path]
    assert session.metadata.get("description") != "other"


def test_a_sidecar_that_vanishes_vouches_for_nothing(engine, monkeypatch):
    path = engine()
    read = Path.read_bytes

    def without_sidecar(self):
        sidecar_path(path).unlink()
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", without_sidecar)
    with pytest.raises(EngineFileError, match="no student"):
        _open(path)


@pytest.mark.parametrize("content", [b"", b"ab", b"PK\x03\x04 a zip file", b"\x10\x00\x00\x00{}"])
def test_a_foreign_file(tmp_path, content):
    path = tmp_path / "foreign.engine"
    path.write_bytes(content)
    with pytest.raises(EngineFileError, match=r"foreign\.engine"):
        _open(path, trust=True)


def test_a_plan_that_tensorrt_does_not_know(tmp_path):
    path = write_engine(tmp_path / "other.engine", b"something else", META)
    gpu = FakeCuda()
    with pytest.raises(IncompatibleEngineError, match=r"TensorRT 10\.13\.0 cannot load .* magic tag does not match"):
        _open(path, gpu)
    assert gpu.closed  # nothing stays behind


@pytest.mark.parametrize(
    ("here", "extra", "fits"),
    [
        ("10.13.0", {}, True),
        ("10.13.0.35", {}, True),  # another build of that release
        ("10.14.1", {}, False),
        ("11.0.0", {}, False),
        ("11.0.0", {"meddet_version_compatible": True}, True),
        ("10.9.0", {"meddet_version_compatible": True}, False),
        ("11.0.0", {"meddet_runtime_version": None}, True),  # unknown, such as Ultralytics' own: TensorRT decides
    ],
)
def test_another_tensorrt(engine, here, extra, fits):
    path = engine(**extra)
    if fits:
        assert _run(_open(path, version=here)[0], [0.5, 0.5]) == [0.5, 0.5]
    else:
        with pytest.raises(IncompatibleEngineError, match=rf"built with version 10\.13\.0, here is TensorRT {here}"):
            _open(path, version=here)


@pytest.mark.parametrize(
    ("metadata", "here", "fits"),
    [
        ({"compute_capability": ["8.6", "8.9"], "runtime": "rtx"}, (8, 9), True),
        ({"compute_capability": ["8.6", "8.9"], "runtime": "rtx"}, (9, 0), False),
        ({"compute_capability": None, "gpu": {"compute_capability": "7.5"}, "runtime": "rtx"}, (9, 0), True),
        ({"gpu": {"compute_capability": "8.6"}}, (8, 6), True),
        ({"gpu": {"compute_capability": "8.6"}}, (9, 0), False),
        ({"gpu": {"compute_capability": "8.6"}, "hardware_compatible": "same"}, (9, 0), False),
        ({"gpu": {"compute_capability": "8.6"}, "hardware_compatible": True}, (9, 0), True),
        ({"gpu": {"compute_capability": "8.6"}, "hardware_compatible": "ampere"}, (7, 5), False),
    ],
)
def test_another_gpu(engine, metadata, here, fits):
    path = engine(**{f"meddet_{key}": value for key, value in metadata.items()})
    gpu = FakeCuda(here)
    if fits:
        _open(path, gpu)
    else:
        with pytest.raises(IncompatibleEngineError, match=rf"capability 8\.6.*, this one is Fake RTX .*{here[0]}\."):
            _open(path, gpu)
        assert gpu.closed


def test_an_engine_without_weights(engine):
    with pytest.raises(IncompatibleEngineError, match="without its weights"):
        _open(engine(meddet_strip=True))


def test_an_output_that_depends_on_the_data(engine):
    with pytest.raises(IncompatibleEngineError, match=r"output0 .* depends on the data; export .*nms=False"):
        _open(engine("dynamic"), data_dependent=True)


def test_an_unknown_runtime(engine):
    with pytest.raises(ValueError, match="'openvino' is unknown"):
        EngineSession(engine(meddet_runtime="openvino"))


def test_a_missing_runtime(engine, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(ImportError, match=r"TensorRT is not usable here .* pip install"):
        EngineSession(engine())


def test_no_gpu_here():
    """The real libraries, where there is no GPU."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(CudaError, match=r"no CUDA GPU can be used|is not installed|neither pycuda nor"):
        open_cuda()


def test_no_cuda_library(monkeypatch):
    monkeypatch.setattr("meddet_yolo.trt.cuda_backends.find_spec", lambda name: None)
    with pytest.raises(CudaError, match="neither pycuda nor cuda-python is installed: pip install cuda-python"):
        open_cuda()
    with pytest.raises(CudaError, match="pycuda is not installed"):
        open_cuda(api="pycuda")


# the fake -------------------------------------------------------------------------------------------------------------


def test_the_fake_offers_what_tensorrt_has():
    """Every method that the fake engine, context and runtime answer is one of the real classes."""
    trt = pytest.importorskip("tensorrt_rtx")
    for name, fake in FAKED.items():
        methods = {n for n, f in vars(fake).items() if inspect.isfunction(f) and not n.startswith("_")}
        assert methods - {"run"} <= set(dir(getattr(trt, name)))
    assert callable(trt.nptype) and hasattr(trt.TensorIOMode, "INPUT") and hasattr(trt.ILogger, "Severity")


def test_the_fake_gpu_is_a_whole_one():
    assert not Cuda.__abstractmethods__ - set(dir(FakeCuda))
    for name in Cuda.__abstractmethods__:
        real, fake = (inspect.signature(getattr(c, name)) for c in (Cuda, FakeCuda))
        assert list(real.parameters) == list(fake.parameters), name


def test_the_fake_notices_what_would_go_wrong():
    gpu = FakeCuda()
    with pytest.raises(AssertionError, match="not current"):
        gpu.synchronize()
    with gpu.current():
        buffer = gpu.allocate(8)
        with pytest.raises(AssertionError, match="pageable"):
            gpu.to_device(buffer, np.zeros(2, np.float32))
        gpu.begin_capture()
        with pytest.raises(CudaError, match="CAPTURE_UNSUPPORTED"):
            gpu.allocate(8)


def test_a_failing_capture_leaves_the_stream_usable():
    gpu = FakeCuda()

    def work():
        raise CudaError("no")

    with gpu.current():
        with pytest.raises(CudaError, match="no"):
            gpu.capture(work)
        assert gpu.captured is None
        gpu.synchronize()
