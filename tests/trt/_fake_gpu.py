"""A GPU and a TensorRT that live in memory: the order of work, the rules and the errors of the real ones.

Work in the stream is done when somebody waits for it, not before, so that whoever overwrites or reads a buffer too
early gets wrong numbers here as there. The plan of a fake engine is an ONNX model, run by ONNX Runtime on the "device".
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

from meddet_yolo.trt.backends import Backend
from meddet_yolo.trt.cuda_api import Cuda, CudaError, Gpu

MAGIC = b"fake plan "


class FakeCuda(Cuda):
    """One stream, with the driver's rules about contexts, page-locked memory and captures."""

    def __init__(self, capability=(8, 6)):
        self.gpu = Gpu("Fake RTX", capability, (13, 0))
        self.log: list[str] = []
        self.memory_blocks: dict[int, np.ndarray] = {}
        self.pinned_arrays: list[np.ndarray] = []
        self.queue: list = []
        self.captured: list | None = None
        self.closed = False
        self.fail: str | None = None  # the call that is to fail
        self._next = 0x1000
        self._clock = 0.0
        self._local = threading.local()

    @contextmanager
    def current(self):
        assert not self.closed, "used after close"
        self._local.depth = getattr(self._local, "depth", 0) + 1
        try:
            yield
        finally:
            self._local.depth -= 1

    def _note(self, name, *, capturable=True):
        assert getattr(self._local, "depth", 0) > 0, f"{name}: the context is not current in this thread"
        assert not self.closed, f"{name} after close"
        if self.captured is not None and not capturable:
            raise CudaError(f"{name} failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        if self.fail == name:
            raise CudaError(f"{name} failed: CUDA_ERROR_LAUNCH_FAILED")
        self.log.append(name)

    def enqueue(self, work):
        (self.queue if self.captured is None else self.captured).append(work)

    def pinned(self, shape, dtype):
        self._note("pinned", capturable=False)
        array = np.full(shape, 77, dtype)
        self.pinned_arrays.append(array)
        return array

    def _check_pinned(self, array):
        assert array.flags.c_contiguous
        assert any(np.shares_memory(array, p) for p in self.pinned_arrays), "an asynchronous copy of pageable memory"

    def allocate(self, size):
        self._note("allocate", capturable=False)
        address, self._next = self._next, self._next + size + 0x1000
        self.memory_blocks[address] = np.full(size, 0xEE, np.uint8)
        return address

    def address(self, buffer):
        return buffer

    def stream_handle(self):
        return 42

    def to_device(self, buffer, array):
        self._note("to_device")
        self._check_pinned(array)
        block = self.memory_blocks[buffer]
        assert array.nbytes <= block.size

        def work():
            block[: array.nbytes] = array.reshape(-1).view(np.uint8)

        self.enqueue(work)

    def to_host(self, array, buffer):
        self._note("to_host")
        self._check_pinned(array)
        block = self.memory_blocks[buffer]
        assert array.nbytes <= block.size

        def work():
            array.reshape(-1).view(np.uint8)[:] = block[: array.nbytes]

        self.enqueue(work)

    def synchronize(self):
        self._note("synchronize", capturable=False)
        work, self.queue = self.queue, []
        for do in work:
            self._clock += 0.25
            do()

    def event(self):
        self._note("event", capturable=False)
        return {"time": None}

    def record(self, event):
        self._note("record")

        def work():
            event["time"] = self._clock

        self.enqueue(work)

    def elapsed(self, start, end):
        self._note("elapsed")
        if start["time"] is None or end["time"] is None:
            raise CudaError("cuEventElapsedTime failed: CUDA_ERROR_INVALID_HANDLE")
        return end["time"] - start["time"]

    def begin_capture(self):
        self._note("begin_capture", capturable=False)
        self.captured = []

    def end_capture(self):
        captured, self.captured = self.captured, None
        self._note("end_capture")
        return {"work": captured, "freed": False}

    def launch(self, graph):
        self._note("launch")
        assert not graph["freed"]
        for work in graph["work"]:
            self.enqueue(work)

    def free_graph(self, graph):
        self._note("free_graph")
        assert not graph["freed"]
        graph["freed"] = True

    def memory(self):
        used = sum(block.size for block in self.memory_blocks.values())
        return 2**30 - used, 2**30

    def close(self):
        self.memory_blocks.clear()
        self.closed = True


class _Context:
    def __init__(self, engine):
        self.engine = engine
        self.addresses = {}
        self.shape = None if engine.dynamic else engine.profile[2]
        self.ready = None  # the shape that TensorRT has set itself up for

    def set_input_shape(self, name, shape):
        assert name == engine_input(self.engine)
        low, _, high = self.engine.profile
        if any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            self.engine.logger.log(self.engine.trt.ILogger.Severity.ERROR, f"{shape} is outside the profile")
            return False
        self.shape = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        if name == engine_input(self.engine):
            return self.shape
        outputs = self.engine.run(np.zeros(self.shape, self.engine.input_type))
        return outputs[name].shape if not self.engine.data_dependent else (*outputs[name].shape[:1], -1, 6)

    def set_tensor_address(self, name, address):
        assert address in self.engine.trt.gpu.memory_blocks
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        gpu, engine = self.engine.trt.gpu, self.engine
        assert stream == gpu.stream_handle()
        if self.shape is None or len(self.addresses) != len(engine.names) or engine.broken:
            engine.logger.log(engine.trt.ILogger.Severity.ERROR, "cannot enqueue")
            return False
        if gpu.captured is not None and (self.ready != self.shape or engine.not_capturable):
            raise CudaError("cuMemAlloc failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        self.ready, shape = self.shape, self.shape
        gpu.log.append("execute")

        def work():
            name = engine_input(engine)
            size = int(np.prod(shape)) * np.dtype(engine.input_type).itemsize
            batch = gpu.memory_blocks[self.addresses[name]][:size].view(engine.input_type).reshape(shape)
            for key, value in engine.run(batch).items():
                block = gpu.memory_blocks[self.addresses[key]]
                block[: value.nbytes] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

        gpu.enqueue(work)
        return True


def engine_input(engine):
    return engine.names[0]


class _Engine:
    def __init__(self, trt, logger, plan):
        self.trt, self.logger = trt, logger
        self.broken = self.not_capturable = self.data_dependent = False
        self._session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        entry = self._session.get_inputs()[0]
        self.input_type = np.float16 if "float16" in entry.type else np.float32
        self.names = [entry.name, *(o.name for o in self._session.get_outputs())]
        self.shape = tuple(n if isinstance(n, int) else -1 for n in entry.shape)
        self.dynamic = -1 in self.shape
        bounds = ((1, 3, 32, 32), (1, 3, 64, 64), (4, 3, 160, 160))
        self.profile = bounds if self.dynamic else (self.shape,) * 3
        self.num_io_tensors = len(self.names)

    def run(self, batch):
        return dict(zip(self.names[1:], self._session.run(None, {self.names[0]: batch}), strict=True))

    def get_tensor_name(self, i):
        return self.names[i]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name == self.names[0] else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.input_type if name == self.names[0] else np.float32

    def get_tensor_shape(self, name):
        return self.shape if name == self.names[0] else None

    def get_tensor_profile_shape(self, name, profile):
        assert profile == 0
        return self.profile

    def create_execution_context(self):
        return _Context(self)


class _ILogger:
    Severity = SimpleNamespace(INTERNAL_ERROR="INTERNAL_ERROR", ERROR="ERROR", WARNING="WARNING")


class _Runtime:
    trt: SimpleNamespace

    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, plan):
        if not plan.startswith(MAGIC):
            self.logger.log(_ILogger.Severity.ERROR, "Serialization assertion failed: magic tag does not match")
            return None
        engine = _Engine(self.trt, self.logger, plan.removeprefix(MAGIC))
        for name, value in self.trt.engine_options.items():
            setattr(engine, name, value)
        return engine


def fake_backend(gpu: FakeCuda, version: str = "10.13.0", **engine_options: bool) -> Backend:
    """A backend whose engines run on a fake GPU."""
    trt = SimpleNamespace(
        __version__=version,
        ILogger=_ILogger,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        nptype=lambda kind: kind,
        gpu=gpu,
        engine_options=engine_options,
    )
    trt.Runtime = type("Runtime", (_Runtime,), {"trt": trt})
    return Backend("tensorrt", trt)


def fake_plan(onnx_file) -> bytes:
    """The plan of an ONNX model for the fake TensorRT."""
    return MAGIC + onnx.load(str(onnx_file)).SerializeToString()


FAKED = {"ICudaEngine": _Engine, "IExecutionContext": _Context, "Runtime": _Runtime}
