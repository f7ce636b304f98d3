"""`meddet benchmark`: latency, throughput and accuracy of models in every back end, measured in one run."""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from meddet_yolo.benchmark.candidates import BACKENDS, Candidate, Skipped, Source, Workshop
from meddet_yolo.benchmark.report import Result, as_markdown, describe
from meddet_yolo.console import as_list
from meddet_yolo.data.shipped import find_data
from meddet_yolo.evaluate.noise import short_names
from meddet_yolo.evaluate.report import read_image, split_images
from meddet_yolo.evaluate.validator import box_scores
from meddet_yolo.export.exporter import on_gpu
from meddet_yolo.export.request import gpu_number
from meddet_yolo.trt.backends import current_gpu
from meddet_yolo.trt.gpu_monitor import GpuMonitor
from meddet_yolo.trt.latency import ITERATIONS, ROUNDS, SECONDS, Measurement, interleave, ratio
from meddet_yolo.trt.runner import Runner

__all__ = ["benchmark", "time_candidates", "timed_images"]

LOGGER = logging.getLogger("ultralytics")


def benchmark(
    model: Sequence[str],
    data: str | None = None,
    imgsz: Sequence[int] | int = 512,
    batch: Sequence[int] | int = 1,
    backends: Sequence[str] | str = tuple(BACKENDS),
    precision: Sequence[str] | str | None = None,
    device: int | str = 0,
    threads: int = 0,
    iterations: int = ITERATIONS,
    seconds: float = SECONDS,
    accuracy: bool = True,
    compute_capability: Any = None,
    end2end: bool = False,
    trust: bool = False,
    out: str | Path = "runs/benchmark",
) -> str:
    """Measure models in several back ends side by side.

    Every model is exported to what each back end needs, with the parity gate in front. All candidates of one size and
    batch are timed in turn, block by block, from images to boxes with the same preprocessing and decoding. What cannot
    be had on this machine is named once, with the reason, and the rest goes on.

    Args:
        model: Checkpoints, model files (`meddet-n.yaml`: random weights, timed only), `.onnx` or `.engine` files.
        data: Data set for mAP, calibration (as an export does it) and the timed images; without it only latencies are
            measured.
        imgsz: Input sizes in pixels, multiples of 32.
        batch: Images a call.
        backends: Of "pytorch", "onnxruntime", "openvino", "tensorrt", "rtx"; all by default.
        precision: Of "fp32", "fp16", "int8", "fp8"; by default fp32, and fp16 where a back end is faster with it.
        device: Number of the GPU; "cpu" leaves it out.
        threads: CPU threads; 0 for all cores.
        iterations: Calls a candidate; it is done after these or `seconds`, but not before 20 calls.
        seconds: Seconds a candidate.
        accuracy: Whether to validate every candidate on `data`.
        compute_capability: GPU generations that RTX engines are built for, such as 8.6; by default this machine's.
        end2end: Whether models that have a head without NMS (YOLO26, v10 and ours on them) run with it.
        trust: Load engines that have no sidecar with their hash, such as those of `yolo export`; an engine is code.
        out: Folder for `benchmark.json`, `benchmark.md`, plots and exported files, which a second run takes again.

    Returns:
        The Markdown report.

    Raises:
        FileNotFoundError: If a model or the data set is missing.
        ValueError: If an argument is wrong, or nothing could be measured or built.
    """
    models, sizes, batches, chosen, precisions = (as_list(v) for v in (model, imgsz, batch, backends, precision))
    _check(models, sizes, batches, chosen, precisions)
    sources = _sources(models)
    data = find_data(data)
    number = gpu_number(device)
    gpu = torch.cuda.is_available() and number is not None
    number = number or 0
    threads = threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    folder = Path(out)
    (folder / "files").mkdir(parents=True, exist_ok=True)
    workshop = Workshop(
        folder / "files",
        device=number,
        threads=threads,
        data=data,
        compute_capability=compute_capability,
        end2end=end2end,
        trust=trust,
    )
    workshop.gpu = gpu
    with on_gpu(number if gpu else None):
        monitor = GpuMonitor((current_gpu() if gpu else None) or number)
    report: dict[str, Any] = {
        "settings": {
            "models": models,
            "data": data,
            "imgsz": sizes,
            "batch": batches,
            "backends": chosen,
            "end2end": end2end,
            "threads": threads,
            "iterations": iterations,
            "seconds": seconds,
        },
        "machine": describe(monitor if gpu else None, number),
        "skipped": {},
        "results": [],
    }
    skipped: dict[str, list[str]] = report["skipped"]
    usable = []
    for backend in chosen:
        if why := workshop.unavailable(backend):
            skipped[backend] = [why]
        else:
            usable.append(backend)
    results: list[Result] = []
    for size in sizes:
        for count in batches:
            candidates = []
            for source in sources:
                own = source.own_precision()
                for backend in usable:
                    for kind in precisions or ((own,) if own else _default_precisions(backend, gpu)):
                        candidates += _make(workshop, source, backend, kind, size, count, results, skipped)
            images = timed_images(data, count)
            measured = time_candidates(
                [c for c in candidates if c.runner], images, iterations, seconds, monitor.energy if gpu else None
            )
            for candidate in candidates:
                results.append(_result(candidate, measured, monitor if gpu else None))
                if candidate.runner:
                    candidate.runner.close()
            if data and accuracy:
                _validate(
                    [(c, r) for c in candidates for r in results if _same(c, r)], data, gpu, number, end2end, skipped
                )
            report["results"] = [asdict(r) for r in results]
            report["machine"]["gpu_after"] = monitor.state() if gpu else {}
            _write(folder, report, results)
    monitor.close()
    if not any(r.status in ("measured", "built") for r in results):
        reasons = [r.reason for r in results if r.reason] + [f"{k}: {w}" for k, ws in skipped.items() for w in ws]
        raise ValueError(f"nothing could be measured: {'; '.join(dict.fromkeys(reasons))}")
    _plot(folder, results)
    return as_markdown(report, results) + f"\nresults: {folder}\n"


# arguments ------------------------------------------------------------------------------------------------------------


def _check(models: list[Any], sizes: list[Any], batches: list[Any], backends: list[Any], precisions: list[Any]) -> None:
    """Refuse what no candidate can be made of."""
    if not models:
        raise ValueError("model= is missing: give checkpoints, model files or engines")
    known = sorted({p for ps in BACKENDS.values() for p in ps})
    for what, given, valid in (("backends", backends, list(BACKENDS)), ("precision", precisions, known)):
        for value in given:
            if value not in valid:
                raise ValueError(f"{what}={value} is unknown: use {', '.join(valid)}")
    for i, size in enumerate(sizes):
        if not str(size).isdigit() or int(size) < 32 or int(size) % 32:
            raise ValueError(f"imgsz={size}: expected multiples of 32")
        sizes[i] = int(size)
    for i, count in enumerate(batches):
        if not str(count).isdigit() or int(count) < 1:
            raise ValueError(f"batch={count}: expected positive whole numbers")
        batches[i] = int(count)


def _sources(models: list[Any]) -> list[Source]:
    """Return the models that were asked for, with short names."""
    paths = [Path(str(m)).expanduser() for m in models]
    for path in paths:
        if path.suffix.lower() not in {".yaml", ".yml"} and not path.exists():
            raise FileNotFoundError(f"model={path}: no such file")
    names = short_names(paths)
    yamls = [p.suffix.lower() in {".yaml", ".yml"} for p in paths]
    return [Source(n, str(p), trained=not y) for n, p, y in zip(names, paths, yamls, strict=True)]


def _default_precisions(backend: str, gpu: bool) -> tuple[str, ...]:
    """Return fp32, and fp16 where it is faster."""
    return ("fp32", "fp16") if backend in ("tensorrt", "rtx") or (backend == "pytorch" and gpu) else ("fp32",)


# candidates -----------------------------------------------------------------------------------------------------------


def _make(
    workshop: Workshop,
    source: Source,
    backend: str,
    precision: str,
    size: int,
    batch: int,
    results: list[Result],
    skipped: dict[str, list[str]],
) -> list[Candidate]:
    """Make a candidate, or note why there is none."""
    started = time.perf_counter()
    LOGGER.info(f"{source.name} {backend} {precision} {size}px b{batch}: making it ready")
    try:
        candidate = workshop.make(source, backend, precision, size, batch)
    except Skipped as why:
        notes = skipped.setdefault(backend, [])
        if str(why) not in notes:
            notes.append(str(why))
        return []
    except Exception as error:  # one model that a back end does not take must not end the run
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        LOGGER.warning(f"{source.name} {backend} {precision} {size}px b{batch} failed: {reason}")
        results.append(Result(source.name, backend, precision, size, batch, "failed", reason))
        return []
    LOGGER.info(f"{candidate.name}: ready after {time.perf_counter() - started:.1f} s {candidate.reason}")
    return [candidate]


def timed_images(data: str | None, count: int) -> list[NDArray[np.uint8]]:
    """Return images to time with: of the validation set, else a photograph that comes with Ultralytics."""
    if data:
        files = split_images(data, "val")
        return [read_image(files[i % len(files)]) for i in range(count)]
    from ultralytics.utils import ASSETS

    return [read_image(ASSETS / "bus.jpg")] * count


# measuring ------------------------------------------------------------------------------------------------------------


def time_candidates(
    candidates: Iterable[Candidate],
    images: list[NDArray[np.uint8]],
    iterations: int = ITERATIONS,
    seconds: float = SECONDS,
    energy: Callable[[], float | None] | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Measurement]:
    """Time candidates in turn on the same images; measurements by the candidates' names."""
    calls = {c.name: _timed_call(c.runner, images) for c in candidates if c.runner is not None}
    LOGGER.info(f"timing {len(calls)} candidates in turn, {seconds:g} s each at most")
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # its threads spin on after a call and would disturb the network's
    try:
        return interleave(calls, iterations=iterations, seconds=seconds, rounds=rounds, energy=energy)
    finally:
        cv2.setNumThreads(cv2_threads)


def _timed_call(runner: Runner, images: list[NDArray[np.uint8]]) -> Callable[[], dict[str, float]]:
    """Return a call of a runner that tells the milliseconds of its parts."""
    times = getattr(runner.session, "times", dict)

    def call() -> dict[str, float]:
        runner(images)
        return {**{part: each * len(images) for part, each in runner.speed.items()}, **times()}

    return call


def _result(candidate: Candidate, measured: dict[str, Measurement], monitor: GpuMonitor | None) -> Result:
    """Return what is known of a candidate but its accuracy."""
    source = candidate.source
    result = Result(source.name, candidate.backend, candidate.precision, candidate.imgsz, candidate.batch)
    result.reason = candidate.reason
    result.status = "measured" if candidate.runner else "built"
    result.gflops, result.parameters = source.gflops(candidate.imgsz), source.parameters
    result.file = str(candidate.file) if candidate.file else None
    result.file_bytes, result.build_seconds = candidate.bytes(), candidate.build_seconds
    result.gpu_bytes, result.audit = candidate.memory_bytes, candidate.facts.get("audit")
    found = measured.get(candidate.name)
    if found is None or candidate.runner is None:
        return result
    result.cuda_graph = getattr(candidate.runner.session, "uses_graph", None)
    result.latency = {part: found.latency(part).as_dict() for part in found.parts}
    for part in found.parts:
        rounds = found.medians(part)
        result.latency[part]["round_medians_ms"] = [min(rounds), statistics.median(rounds), max(rounds)]
    images = found.count * candidate.batch
    result.images_per_second = images / found.seconds
    result.joules_per_image = found.joules / images if found.joules is not None else None
    fastest = min(measured.values(), key=lambda m: statistics.median(m.times()))
    result.times_fastest = ratio(found, fastest)
    return result


def _same(candidate: Candidate, result: Result) -> bool:
    mine = (candidate.source.name, candidate.backend, candidate.precision, candidate.imgsz, candidate.batch)
    return mine == (result.model, result.backend, result.precision, result.imgsz, result.batch)


def _validate(
    pairs: list[tuple[Candidate, Result]],
    data: str,
    gpu: bool,
    device: int,
    end2end: bool,
    skipped: dict[str, list[str]],
) -> None:
    """Fill in the accuracy of every candidate that can run, by the validator on the same file."""
    from meddet_yolo.model import MedDet

    for candidate, result in pairs:
        if candidate.runner is None or not candidate.source.trained:
            continue
        target = candidate.source.path if candidate.file is None else str(candidate.file)
        options: dict[str, Any] = {"data": data, "imgsz": candidate.imgsz, "batch": candidate.batch, "rect": False}
        options |= {"device": device if gpu else "cpu", "plots": False, "verbose": False, "workers": 0}
        options |= {"save_json": False, "project": None, "quantize": 16 if candidate.precision == "fp16" else None}
        if end2end and candidate.backend == "pytorch":
            options["nms"] = False
        if candidate.backend == "openvino" and candidate.file is not None and candidate.file.suffix == ".onnx":
            same = [r for _, r in pairs if r.model == result.model and r.precision == result.precision]
            onnx = next((r for r in same if r.backend == "onnxruntime" and r.map50_95 is not None), None)
            if onnx is not None:  # the very same file, which OpenVINO reads directly
                result.map50_95, result.map50 = onnx.map50_95, onnx.map50
                continue
        LOGGER.info(f"{candidate.name}: validating")
        level = LOGGER.level
        LOGGER.setLevel(logging.WARNING)  # a page for each validation
        try:
            metrics = MedDet(target, task="detect").val(**{k: v for k, v in options.items() if v is not None})
        except Exception as error:
            skipped.setdefault("accuracy", []).append(f"{candidate.name}: {' '.join(str(error).split())[:200]}")
            continue
        finally:
            LOGGER.setLevel(level)
        scores = box_scores(metrics)
        result.map50_95, result.map50 = scores["map50_95"], scores["map50"]


def _write(folder: Path, report: dict[str, Any], results: Sequence[Result]) -> None:
    """Write what is known so far."""
    (folder / "benchmark.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    (folder / "benchmark.md").write_text(as_markdown(report, results))


def _plot(folder: Path, results: Sequence[Result]) -> None:
    """Draw the two plots."""
    from meddet_yolo.benchmark.plots import plot_bubbles, plot_tradeoff

    measured = [r for r in results if r.status == "measured"]
    if measured:
        plot_tradeoff(measured, folder / "tradeoff.png")
        plot_bubbles(measured, folder / "bubbles.png")
