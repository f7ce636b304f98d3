"""What a benchmark found: its results, the machine they were measured on, and the Markdown report."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from meddet_yolo.trt.gpu_monitor import GpuMonitor

__all__ = ["Result", "as_markdown", "describe"]

_PACKAGES = ("meddet-yolo", "ultralytics", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "numpy")


@dataclass
class Result:
    """One combination of model, back end, precision, size and batch.

    Attributes:
        status: "measured", "built" (but it cannot run here) or "failed".
        reason: Why it was not measured.
        latency: Of a call with `batch` images, by part: `total` from images to boxes; `preprocess`, `inference` as the
            host sees it, `postprocess`; on a GPU also `to_device`, `compute` and `to_host`, by its own clock.
        images_per_second: Throughput from images to boxes.
        times_fastest: How many times the fastest of the group's total this one takes: median, lowest, highest round.
        joules_per_image: Energy of the whole GPU, idle power included.
        gpu_bytes: GPU memory that it took.
    """

    model: str
    backend: str
    precision: str
    imgsz: int
    batch: int
    status: str = "measured"
    reason: str = ""
    parameters: int | None = None
    gflops: float | None = None
    map50_95: float | None = None
    map50: float | None = None
    latency: dict[str, dict[str, Any]] = field(default_factory=dict)
    images_per_second: float | None = None
    times_fastest: tuple[float, float, float] | None = None
    joules_per_image: float | None = None
    gpu_bytes: int | None = None
    file: str | None = None
    file_bytes: int | None = None
    build_seconds: float | None = None
    cuda_graph: bool | None = None
    audit: Any = None

    def p50(self, part: str = "total") -> float | None:
        """Return the median milliseconds of a part."""
        value = self.latency.get(part, {}).get("p50_ms")
        return None if value is None else float(value)


def describe(monitor: GpuMonitor | None, device: int = 0) -> dict[str, Any]:
    """Return the machine, with the GPU of a number (in CUDA's order), and the versions that were measured with."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((n.split(":", 1)[1].strip() for n in info.read_text().splitlines() if "model name" in n), cpu)
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    found: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "versions": versions}
    if hasattr(os, "getloadavg"):
        found["load_average"] = [round(load, 2) for load in os.getloadavg()]
    if monitor is None:
        return {**found, "gpu": None}
    gpu = monitor.state() or {"name": torch.cuda.get_device_name(device), "nvml": monitor.reason}
    return {**found, "gpu": {**gpu, "cuda": torch.version.cuda}}


_COLUMNS: tuple[tuple[str, Callable[[Result], Any]], ...] = (
    ("model", lambda r: r.model),
    ("back end", lambda r: r.backend),
    ("precision", lambda r: r.precision),
    ("px", lambda r: r.imgsz),
    ("batch", lambda r: r.batch),
    ("params M", lambda r: r.parameters and f"{r.parameters / 1e6:.2f}"),
    ("GFLOPs", lambda r: r.gflops and f"{r.gflops:.1f}"),
    ("mAP50-95", lambda r: None if r.map50_95 is None else f"{r.map50_95:.3f}"),
    ("p50 ms", lambda r: _ms(r.p50())),
    ("p95", lambda r: _ms(r.latency.get("total", {}).get("p95_ms"))),
    ("p99", lambda r: _ms(r.latency.get("total", {}).get("p99_ms"))),
    ("inference", lambda r: _ms(r.p50("inference"))),
    ("GPU compute", lambda r: _ms(r.p50("compute"))),
    ("img/s", lambda r: r.images_per_second and f"{r.images_per_second:.1f}"),
    ("J/img", lambda r: None if r.joules_per_image is None else f"{r.joules_per_image:.3f}"),
    ("times the fastest", lambda r: r.times_fastest and "{:.2f} ({:.2f} to {:.2f})".format(*r.times_fastest)),
    ("MB", lambda r: r.file_bytes and f"{r.file_bytes / 1e6:.1f}"),
)


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def as_markdown(report: dict[str, Any], results: Sequence[Result]) -> str:
    """Return the report: what was measured, on what, what could not be had and why."""
    machine = report["machine"]
    gpu = machine["gpu"]
    lines = ["# Benchmark", "", f"- machine: {machine['cpu']}, {machine['cores']} cores"]
    lines.append(f"- GPU: {', '.join(f'{k} {v}' for k, v in gpu.items()) if gpu else 'none'}")
    lines.append("- versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()))
    lines.append("- settings: " + ", ".join(f"{k}={v}" for k, v in report["settings"].items()))
    lines += [
        "",
        "p50, p95 and p99 are milliseconds from images to boxes; inference is the network alone, copies included.",
    ]
    measured = [r for r in results if r.status == "measured"]
    if measured:
        columns = [(n, f) for n, f in _COLUMNS if any(f(r) is not None for r in measured)]
        lines += ["", "| " + " | ".join(n for n, _ in columns) + " |", "|" + " --- |" * len(columns)]
        for r in sorted(measured, key=lambda r: (r.imgsz, r.batch, r.p50() or 0.0)):
            lines.append("| " + " | ".join("" if f(r) is None else str(f(r)) for _, f in columns) + " |")
    if built := [r for r in results if r.status == "built"]:
        lines += ["", "## Built, not run", ""]
        for r in built:
            size = f"{(r.file_bytes or 0) / 1e6:.1f} MB"
            took = "taken from an earlier run" if r.build_seconds is None else f"built in {r.build_seconds:.1f} s"
            kind = f"{r.model} {r.backend} {r.precision}, {r.imgsz} px, batch {r.batch}"
            lines.append(f"- {kind}: {size}, {took}; {r.reason}")
    if failed := [r for r in results if r.status == "failed"]:
        lines += ["", "## Failed", ""]
        lines += [f"- {r.model} {r.backend} {r.precision}, {r.imgsz} px, batch {r.batch}: {r.reason}" for r in failed]
    if report["skipped"]:
        lines += ["", "## Skipped", ""]
        lines += [f"- {what}: {why}" for what, reasons in report["skipped"].items() for why in reasons]
    return "\n".join(lines) + "\n"
