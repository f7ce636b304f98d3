"""How much faster is the student than its teachers, and does nmODE² cost it time, in the same engine?

The student and the detectors of the paper's experiment run in ONNX Runtime and OpenVINO, and on a GPU in TensorRT and
TensorRT-RTX, interleaved in one process, from images to boxes by the same runner; the stock model also as Ultralytics
exports it. The weights are random, which changes no network's time. The paper gives 5.08 times the frames per second of
the ResNet-50 teacher for its student.

    python benchmarks/engine_latency.py --threads 2
    python benchmarks/engine_latency.py --backends tensorrt rtx --precision fp16      # on a GPU
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from nmode2_timing import RESULTS, header, write

from meddet_yolo.benchmark import time_candidates, timed_images
from meddet_yolo.benchmark.candidates import Candidate, Skipped, Source, Workshop
from meddet_yolo.trt.gpu_monitor import GpuMonitor
from meddet_yolo.trt.latency import Measurement, ratio
from meddet_yolo.trt.openvino_session import OpenVinoSession
from meddet_yolo.trt.runner import EngineRunner, Runner

MODELS = ("meddet-n.yaml", "yolo26n.yaml", "meddet-gfl-mobilenetv2.yaml", "gfl-resnet50.yaml")
PACKAGES = ("torch", "ultralytics", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
CLASSES = 2  # as in the paper
STOCK = "yolo26n"
STOCK_FORMS = {  # what Ultralytics' exporter makes for a back end, and how its file's name ends
    "onnxruntime": ("onnx", ".onnx"),
    "openvino": ("openvino", "_openvino_model"),
    "tensorrt": ("engine", ".engine"),
}
COMPARED = (  # what, against what, what we want, what the paper has
    ("gfl-resnet50", "meddet-n", "at least 10", ""),
    ("gfl-resnet50", "meddet-gfl-mobilenetv2", "", "5.08"),
    ("meddet-n", "yolo26n", "", ""),
)


def make(workshop: Workshop, args: argparse.Namespace) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Return the candidates that run here, and why the others do not."""
    sources = [Source(Path(m).stem, m, trained=Path(m).suffix == ".pt", nc=CLASSES) for m in args.models]
    candidates, absent = [], []
    for backend in args.backends:
        if why := workshop.unavailable(backend):
            absent.append({"what": backend, "why": why})
            continue
        for source in sources:
            for precision in args.precision:
                try:
                    candidate = workshop.make(source, backend, precision, args.imgsz, args.batch)
                except Skipped as why_not:
                    absent.append({"what": f"{source.name} {backend} {precision}", "why": str(why_not)})
                    continue
                except Exception as error:  # the others go on
                    text = " ".join(str(error).split())[:300]
                    absent.append({"what": f"{source.name} {backend} {precision}", "why": f"failed: {text}"})
                    continue
                candidates.append(candidate)
                if candidate.runner is None:
                    absent.append({"what": candidate.name, "why": candidate.reason})
    return candidates, absent


def add_stock(candidates: list[Candidate], workshop: Workshop, backend: str, args: argparse.Namespace) -> None:
    """Add the stock model as Ultralytics' own exporter makes it, run by the same runner."""
    from ultralytics import YOLO

    form, suffix = STOCK_FORMS[backend]
    half = backend == "tensorrt" and "fp16" in args.precision
    file = workshop.folder / f"{STOCK}-ultralytics-{args.imgsz}-b{args.batch}{suffix}"
    if not file.exists():
        model = Source(STOCK, f"{STOCK}.yaml", trained=False, nc=CLASSES).model()
        model.model.pt_path = str(workshop.folder / f"{file.name.removesuffix(suffix)}.pt")  # names the exported file
        settings = {"imgsz": args.imgsz, "batch": args.batch, "quantize": 16 if half else None}
        made = YOLO.export(model, format=form, device=0 if form == "engine" else "cpu", **settings)  # past our own
        if Path(made) != file:
            Path(made).replace(file)
    source = Source(f"{STOCK} by Ultralytics", str(file))
    if form == "engine":
        candidate = Candidate(source, backend, "fp16" if half else "fp32", args.imgsz, args.batch, file=file)
        candidate.runner = EngineRunner(file, trust=True)  # we have just built it
    elif form == "openvino":
        candidate = Candidate(source, backend, "fp32", args.imgsz, args.batch, file=file)
        candidate.runner = Runner(OpenVinoSession(file, threads=args.threads, precision="f32"))  # as ours is computed
    else:
        candidate = workshop.make(source, backend, "fp32", args.imgsz, args.batch)
    candidates.append(candidate)


def rows(candidates: list[Candidate], measured: dict[str, Measurement], imgsz: int) -> list[dict[str, Any]]:
    """Return a row a candidate: percentiles of the whole and the medians of the parts."""
    table = []
    for candidate in candidates:
        found = measured.get(candidate.name)
        if found is None:
            continue
        total = found.latency()
        medians = found.medians()
        row: dict[str, Any] = {"model": candidate.source.name, "back end": candidate.backend}
        row |= {"precision": candidate.precision, "p50 ms": total.percentiles[50]}
        row |= {f"p{q}": total.percentiles[q] for q in (90, 95, 99)}
        row |= {"lowest round": min(medians), "highest round": max(medians), "calls": total.count}
        row |= {"inference ms": found.latency("inference").percentiles[50]}
        if "compute" in found.parts:
            row |= {"GPU compute ms": found.latency("compute").percentiles[50]}
        row |= {"img/s": found.count * candidate.batch / found.seconds}
        if found.joules is not None:
            row |= {"J/img": found.joules / (found.count * candidate.batch)}
        parameters = candidate.source.parameters
        row |= {"GFLOPs": candidate.source.gflops(imgsz), "M parameters": parameters / 1e6 if parameters else None}
        table.append(row)
    return table


def compared(candidates: list[Candidate], measured: dict[str, Measurement]) -> list[dict[str, Any]]:
    """Return how many times longer one model takes than another in the same back end and precision."""
    table = []
    have = {(c.source.name, c.backend, c.precision): measured[c.name] for c in candidates if c.name in measured}
    groups = dict.fromkeys((b, p) for _, b, p in have)
    for backend, precision in groups:
        most = "at most 1.00" if backend == "tensorrt" else "at most 1.03"
        for slow, fast, target, paper in (*COMPARED, ("meddet-n", f"{STOCK} by Ultralytics", most, "")):
            first, second = have.get((slow, backend, precision)), have.get((fast, backend, precision))
            if first is None or second is None:
                continue
            for part in ("total", "inference", "compute"):
                if part in first.parts:
                    middle, low, high = ratio(first, second, part)
                    row = {"back end": f"{backend} {precision}", "time of": slow, "over that of": fast, "part": part}
                    row |= {"times": middle, "lowest round": low, "highest round": high}
                    table.append({**row, "wanted": target, "paper": paper})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--imgsz", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--files", type=Path, help="keep exported files here, and take those of an earlier run")
    parser.add_argument("--no-stock", action="store_true", help=f"leave out {STOCK} as Ultralytics exports it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result files")
    parser.add_argument("--name", default="engine_latency", help="name of the result files")
    args = parser.parse_args()
    logging.getLogger("ultralytics").setLevel(logging.WARNING)
    torch.set_num_threads(args.threads)
    head = header(PACKAGES, args.threads, "wall")
    monitor = GpuMonitor()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        workshop = Workshop(folder, threads=args.threads)
        candidates, absent = make(workshop, args)
        for backend in args.backends if not args.no_stock else ():
            if backend not in STOCK_FORMS or workshop.unavailable(backend):
                continue
            try:
                add_stock(candidates, workshop, backend, args)
            except Exception as error:  # its exporter fails where TensorRT is missing
                why = " ".join(str(error).split())[:300]
                absent.append({"what": f"{STOCK} by Ultralytics {backend}", "why": why})
        images = timed_images(None, args.batch)
        running = [c for c in candidates if c.runner]
        before = monitor.state()
        energy = monitor.energy if workshop.gpu else None
        measured = time_candidates(running, images, args.iterations, args.seconds, energy, args.rounds)
        if before:
            head |= {"GPU before": before, "GPU after": monitor.state()}
        tables = {}
        if running:
            tables[f"{args.imgsz} px, batch {args.batch}"] = rows(running, measured, args.imgsz)
        if comparison := compared(running, measured):
            tables["Ratios, median of the rounds"] = comparison
        if absent:
            tables["Not measured"] = absent
        for candidate in running:
            candidate.runner and candidate.runner.close()
    write(args.name, "Latency of student and teachers", head, tables, args.out)


if __name__ == "__main__":
    main()
