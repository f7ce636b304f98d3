"""OpenVINO files of a student, behind the parity gate.

What an OpenVINO model computes in is chosen where it is compiled, and on CPUs with bfloat16 that is OpenVINO's own
choice. The sidecar therefore says what the gate has seen, and whoever runs the file here compiles it so
(`meddet_yolo.trt.openvino_session.inference_precision`).
"""

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
    STAGES,
    channels_of,
    check_heads,
    comparison_images,
    default_target,
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

__all__ = ["OPENVINO_PRECISIONS", "export_openvino"]

OPENVINO_PRECISIONS = ("fp32", "fp16", "bf16")

Array = npt.NDArray[np.float32]
LOGGER = logging.getLogger("meddet_yolo.trt")
_SUFFIXES = frozenset({".xml", ".bin", ".yaml", ".json", ".txt"})  # of what stands in an OpenVINO model's folder


def export_openvino(
    model: str | Path | Model,
    out: str | Path | None = None,
    *,
    imgsz: int | Sequence[int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    half: bool = False,
    precision: str | None = None,
    end2end: bool = False,
    nms: bool = False,
    images: Iterable[Array] | None = None,
    options: dict[str, Any] | None = None,
) -> Path:
    """Export a student to OpenVINO and prove that it says what the PyTorch model says.

    Args:
        model: Checkpoint, or a loaded Ultralytics (or `MedDet`) model.
        out: Folder to write; by default `<name>_openvino_model` beside the checkpoint, with the precision in the name
            unless it is fp32; `YOLO` wants such a name.
        imgsz: Input size in pixels, one number or (height, width); by default that of the training, else 640.
        batch: Batch size.
        dynamic: Whether batch and size may change.
        half: Short for ``precision="fp16"``.
        precision: "fp32"; "fp16" stores the weights in half precision and computes in single; "bf16" stores them in
            single and computes in bfloat16, on CPUs that have it.
        end2end: Whether to export the head that needs no NMS.
        nms: Whether to put NMS into the graph.
        images: Images to compare with, as in `export_onnx`.
        options: Further arguments of Ultralytics' exporter.

    Returns:
        The path of the folder.

    Raises:
        ParityError: If the exported model differs from the original; nothing is written.
        ValueError: If arguments exclude one another, this CPU has no bfloat16 to check "bf16" with, or `out` is a file
            or a folder with something else in it.
        ImportError: If openvino is missing.
    """
    if half and precision not in {None, "fp16"}:
        raise ValueError(f"half=True and precision={precision!r} exclude each other")
    precision = precision or ("fp16" if half else "fp32")
    if precision not in OPENVINO_PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown: use one of {', '.join(OPENVINO_PRECISIONS)}")
    check_heads(end2end, nms)
    openvino = require("openvino")
    network = load_model(model)
    size = input_size(network, imgsz)
    pictures = comparison_images(images, size, channels_of(network), precision)
    arguments = {**(options or {}), "nms": nms_argument(end2end, nms), "imgsz": list(size), "batch": batch}
    arguments |= {"dynamic": dynamic, "quantize": 16 if precision == "fp16" else None}
    target = Path(out) if out is not None else default_target(name_of(network), "_openvino_model", precision, "fp32")
    _check_folder(target)
    with tempfile.TemporaryDirectory(prefix="meddet-openvino-") as folder:
        STAGES.info("writing the model of %s at %d x %d", name_of(network), *size)
        exported = ultralytics_export(network, Path(folder), "openvino", arguments)
        xml = next(exported.path.glob("*.xml"))
        rewrite_file(xml, precision == "fp16")
        reference = batched(reference_predictor(network, exported, end2end), batch if nms else None)
        gates = {precision: "f32"} if precision != "bf16" else {"fp32": "f32", "bf16": "bf16"}
        facts: dict[str, Any] = {"precision": precision, "parity": {}, "openvino": openvino.__version__}
        for kind, hint in gates.items():
            STAGES.info("comparing it with PyTorch, computed in %s", hint)
            found = batched(_predictor(xml, hint), None if dynamic else batch)
            what = "PyTorch and OpenVINO" if hint == "f32" else f"PyTorch and OpenVINO in {hint}"
            parity = check_parity(reference, found, np.stack(pictures[:GATE_IMAGES]), TOLERANCES[kind], what)
            facts["parity"][kind] = parity.as_dict()
            facts["inference_precision"] = hint
        part = target.with_name(f".{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(exported.path, part)
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    write_sidecar(next(target.glob("*.bin")), {f"meddet_{k}": v for k, v in facts.items()})
    LOGGER.info("%s: boxes within %.1e of the image's side, scores within %.1e", target, parity.boxes, parity.scores)
    return target


def _predictor(xml: Path, hint: str) -> Any:
    """Return a function from images (B, C, H, W) to a model's output, computed as asked for or not at all."""
    compiled = require("openvino").Core().compile_model(str(xml), "CPU", {"INFERENCE_PRECISION_HINT": hint})
    found = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    if found != hint:
        raise ValueError(
            f"precision=bf16: OpenVINO computes in {found} on this CPU, which seems to have no bfloat16, so the export "
            "cannot be checked; export it on a CPU that has it, or use precision=fp32"
        )

    def predict(images: Array) -> Array:
        return np.asarray(compiled(images)[0])

    return predict


def _check_folder(target: Path) -> None:
    """Refuse to put a model in the place of anything but an older one."""
    if target.is_dir():
        strangers = [f.name for f in target.iterdir() if f.is_dir() or f.suffix not in _SUFFIXES]
        if strangers:
            raise ValueError(
                f"out={target} is a folder with other things in it ({sorted(strangers)[0]}): expected a new folder, or "
                "that of an OpenVINO model, which is replaced"
            )
    elif target.exists():
        raise ValueError(f"out={target} is a file: expected a folder to write, such as {target.stem}_openvino_model")
