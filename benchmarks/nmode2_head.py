"""What does nmODE² in the head cost a whole detector at inference?

Times a MedDet model against the stock model of the same layout, both untrained and fused, on one image: in PyTorch, in
ONNX Runtime and in OpenVINO, in one process on the CPU. The MedDet model comes in the forms of its head (`inject`),
with factors and gates that have left their start at 0. All are exported by Ultralytics, which shows the cost of nmODE²
alone; the MedDet models also as `meddet export` does it, which is what its users run. The models take turns; the
runtimes come one after another, and ONNX Runtime's threads sleep between runs, because idle threads that spin would
disturb the next. On a machine that does other work too, the ratios within a round are what can be relied on.

    python benchmarks/nmode2_head.py --threads 2
    python benchmarks/nmode2_head.py --threads 2 --nc 2
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from nmode2_timing import CLOCKS, header, interleave, ratio, summary, write
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils import YAML

from meddet_yolo import MedDet
from meddet_yolo.nn.heads import INJECTIONS
from meddet_yolo.nn.nmode.forms import NmODE2Beside, NmODE2Gate
from meddet_yolo.trt.onnx_export import export_onnx
from meddet_yolo.trt.openvino_export import export_openvino

STOCK = {"meddet": "yolo26", "meddet11": "yolo11"}
COARSE = "coarse"  # at P4 and P5 only


def build(name: str, nc: int, form: str | None = None) -> MedDet:
    """Return a model of a layout with another number of classes, and form of its nmODE² head if it has one."""
    layout = tasks.yaml_model_load(name) | {"nc": nc}
    layout.pop("yaml_file")
    if form:
        inject, _, where = form.partition("-")
        layout["head"][-1][3][1] |= {"inject": inject, "levels": [1, 2] if where == COARSE else None}
    YAML.save(name, layout)  # in the working folder; its name carries the scale
    torch.manual_seed(0)
    model = MedDet(name)
    for module in model.model.modules():
        if isinstance(module, NmODE2Beside):
            torch.nn.init.normal_(module.factor, std=0.1)
        elif isinstance(module, NmODE2Gate):
            torch.nn.init.normal_(module.out.weight, std=0.1)
    return model


def pytorch_call(yolo: MedDet, image: np.ndarray) -> Callable[[], np.ndarray]:
    """Return the fused model's forward pass in eager mode."""
    model = yolo.model.eval().fuse(verbose=False)
    tensor = torch.from_numpy(image)

    @torch.inference_mode()
    def call() -> np.ndarray:
        result = model(tensor)
        return (result[0] if isinstance(result, (list, tuple)) else result).numpy()

    return call


def onnx_call(path: str, image: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """Return a run of an ONNX file in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {session.get_inputs()[0].name: image})[0]


def openvino_call(folder: str, image: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """Return a run of an exported folder in OpenVINO."""
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    path = next(Path(folder).glob("*.xml"))
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(image))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor(0).data

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="meddet-n.yaml", help="a MedDet layout")
    parser.add_argument("--nc", type=int, default=80, help="number of classes")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=[f"{form}{where}" for form in INJECTIONS for where in ("", f"-{COARSE}")],
        default=["beside", "gate", "gate-coarse", "act"],
    )
    parser.add_argument("--imgsz", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    family, scale = Path(args.model).stem.split("-")
    head = header(("torch", "ultralytics", "onnxruntime", "openvino"), args.threads, args.clock)
    image = np.random.default_rng(0).random((1, 3, args.imgsz, args.imgsz), dtype=np.float32)
    stock = f"{STOCK[family]}{scale}.yaml"
    calls: dict[str, dict[str, Callable[[], np.ndarray]]] = {"PyTorch": {}, "ONNX Runtime": {}, "OpenVINO": {}}
    with tempfile.TemporaryDirectory() as folder:
        for form in (None, *args.forms):
            place = Path(folder, form or "stock")  # exports are written beside the layout's name
            place.mkdir()
            os.chdir(place)  # one for each, as OpenVINO goes on reading the files that it has loaded
            make = partial(build, args.model if form else stock, args.nc, form)
            name = f"{args.model}, {form}" if form else stock
            onnx = YOLO.export(make(), format="onnx", imgsz=args.imgsz, verbose=False)
            folder_of_xml = YOLO.export(make(), format="openvino", imgsz=args.imgsz, verbose=False)
            torch.set_num_threads(args.threads)  # an export may have changed it
            calls["PyTorch"][name] = pytorch_call(make(), image)
            calls["ONNX Runtime"][name] = onnx_call(onnx, image, args.threads)
            calls["OpenVINO"][name] = openvino_call(folder_of_xml, image, args.threads)
            if form:
                ours = f"{name}, meddet export"
                onnx = export_onnx(make(), f"{form}.onnx", imgsz=args.imgsz)
                folder_of_xml = export_openvino(make(), f"{form}_openvino_model", imgsz=args.imgsz)
                torch.set_num_threads(args.threads)
                calls["ONNX Runtime"][ours] = onnx_call(str(onnx), image, args.threads)
                calls["OpenVINO"][ours] = openvino_call(str(folder_of_xml), image, args.threads)
        times = {runtime: interleave(pair, args.rounds, args.clock) for runtime, pair in calls.items()}
    rows = [
        {
            "runtime": runtime,
            "model": name,
            **summary(times[runtime][name]),
            "times stock": ratio(times[runtime][name], times[runtime][stock]),
        }
        for runtime, pair in calls.items()
        for name in pair
    ]
    caption = f"{args.model} against {stock}, one image of {args.imgsz} px, {args.nc} classes"
    write(f"nmode2_head_{Path(args.model).stem}_{args.nc}", "Cost of nmODE² in a whole detector", head, {caption: rows})


if __name__ == "__main__":
    main()
