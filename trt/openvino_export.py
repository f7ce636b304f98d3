"""OpenVINO files of a student, behind the parity gate."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from meddet_yolo.trt.engine_file import write_sidecar
from meddet_yolo.trt.graph import require
from meddet_yolo.trt.openvino_graph import rewrite_file
from meddet_yolo.trt.original import (
    GATE_IMAGES,
    channels_of,
    check_heads,
    comparison_images,
    input_size,
    load_model,
    name_of,
    nms_argument,
    reference_predictor,
    ultralytics_export,
)
from meddet_yolo.trt.parity import TOLERANCES, batched, check_parity

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = ["export_openvino"]

Array = npt.NDArray[np.float32]
LOGGER = logging.getLogger("meddet_yolo.trt")


def export_openvino(
    model: str | Path | Model,
    out: str | Path | None = None,
    *,
    imgsz: int | Sequence[int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    half: bool = False,
    end2end: bool = False,
    nms: bool = False,
    images: Iterable[Array] | None = None,
    options: dict[str, Any] | None = None,
) -> Path:
    """Export a student to OpenVINO and prove that it says what the PyTorch model says.

    Args:
        model: Checkpoint, or a loaded Ultralytics (or `MedDet`) model.
        out: Folder to write; by default `<name>_openvino_model` beside the checkpoint; `YOLO` wants such a name.
        imgsz: Input size in pixels, one number or (height, width); by default that of the training, else 640.
        batch: Batch size.
        dynamic: Whether batch and size may change.
        half: Whether to store the weights in half precision.
        end2end: Whether to export the head that needs no NMS.
        nms: Whether to put NMS into the graph.
        images: Images to compare with, as in `export_onnx`.
        options: Further arguments of Ultralytics' exporter.

    Returns:
        The path of the folder.

    Raises:
        ParityError: If the exported model differs from the original; nothing is written.
        ImportError: If openvino is missing.
    """
    check_heads(end2end, nms)
    openvino = require("openvino")
    network = load_model(model)
    size = input_size(network, imgsz)
    precision = "fp16" if half else "fp32"
    pictures = comparison_images(images, size, channels_of(network), precision)
    arguments = {**(options or {}), "nms": nms_argument(end2end, nms), "imgsz": list(size), "batch": batch}
    arguments |= {"dynamic": dynamic, "quantize": 16 if half else None}
    name = Path(name_of(network))
    target = Path(out) if out is not None else name.with_name(f"{name.stem}_openvino_model")
    with tempfile.TemporaryDirectory(prefix="meddet-openvino-") as folder:
        exported = ultralytics_export(network, Path(folder), "openvino", arguments)
        xml = next(exported.path.glob("*.xml"))
        rewrite_file(xml, half)
        compiled = openvino.Core().compile_model(str(xml), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def predict(x: Array) -> Array:
            return np.asarray(compiled(x)[0])

        found = batched(predict, None if dynamic else batch)
        reference = batched(reference_predictor(network, exported, end2end), batch if nms else None)
        parity = check_parity(
            reference, found, np.stack(pictures[:GATE_IMAGES]), TOLERANCES[precision], "PyTorch and OpenVINO"
        )
        facts = {"precision": precision, "parity": {precision: parity.as_dict()}, "openvino": openvino.__version__}
        part = target.with_name(f".{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(exported.path, part)
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    write_sidecar(next(target.glob("*.bin")), {f"meddet_{k}": v for k, v in facts.items()})
    LOGGER.info("%s: boxes within %.1e of the image's side, scores within %.1e", target, parity.boxes, parity.scores)
    return target
