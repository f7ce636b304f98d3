"""Run in a process of its own with the fake driver as libcuda.so.1: a whole engine session; prints what it found.

LD_LIBRARY_PATH=FOLDER python -m tests.trt._fake_driver_run cuda-python|pycuda ENGINE
"""

import ctypes
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

if __name__ == "__main__":  # and not where tests are collected
    driver = ctypes.CDLL("libcuda.so.1")
    driver.fake_size.restype = ctypes.c_size_t
WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def check(status):
    if status:
        raise sys.modules["pycuda.driver"].Error(f"fake driver: {status}")


def pointer_from(name, *args):
    value = ctypes.c_void_p()
    check(getattr(driver, name)(ctypes.byref(value), *args))
    return value


def stand_in_for_pycuda():
    """What `PyCuda` uses of pycuda, on the fake driver; names and arguments as in pycuda's own wrapper."""
    api = ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class Device:
        def __init__(self, number):
            self.number = number

        @staticmethod
        def count():
            value = ctypes.c_int()
            check(driver.cuDeviceGetCount(ctypes.byref(value)))
            return value.value

        def name(self):
            return "Fake GPU"

        def compute_capability(self):
            return 8, 6

        def retain_primary_context(self):
            pointer_from("cuDevicePrimaryCtxRetain", 0)
            return Context()

    class Context:
        def push(self):
            check(driver.cuCtxPushCurrent(ctypes.c_void_p(0x77)))

        @staticmethod
        def pop():
            pointer_from("cuCtxPopCurrent")

        def detach(self):
            check(driver.cuDevicePrimaryCtxRelease(0))

    class Stream:
        def __init__(self, flags=0):
            self.handle = pointer_from("cuStreamCreate", flags).value

        def synchronize(self):
            check(driver.cuStreamSynchronize(ctypes.c_void_p(self.handle)))

        def __del__(self):
            check(driver.cuStreamDestroy(ctypes.c_void_p(self.handle)))

    class Event:
        def __init__(self, flags=0):
            self.pointer = pointer_from("cuEventCreate", flags)

        def record(self, stream):
            check(driver.cuEventRecord(self.pointer, ctypes.c_void_p(stream.handle)))
            return self

        def time_till(self, other):
            value = ctypes.c_float()
            check(driver.cuEventElapsedTime(ctypes.byref(value), self.pointer, other.pointer))
            return value.value

        def __del__(self):
            check(driver.cuEventDestroy(self.pointer))

    class DeviceAllocation:
        def __init__(self, size):
            self.pointer = pointer_from("cuMemAlloc", ctypes.c_size_t(size))

        def __int__(self):
            return self.pointer.value

        def free(self):
            check(driver.cuMemFree(self.pointer))

    def copy(name, *args):
        check(getattr(driver, name)(*args))

    def array_pointer(array):
        return ctypes.c_void_p(array.ctypes.data)

    api.Error, api.Device, api.Context, api.Stream, api.Event = Error, Device, Context, Stream, Event
    api.init = lambda flags=0: check(driver.cuInit(flags))
    api.get_driver_version = lambda: 13000
    api.pagelocked_empty = lambda shape, dtype: np.full(shape, 77, dtype)
    api.mem_alloc = DeviceAllocation
    api.mem_get_info = lambda: (2**30, 2**30)
    api.memcpy_htod_async = lambda d, h, s: copy(
        "cuMemcpyHtoDAsync", d.pointer, array_pointer(h), ctypes.c_size_t(h.nbytes), ctypes.c_void_p(s.handle)
    )
    api.memcpy_dtoh_async = lambda h, d, s: copy(
        "cuMemcpyDtoHAsync", array_pointer(h), d.pointer, ctypes.c_size_t(h.nbytes), ctypes.c_void_p(s.handle)
    )
    package = ModuleType("pycuda")
    package.__spec__ = ModuleSpec("pycuda", None)
    package.driver = api
    sys.modules.update({"pycuda": package, "pycuda.driver": api})


class Blocks(dict):
    """The fake driver's device memory as arrays."""

    def __contains__(self, address):
        return True

    def __getitem__(self, address):
        size = driver.fake_size(ctypes.c_void_p(address))
        return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)


class Gpu(SimpleNamespace):
    """What the fake TensorRT needs of a GPU, by the fake driver."""

    kept: list = []  # noqa: RUF012

    @property
    def captured(self):
        return [] if driver.fake_capturing() else None

    def enqueue(self, work):
        callback = WORK(lambda _: work())
        self.kept.append(callback)  # a graph may call it later
        assert driver.fake_enqueue(callback, None) == 0

    def stream_handle(self):
        return 0x55


def main(api, engine):
    from meddet_yolo.trt.cuda_api import CudaError
    from meddet_yolo.trt.cuda_backends import open_cuda
    from meddet_yolo.trt.engine_session import EngineSession
    from tests.trt._fake_gpu import fake_backend

    if api == "pycuda":
        stand_in_for_pycuda()
    found = {}
    for number in (-1, 1):
        try:
            open_cuda(number, api)
        except CudaError as error:
            found[f"device {number}"] = str(error)
    backend = fake_backend(Gpu(memory_blocks=Blocks(), log=[]))
    cuda = open_cuda(0, api)
    session = EngineSession(engine, cuda=cuda, backend=backend)
    found["gpu"] = str(session.gpu)
    found["scores"] = []
    for values in ([0.5], [0.25], [0.75], [0.5, 0.125], [0.25, 0.5], [1.0]):
        shape = (len(values), 3, 64, 64)
        session.buffer(shape)[:] = np.asarray(values, np.float32)[:, None, None, None]
        found["scores"].append(session.run(shape)[0][:, 0, 4].tolist())
    found["times"] = session.times()
    found["launches"] = driver.fake_launches()
    with cuda.current():
        cuda.begin_capture()
        try:
            cuda.synchronize()
        except CudaError as error:
            found["error"] = str(error)
        cuda.free_graph(cuda.end_capture())
    del cuda
    session.close()
    session.close()
    del session
    import gc

    gc.collect()
    found["live"] = driver.fake_live()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
