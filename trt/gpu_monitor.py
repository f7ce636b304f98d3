"""What the GPU's own counters say beside a measurement, by NVML: energy, clocks, temperature, driver."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

__all__ = ["GpuMonitor"]


class GpuMonitor:
    """NVML's counters of one GPU; without NVML or a GPU every answer is empty.

    Args:
        device: PCI bus id of the GPU, which CUDA and NVML have in common; or its number as NVML counts, by bus.
        nvml: The NVML module; pynvml (`pip install nvidia-ml-py`) where None.

    Attributes:
        reason: Why there is nothing to read; empty where there is.
    """

    def __init__(self, device: int | str = 0, nvml: Any = None) -> None:
        self.reason = ""
        self._nvml: Any = nvml
        self._handle: Any = None
        if nvml is None:
            try:
                import pynvml
            except ModuleNotFoundError:
                self.reason = "NVML's bindings are not installed: pip install nvidia-ml-py"
                return
            self._nvml = pynvml
        try:
            self._nvml.nvmlInit()
            by_bus = isinstance(device, str)
            ask = self._nvml.nvmlDeviceGetHandleByPciBusId if by_bus else self._nvml.nvmlDeviceGetHandleByIndex
            self._handle = ask(device)
        except self._nvml.NVMLError as error:
            self.reason = f"NVML finds no GPU ({error})"

    @property
    def available(self) -> bool:
        """Whether there is a GPU to ask."""
        return self._handle is not None

    def energy(self) -> float | None:
        """Return joules since the driver was loaded; None where the GPU does not count (before Volta)."""
        if self.available:
            with suppress(self._nvml.NVMLError):
                return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        return None

    def state(self) -> dict[str, Any]:
        """Return name, driver, clocks in MHz, temperature in degrees Celsius, power in watts, and memory in bytes.

        What this GPU cannot tell is left out.
        """
        if not self.available:
            return {}
        nvml, handle = self._nvml, self._handle
        questions = {
            "name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
            "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            "throttle_reasons": lambda: hex(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            "memory_used_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
        }
        found: dict[str, Any] = {}
        for key, ask in questions.items():
            with suppress(nvml.NVMLError):
                found[key] = ask()
        return found

    def close(self) -> None:
        """Let NVML go."""
        if self.available:
            self._handle = None
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


def _text(value: Any) -> str:
    """Return a string; older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
