"""How large a detector is: parameters and operations at any image size, beside what the MedDet paper gives."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils.torch_utils import get_num_params

from meddet_yolo.console import as_list
from meddet_yolo.registry import resolve_model_yaml

__all__ = ["PAPER", "PAPER_MODELS", "ModelSize", "build_model", "info", "measure_size"]

PAPER: Mapping[str, tuple[float, float]] = {
    "gfl-resnet152": (66.51, 92.13),
    "gfl-resnet101": (51.24, 71.20),
    "gfl-resnet50": (32.32, 50.21),
    "meddet-gfl-mobilenetv2": (10.42, 31.69),
}
"""Parameters in millions and operations in 10^9 that the paper's table gives; 2 classes, 512x512 pixels."""

PAPER_MODELS = (
    *PAPER,
    *("gfl-mobilenetv2", "gfl-mobilenetv2-1.4", "gfl-efficientnet-b0", "gfl-efficientnet-b1"),
    *("gfl-shufflenet", "gfl-shufflenetv2"),
)
"""The detectors of the paper's experiment, by the names of their model files."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What `measure_size` finds.

    Attributes:
        parameters: Number of parameters of the model as it is trained (not fused).
        multiply_adds: Multiply-adds of convolutions and matrix products for one image.
        elementwise: Operations beside them, as the counters of detection toolboxes have them: two for each element
            that is normalised, one for each that is biased, activated or pooled. The MedDet paper's 31.69 G of its
            student are the sum of both.
    """

    parameters: int
    multiply_adds: int
    elementwise: int

    @property
    def gflops(self) -> float:
        """10^9 floating point operations of the multiply-adds, each being two, as Ultralytics counts.

        Ultralytics itself extrapolates from a smaller image, which gives 8 % too much where levels are as coarse as P7.
        """
        return 2 * self.multiply_adds / 1e9


def build_model(model: str | Path, nc: int | None = None) -> nn.Module:
    """Return a detector of a model file without fetching ImageNet weights, or of a checkpoint.

    Args:
        model: A model YAML (a shipped or stock one by name) or a `.pt` checkpoint.
        nc: Number of classes of a YAML's model; by default what the file says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If `nc` is given for a checkpoint that has another number of classes, or is not positive.
        TypeError: If the model is no detector.

    Examples:
        >>> build_model("gfl-resnet50", nc=2).model[-1].nc
        2
    """
    name = str(model)
    if nc is not None and (not isinstance(nc, int) or nc < 1):
        raise ValueError(f"nc must be a whole number of 1 or more, got {nc!r}")
    if not name.endswith((".yaml", ".yml")) and resolve_model_yaml(name) is not None:
        name += ".yaml"
    if name.endswith((".yaml", ".yml")):
        config: dict[str, Any] = tasks.yaml_model_load(name)
        for row in config["backbone"]:
            if row[2] == "Backbone":
                row[3] = [row[3][0], {**(row[3][1] if len(row[3]) > 1 else {}), "pretrained": False}]
        family = tasks.DetectionModel
        if config["head"][-1][2] == "RTDETRDecoder":
            family = tasks.RTDETRDetectionModel
        elif (task := tasks.guess_model_task(config)) not in ("detect", None):
            raise TypeError(f"model={name} is for task {task!r}; expected a detector")
        config["nc"] = nc or config["nc"]
        built: nn.Module = family(config, verbose=False)
        return built
    if not Path(name).expanduser().is_file():
        raise FileNotFoundError(f"model={name}: no such file")
    if not name.endswith(".pt"):
        raise TypeError(f"model={name}: expected a model YAML or a .pt checkpoint; exported models are not counted")
    loaded = YOLO(name)
    if loaded.task != "detect":
        raise TypeError(f"model={name} is for task {loaded.task!r}; expected a detector")
    if nc is not None and nc != len(loaded.names):
        raise ValueError(f"nc={nc}: {name} has {len(loaded.names)} classes; nc= is for model YAMLs")
    return loaded.model


@torch.no_grad()
def measure_size(model: nn.Module, imgsz: int | Sequence[int] = 512) -> ModelSize:
    """Count a detector's parameters, and its operations on one image.

    Args:
        model: An Ultralytics detection model.
        imgsz: Height and width of the image in pixels, multiples of 32; one number for both.

    Returns:
        The counts.

    Examples:
        >>> size = measure_size(build_model("meddet-gfl-mobilenetv2", nc=2), 512)
        >>> round(size.parameters / 1e6, 2), round((size.multiply_adds + size.elementwise) / 1e9, 2)
        (10.42, 31.69)
    """
    sides: Any = [imgsz, imgsz] if isinstance(imgsz, int) else imgsz
    if isinstance(sides, str) or len(sides) != 2 or any(not isinstance(n, int) or n < 32 or n % 32 for n in sides):
        raise ValueError(f"imgsz must be one multiple of 32, or two for height and width, got {imgsz!r}")
    height, width = sides
    yaml = getattr(model, "yaml", {})
    parameter = next(model.parameters())
    channels = int(yaml.get("channels", 3))
    image = torch.zeros(1, channels, height, width, device=parameter.device, dtype=parameter.dtype)
    beside = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal beside
        if isinstance(module, _NORMS):
            beside += 2 * output.numel()
        elif isinstance(module, _POOLS):
            beside += inputs[0].numel()
        elif isinstance(module, nn.Conv2d):
            beside += output.numel() if module.bias is not None else 0
        else:
            beside += output.numel()

    training = {module: module.training for module in model.modules()}
    model.eval()
    hooks = [m.register_forward_hook(count) for m in model.modules() if _is_elementwise(m)]
    try:
        with FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return ModelSize(
        parameters=int(get_num_params(model)),
        multiply_adds=counter.get_total_flops() // 2,
        elementwise=beside,
    )


def _is_elementwise(module: nn.Module) -> bool:
    """Return whether a module works element by element, or adds a bias."""
    kind = type(module)
    activation = kind.__module__ == "torch.nn.modules.activation" or kind.__name__ == "NmODE2Activation"
    return (activation and kind is not nn.MultiheadAttention) or isinstance(module, (*_NORMS, *_POOLS, nn.Conv2d))


def info(model: str | Sequence[str] | None = None, imgsz: int | Sequence[int] = 512, nc: int | None = None) -> str:
    """Tell parameters and operations of detectors; the command `meddet info`.

    Args:
        model: One or several model YAMLs or checkpoints, a list or with commas between; without it the ten detectors of
            the paper's experiment, with the paper's 2 classes.
        imgsz: Height and width in pixels; one number for both.
        nc: Number of classes of models that are built from YAMLs.

    Returns:
        A table with a note on what is counted.

    Examples:
        >>> print(info("gfl-resnet50", imgsz=64, nc=2).splitlines()[2].split()[:3])
        ['gfl-resnet50', '32.26', 'M']
    """
    if model is None:
        model, nc = PAPER_MODELS, nc or 2
    names = [str(name) for name in as_list(model)]
    if not names:
        raise ValueError("model= names no model")
    header = ("model", "parameters", "multiply-adds", "with norms etc.", "GFLOPs", "paper at 512 px")
    rows: list[tuple[str, ...]] = [header]
    for number, name in enumerate(names, start=1):
        if len(names) > 1:
            print(f"[{number}/{len(names)}] measuring {name}", file=sys.stderr, flush=True)
        size = measure_size(build_model(name, nc), imgsz)
        paper = PAPER.get(Path(name).name.removesuffix(".yaml").removesuffix(".yml"))
        rows.append(
            (
                Path(name).name.removesuffix(".yaml"),
                f"{size.parameters / 1e6:.2f} M",
                f"{size.multiply_adds / 1e9:.2f} G",
                f"{(size.multiply_adds + size.elementwise) / 1e9:.2f} G",
                f"{size.gflops:.2f}",
                f"{paper[0]:.2f} M, {paper[1]:.2f} G" if paper else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    side = f"{imgsz}x{imgsz}" if isinstance(imgsz, int) else "x".join(map(str, imgsz))
    lines.append(
        f"One image of {side} pixels. Multiply-adds: convolutions and matrix products, one multiplication with one "
        "addition counted once; with norms etc.: and normalisations, biases, activations and pooling, as the paper's "
        "figures have them. GFLOPs: multiply-adds counted twice, as Ultralytics does."
    )
    return "\n".join(lines)
