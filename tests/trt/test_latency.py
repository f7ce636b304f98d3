from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.trt.gpu_monitor import GpuMonitor
from meddet_yolo.trt.latency import Latency, Measurement, interleave, ratio


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=300))
def test_percentiles_are_ordered_and_of_the_sample(times):
    found = Latency.of(times)
    known = [v for v in found.percentiles.values() if v is not None]
    assert known == sorted(known)
    assert found.minimum == min(times)
    assert all(min(times) <= v <= max(times) for v in known)
    assert found.percentiles[50] == pytest.approx(float(np.median(times)))
    assert found.count == len(times)


@pytest.mark.parametrize(("count", "known"), [(1, [50]), (10, [50, 90]), (20, [50, 90, 95]), (100, [50, 90, 95, 99])])
def test_percentiles_that_so_few_calls_cannot_tell_are_left_open(count, known):
    found = Latency.of(list(range(1, count + 1)))
    assert [q for q, v in found.percentiles.items() if v is not None] == known
    assert set(found.as_dict()) == {"count", "mean_ms", "min_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"}


def test_no_times():
    with pytest.raises(ValueError, match="no times"):
        Latency.of([])


class _Clock:
    """Time that passes only while a candidate works."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def perf_counter(self):
        return self.now

    def takes(self, seconds, name="x"):
        def call():
            self.calls.append(name)
            self.now += seconds
            return {"part": seconds * 1e3 / 2}

        return call


@pytest.fixture
def clock(monkeypatch):
    found = _Clock()
    monkeypatch.setattr("meddet_yolo.trt.latency.time", found)
    return found


def test_candidates_take_turns_and_their_ratio_is_found(clock):
    calls = {"a": clock.takes(0.002, "a"), "b": clock.takes(0.008, "b")}
    found = interleave(calls, iterations=40, seconds=2, rounds=5)
    assert [len(found[n].blocks) for n in "ab"] == [5, 5]
    assert found["a"].count == found["b"].count == 40
    turns = [name for name, _ in groupby(clock.calls)]
    assert len(turns) >= 6  # and not one after the other
    assert ratio(found["b"], found["a"]) == pytest.approx((4, 4, 4))
    assert found["b"].latency().percentiles[50] == pytest.approx(8)
    assert found["b"].latency("part").percentiles[50] == pytest.approx(4)


def test_a_machine_that_slows_down_hits_all_alike(clock):
    """The median of the rounds' ratios is that of the candidates, whatever the machine does meanwhile."""

    def slowing(seconds):
        def call():
            clock.now += seconds * (1 + clock.now)

        return call

    found = interleave({"a": slowing(0.001), "b": slowing(0.003)}, iterations=50, seconds=9, rounds=10)
    assert found["a"].medians()[-1] > 1.2 * found["a"].medians()[0]
    assert ratio(found["b"], found["a"])[0] == pytest.approx(3, rel=0.05)


def test_a_slow_candidate_stops_after_its_seconds_but_not_before_20_calls(clock):
    found = interleave({"slow": clock.takes(0.02), "slower": clock.takes(2)}, iterations=500, seconds=6, rounds=3)
    assert found["slow"].count == 300
    assert found["slow"].seconds == pytest.approx(6)
    assert found["slower"].count == 21


def test_the_first_call_of_a_block_is_not_counted(clock):
    found = interleave({"x": clock.takes(0.5)}, iterations=30, seconds=60, rounds=2)
    assert found["x"].count == 30
    assert len(clock.calls) == 4 + 2 * (1 + 15)  # warming up, then the rounds


def test_energy_is_that_of_the_counted_calls(clock):
    joules = iter(range(0, 1000, 5))
    calls = {"x": clock.takes(0.5), "y": clock.takes(0.5)}
    found = interleave(calls, iterations=4, rounds=3, energy=lambda: next(joules))
    assert found["x"].joules == found["y"].joules == 15
    assert interleave(calls, iterations=4, energy=lambda: None)["x"].joules is None


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"seconds": 0}, {"rounds": 0}])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        interleave({"x": lambda: None}, **wrong)


def test_an_empty_measurement():
    assert interleave({}) == {}
    assert Measurement().parts == [] and Measurement().count == 0


class _Nvml:
    """NVML of a GPU that cannot tell its power."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, gpus=1):
        self.gpus, self.open = gpus, False

    def nvmlInit(self):
        self.open = True

    def nvmlShutdown(self):
        self.open = False

    def nvmlDeviceGetHandleByIndex(self, number):
        if number >= self.gpus:
            raise self.NVMLError("Invalid Argument")
        return number

    def nvmlDeviceGetHandleByPciBusId(self, bus):
        return f"the GPU at {bus}"

    def __getattr__(self, name):
        answers = {
            "nvmlDeviceGetName": lambda h: b"Some GPU",
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetClockInfo": lambda h, kind: 1000 * kind,
            "nvmlDeviceGetMaxClockInfo": lambda h, kind: 3000,
            "nvmlDeviceGetTemperature": lambda h, kind: 41,
            "nvmlDeviceGetTotalEnergyConsumption": lambda h: 12_500,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda h: 4,
            "nvmlDeviceGetMemoryInfo": lambda h: type("M", (), {"used": 7})(),
        }

        def refuse(*_):
            raise self.NVMLError("Not Supported")

        return answers.get(name, refuse)


def test_the_gpus_counters():
    nvml = _Nvml()
    monitor = GpuMonitor(nvml=nvml)
    assert monitor.available and monitor.energy() == 12.5
    assert monitor.state() == {
        "name": "Some GPU", "driver": "580.1", "sm_clock_mhz": 1000, "memory_clock_mhz": 2000, "max_sm_clock_mhz": 3000,
        "temperature_c": 41, "throttle_reasons": "0x4", "memory_used_bytes": 7,
    }  # fmt: skip
    monitor.close()
    assert not nvml.open and monitor.state() == {} and monitor.energy() is None


def test_a_gpu_by_its_bus_id():
    """CUDA and NVML count GPUs differently; the bus id is the same."""
    nvml = _Nvml(gpus=0)
    seen = []
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: seen.append(handle) or 1000
    assert GpuMonitor("0000:06:00.0", nvml=nvml).energy() == 1.0
    assert seen == ["the GPU at 0000:06:00.0"]


def test_no_gpu_and_no_nvml(monkeypatch):
    assert "finds no GPU (Invalid Argument)" in GpuMonitor(3, nvml=_Nvml()).reason
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    monitor = GpuMonitor()
    assert "pip install nvidia-ml-py" in monitor.reason
    assert monitor.state() == {} and monitor.energy() is None
    monitor.close()


def test_the_faked_questions_are_nvmls():
    pynvml = pytest.importorskip("pynvml")
    import inspect
    import re

    asked = set(re.findall(r"nvml\.(nvml\w+|NVML\w+)", inspect.getsource(GpuMonitor).replace("self._nvml", "nvml")))
    assert len(asked) > 10
    assert not [name for name in asked if not hasattr(pynvml, name)]
