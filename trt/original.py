"""The original of an export: a loaded detector, run as a function of images and handed to Ultralytics' exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from meddet_yolo.trt.engine_file import sha256
from meddet_yolo.trt.preprocess import preprocess

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = [
    "Exported",
    "as_pair",
    "channels_of",
    "check_heads",
    "check_target",
    "comparison_images",
    "default_target",
    "input_size",
    "load_model",
    "name_of",
    "nms_argument",
    "reference_predictor",
    "sample_images",
    "source_hash",
    "ultralytics_export",
]

GATE_IMAGES = 4

Array = npt.NDArray[np.float32]
LOGGER = logging.getLogger("meddet_yolo.trt")
STAGES = LOGGER.getChild("stages")  # what is under way, for who waits


@dataclass(frozen=True)
class Exported:
    """What Ultralytics' exporter made: a file or folder, the model as it was traced, and the arguments."""

    path: Path
    model: Any
    args: Any


def load_model(model: str | Path | Model) -> Model:
    """Return a loaded detector; a path is loaded as `YOLO` does."""
    from ultralytics import YOLO

    if isinstance(model, (str, Path)):
        if not Path(model).is_file() and not str(model).endswith((".yaml", ".yml")):
            raise FileNotFoundError(f"model={model}: no such file")
        model = YOLO(str(model))
    if not hasattr(model.model, "model"):
        raise ValueError(f"{name_of(model)} is no PyTorch checkpoint, so it cannot be exported: give the .pt file")
    return model


def name_of(model: Model) -> str:
    """Return the checkpoint's path; a model built from a YAML gets that file's name in the working directory."""
    path = getattr(model.model, "pt_path", None) or getattr(model, "ckpt_path", None)
    return str(path) if path else Path(str(getattr(model, "model_name", None) or "model")).name


def default_target(source: str | Path, suffix: str, precision: str, plain: str) -> Path:
    """Return where an export goes that was given no place: beside its source, each precision under its own name.

    Args:
        source: The checkpoint or ONNX file.
        suffix: How the export's name ends.
        precision: What the export has.
        plain: The precision whose exports have the source's bare name.

    Examples:
        >>> [default_target("best.pt", ".onnx", precision, "fp32").name for precision in ("fp32", "fp16")]
        ['best.onnx', 'best-fp16.onnx']
        >>> default_target("best.pt", "_openvino_model", "bf16", "fp32").name
        'best-bf16_openvino_model'
    """
    path = Path(source)
    return path.with_name(f"{path.stem}{'' if precision == plain else f'-{precision}'}{suffix}")


def check_target(target: Path) -> Path:
    """Refuse to write a file where a folder is.

    Raises:
        ValueError: If there is a folder.
    """
    if target.is_dir():
        raise ValueError(f"out={target} is a folder: expected the file to write, in it or elsewhere")
    return target


def input_size(model: Model, imgsz: int | Sequence[int] | None) -> tuple[int, int]:
    """Input (height, width), rounded up to the stride as Ultralytics does."""
    if imgsz is None:
        trained = getattr(model.model, "args", None) or {}
        imgsz = (trained.get("imgsz") if isinstance(trained, dict) else None) or 640
    given, stride = as_pair(imgsz), int(max(model.model.stride))
    size = (-(-given[0] // stride) * stride, -(-given[1] // stride) * stride)
    if size != given:
        LOGGER.warning("imgsz=%s is no multiple of the stride %d: %s is used", list(given), stride, list(size))
    return size


def as_pair(imgsz: int | Sequence[int]) -> tuple[int, int]:
    """Return an input size as (height, width).

    Raises:
        ValueError: If it is no positive size.

    Examples:
        >>> as_pair(512), as_pair([384, 640])
        ((512, 512), (384, 640))
    """
    sizes = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sizes) not in {1, 2} or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
        raise ValueError(f"imgsz={imgsz} must be a number of pixels or (height, width)")
    return (sizes[0], sizes[-1])


def channels_of(model: Model) -> int:
    """Return how many channels a detector's images have."""
    return int(model.model.yaml.get("channels", 3))


def source_hash(model: Model) -> str | None:
    """Return the SHA-256 of a detector's checkpoint; None for one that was built from a YAML."""
    path = Path(name_of(model))
    return sha256(path) if path.is_file() and path.suffix == ".pt" else None


def check_heads(end2end: bool, nms: bool) -> None:
    """Refuse two ways at once to get selected boxes."""
    if end2end and nms:
        raise ValueError("end2end=True and nms=True exclude each other: an end-to-end head needs no NMS")


def nms_argument(end2end: bool, nms: bool) -> bool | None:
    """Ultralytics' `nms`: True puts NMS into the graph, False takes the head without, None leaves it outside."""
    return True if nms else False if end2end else None


def comparison_images(
    images: Iterable[Array] | None, size: tuple[int, int], channels: int, precision: str
) -> list[Array]:
    """Images to compare with; where the graph is quantized, all of the user's, to calibrate with."""
    given = [] if images is None else [np.asarray(image, np.float32) for image in images]
    if precision in {"int8", "fp8"} and not given:
        raise ValueError(
            f"precision={precision} needs images of your application to calibrate with: give data=<data.yaml>"
        )
    for image in given:
        if image.shape != (channels, *size):
            raise ValueError(f"image of shape {image.shape}: expected (C, H, W) = {(channels, *size)}")
    return given or sample_images(size, channels)


def sample_images(size: tuple[int, int], channels: int = 3) -> list[Array]:
    """Two photographs that Ultralytics ships, letterboxed to (height, width): float32 (C, H, W) in [0, 1]."""
    import cv2
    from ultralytics.utils import ASSETS

    images = [cv2.imread(str(path)) for path in sorted(ASSETS.glob("*.jpg"))]
    found = [image for image in images if image is not None]
    if channels not in {1, 3}:
        return [np.resize(image, (channels, *size)) for image in sample_images(size)]
    return list(preprocess(found, size, channels=channels)[0].astype(np.float32))


def ultralytics_export(model: Model, folder: Path, form: str, arguments: dict[str, Any]) -> Exported:
    """Run Ultralytics' exporter into a folder of its own."""
    from ultralytics.engine.exporter import Exporter

    network = copy(model.model)  # the exporter copies the weights itself; only the path is ours
    # Ultralytics would write the export of a YAML into the working directory.
    network.pt_path = str(folder / Path(name_of(model)).with_suffix(".pt").name)
    if arguments["nms"] is False and getattr(network.model[-1], "one2one_cv2", None) is None:
        raise ValueError(
            f"end2end=True: {type(network.model[-1]).__name__} of {name_of(model)} has no end-to-end head "
            "(YOLO26 and YOLOv10 have one); leave end2end out, NMS then runs after the network"
        )
    options = {k: v for k, v in arguments.items() if v is not None}
    exporter = Exporter(overrides={"mode": "export", "format": form, "device": "cpu", "verbose": False, **options})
    with _quiet():
        path = Path(exporter(model=network))
    return Exported(path, exporter.model, exporter.args)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ultralytics from announcing files that are about to be moved, and PyTorch from warning of its own tracer."""
    from ultralytics.utils import LOGGER as THEIRS

    level = THEIRS.level
    THEIRS.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):  # advice to Ultralytics, not to our user
                warnings.simplefilter("ignore", category)
            yield
    finally:
        THEIRS.setLevel(level)


def reference_predictor(model: Model, exported: Exported, end2end: bool, double: bool = False) -> Any:
    """Return the original as a function of images: neither fused nor in export mode, so that both are tested too."""
    import torch

    if exported.args.nms:  # NMS exists only in the exporter's wrapper
        from ultralytics.engine.exporter import NMSModel

        network: Any = NMSModel(exported.model, exported.args).eval()  # tracing leaves it in training mode
    else:
        network = deepcopy(model.model).cpu().float().eval()
        if hasattr(network, "end2end"):
            network.end2end = end2end
        network.model[-1].max_det = exported.model.model[-1].max_det
    network = network.to(torch.float64 if double else torch.float32)

    def predict(images: Array) -> Array:
        with torch.no_grad():
            result = network(torch.from_numpy(np.ascontiguousarray(images)).to(next(network.parameters()).dtype))
        return np.asarray((result[0] if isinstance(result, (tuple, list)) else result).float().numpy())

    return predict
