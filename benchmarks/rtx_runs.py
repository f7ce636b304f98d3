"""Does TensorRT-RTX run on this GPU? Its support lists do not name every generation: try.

Builds the student for this GPU's compute capability, runs it, and compares its boxes with ONNX Runtime's. The last line
of the output is the answer. Exit code 0 whatever the answer is.

    python benchmarks/rtx_runs.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from meddet_yolo.benchmark import timed_images
from meddet_yolo.benchmark.candidates import Source
from meddet_yolo.trt.runner import EngineRunner, OnnxRunner

OPTIONS = {"conf": 0.0, "iou": 1.0, "max_det": 50}  # the best anchors of an untrained network


def answer(imgsz: int) -> str:
    """Return the line."""
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        return f"TensorRT-RTX is not installed here ({error})"
    from meddet_yolo.trt.builder import build_engine
    from meddet_yolo.trt.onnx_export import export_onnx

    title = f"TensorRT-RTX {tensorrt_rtx.__version__}"
    gpu = torch.cuda.is_available()
    capability = "{}.{}".format(*torch.cuda.get_device_capability()) if gpu else "8.6"
    name = f"{torch.cuda.get_device_name()} ({capability})" if gpu else "no GPU"
    source = Source("student", "meddet-n.yaml", trained=False, nc=2)
    image = timed_images(None, 1)[0]
    with tempfile.TemporaryDirectory() as folder:
        try:
            onnx = export_onnx(source.model(), Path(folder) / "student.onnx", imgsz=imgsz)
            engine = build_engine(
                onnx, Path(folder) / "student.engine", runtime="rtx", precision="fp32", compute_capability=capability
            )
        except Exception as error:
            return f"{title} does not build for {name}: {' '.join(str(error).split())}"
        print(f"built for {capability}: {engine.stat().st_size / 1e6:.1f} MB")
        if not gpu:
            return f"{title} builds here; whether it runs needs a GPU"
        try:
            with OnnxRunner(onnx, **OPTIONS) as reference, EngineRunner(engine, **OPTIONS) as runner:
                expected, found = reference(image)[0], runner(image)[0]
        except Exception as error:
            return f"{title} does not run on {name}: {' '.join(str(error).split())}"
    difference = float(np.abs(np.sort(found.confidence) - np.sort(expected.confidence)).max())
    return f"{title} runs on {name}: yes, scores within {difference:.1e} of ONNX Runtime's"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=512)
    print(answer(parser.parse_args().imgsz))


if __name__ == "__main__":
    main()
