"""Adapters: what makes a teacher of a network, one class for each kind, and how a kind's weights are found.

A new kind is one file with a `Network` and one line of `KINDS`; a kind that is named, not a file of
Ultralytics', also has an `open_model` and a line of `NAMED`.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from meddet_yolo.distill.adapters.network import Network

__all__ = ["KINDS", "NAMED", "Network", "adapt", "is_named", "open_named", "weights_file", "with_absolute_file"]

_HERE = "meddet_yolo.distill.adapters"
KINDS = (
    f"{_HERE}.torchvision_detectors:TorchvisionNetwork",
    f"{_HERE}.timm_backbones:TimmNetwork",
    f"{_HERE}.yolo:YOLONetwork",  # last: it says what is wrong with what nothing fits
)
"""Where each adapter's class is."""

NAMED = {"torchvision": f"{_HERE}.torchvision_detectors", "timm": f"{_HERE}.timm_backbones"}
"""Where a kind's `open_model` is, by what stands before the colon in `timm:NAME` or `timm:NAME@FILE`."""


def adapt(model: nn.Module) -> Network:
    """Return what a teacher runs of a model.

    Args:
        model: A detector of Ultralytics, of this package or of torchvision, or a backbone of timm; it is copied.

    Raises:
        TypeError: If there is no adapter for it.
        ValueError: If it cannot be read as a teacher.

    Examples:
        >>> from torchvision.models.detection import retinanet_resnet50_fpn
        >>> adapt(retinanet_resnet50_fpn(weights=None, weights_backbone=None)).strides
        [8.0, 16.0, 32.0, 64.0, 128.0]
    """
    for path in KINDS:
        module, _, name = path.partition(":")
        kind: Any = getattr(import_module(module), name)
        if kind.fits(model):
            break
    network: Network = kind(model)
    return network


def is_named(teacher: str) -> bool:
    """Return whether a teacher is named by its kind, as `timm:NAME` is, and not by a file.

    Raises:
        ValueError: If it looks like it, and there is no such kind.

    Examples:
        >>> is_named("timm:resnet18"), is_named("runs/best.pt")
        (True, False)
    """
    kind, colon, name = teacher.partition(":")
    if not colon or len(kind) < 2 or name[:1] in ("/", "\\") or Path(teacher).exists():  # a drive or an address
        return False
    if kind not in NAMED:
        near = difflib.get_close_matches(kind, NAMED, 1)
        hint = f"did you mean {near[0]}:?" if near else f"valid are {', '.join(f'{k}:' for k in NAMED)}"
        raise ValueError(f"teacher {teacher}: there is no kind {kind!r} of teacher; {hint}")
    return True


def weights_file(teacher: str) -> str:
    """Return the file of a named teacher; nothing where its pretrained weights are meant.

    Examples:
        >>> weights_file("timm:resnet18@a.pth"), weights_file("timm:resnet18")
        ('a.pth', '')
    """
    return teacher.partition("@")[2]


def with_absolute_file(teacher: str) -> str:
    """Return a named teacher with its file's path made absolute.

    Examples:
        >>> with_absolute_file("timm:resnet18")
        'timm:resnet18'
    """
    head, at, file = teacher.partition("@")
    return f"{head}@{Path(file).expanduser().absolute()}" if at else teacher


def open_named(teacher: str) -> nn.Module:
    """Build a named teacher and load its weights; nothing in their file is executed.

    Args:
        teacher: `KIND:NAME` for pretrained weights, which are downloaded where they are not here, or `KIND:NAME@FILE`.

    Raises:
        FileNotFoundError: If the file is not there, or pretrained weights are not here and cannot be fetched.
        ModuleNotFoundError: If the kind's package is not installed.
        ValueError: If there is no such model, or the weights are not its.

    Examples:
        >>> open_named("torchvision:fcos_resnet")
        Traceback (most recent call last):
        ...
        ValueError: teacher torchvision:fcos_resnet: torchvision has no such detector; did you mean fcos_resnet50_fpn?
    """
    kind, _, rest = teacher.partition(":")
    name, at, file = rest.partition("@")
    if at and not Path(file).is_file():
        raise FileNotFoundError(f"teacher {teacher}: there is no file {file or 'given after @'}")
    model: nn.Module = import_module(NAMED[kind]).open_model(name, file)
    return model
