"""What do half precision and quantization cost in accuracy, and which convolutions must stay in floating point?

Each graph is what an engine of that precision is built from, run by ONNX Runtime's CPU, so that it can be measured
without a GPU. Calibration images come from the training split, mAP from the validation split.

    python benchmarks/precision_accuracy.py --models a.pt b.pt --data d.yaml --imgsz 192
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import onnx
from _machine import describe_machine
from ultralytics import YOLO

from meddet_yolo import MedDet
from meddet_yolo.export.calibration import calibration_images
from meddet_yolo.trt import quantize
from meddet_yolo.trt.graph import conv_precisions, decoding_nodes, load_onnx, nmode_nodes
from meddet_yolo.trt.half import to_half
from meddet_yolo.trt.onnx_export import export_onnx

RESULTS = Path(__file__).parent / "results"


def head_only(model: Any) -> set[str]:
    """Sensitive convolutions without those in front of nmODE²."""
    heads = decoding_nodes(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    found = {node.name for node in model.graph.node if node.name in heads and node.op_type == "Conv"}
    for node in model.graph.node:
        if node.name in heads:
            found |= {producers[i].name for i in node.input if i in producers and producers[i].op_type == "Conv"}
    return found


def variants(graph: Any, images: list[Any]) -> dict[str, Any]:
    """Graphs by name; the last two show what each exclusion is good for."""
    ours = quantize.sensitive_convolutions
    made = {
        "fp32": graph,
        "fp16": to_half(graph),
        "int8 (minmax)": quantize.quantize_onnx(graph, images),
        "int8 (entropy)": quantize.quantize_onnx(graph, images, method="entropy"),
        "int8 (percentile)": quantize.quantize_onnx(graph, images, method="percentile"),
        "int8 + fp16 (as in the engine)": to_half(quantize.quantize_onnx(graph, images)),
        "fp8 + fp16 (as in the engine)": to_half(quantize.quantize_onnx(graph, images, precision="fp8")),
    }
    try:
        quantize.sensitive_convolutions = head_only
        if nmode_nodes(graph):
            made["int8, nmODE² inputs quantized too"] = quantize.quantize_onnx(graph, images)
        quantize.sensitive_convolutions = lambda model: set()
        made["int8, everything quantized"] = quantize.quantize_onnx(graph, images)
    finally:
        quantize.sensitive_convolutions = ours
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--images", type=int, default=128, help="calibration images")
    parser.add_argument("--out", default=str(RESULTS / "precision_accuracy"))
    args = parser.parse_args()
    rows = []
    for path in args.models:
        model = MedDet(path)
        images = calibration_images(args.data, (args.imgsz, args.imgsz), count=args.images)
        with tempfile.TemporaryDirectory() as folder:
            graph = load_onnx(export_onnx(model, Path(folder) / "whole.onnx", imgsz=args.imgsz, images=images[:4]))
            for name, made in variants(graph, images).items():
                file = Path(folder) / "variant.onnx"
                onnx.save(made, str(file))
                found = YOLO(str(file), task="detect").val(
                    data=args.data, imgsz=args.imgsz, batch=1, plots=False, verbose=False, workers=0, project=folder
                )
                counts = dict(conv_precisions(made))
                rows.append(
                    {
                        "model": Path(path).stem,
                        "graph": name,
                        "convolutions": counts,
                        "mAP50": round(100 * float(found.box.map50), 2),
                        "mAP50-95": round(100 * float(found.box.map), 2),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    write(rows, args)


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write JSON and Markdown with the command and the machine on top."""
    command = (
        f"python benchmarks/precision_accuracy.py --models {' '.join(Path(m).name for m in args.models)} "
        f"--data {Path(args.data).parent.name}/{Path(args.data).name} --imgsz {args.imgsz} --images {args.images}"
    )
    machine = describe_machine(("onnxruntime", "onnx", "ultralytics"))
    facts = {"command": command, "machine": machine, "rows": rows}
    Path(args.out).with_suffix(".json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    names = list(dict.fromkeys(row["model"] for row in rows))
    lines = ["# Accuracy of each precision", "", f"    {command}", "", f"Machine: {machine}", ""]
    lines += ["mAP50-95 in points, and the difference to the model's own FP32.", ""]
    lines += ["| graph | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for graph in dict.fromkeys(row["graph"] for row in rows):
        cells = []
        for name in names:
            float32 = next(r["mAP50-95"] for r in rows if r["model"] == name and r["graph"] == "fp32")
            value = next((r["mAP50-95"] for r in rows if r["model"] == name and r["graph"] == graph), None)
            cells.append("" if value is None else f"{value:.1f} ({value - float32:+.1f})")
        lines.append(f"| {graph} | " + " | ".join(cells) + " |")
    Path(args.out).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
