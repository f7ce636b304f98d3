"""The MedDet paper's five tables: what each row trains, and the figures that the paper has for it.

Figures: arXiv 2409.00204, on CDH-1848. What a row trains is the paper's as far as its figures and tables tell; what
they leave open is our own decision, and said at the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["METHODS", "PLACED", "STUDENT", "TABLES", "TEACHERS", "PaperRow", "PaperTable"]

TEACHERS = ("gfl-resnet152", "gfl-resnet101", "gfl-resnet50")
STUDENT = "meddet-gfl-mobilenetv2"
_PLAIN = "gfl-mobilenetv2.yaml"

PLACED: Mapping[str, str] = {"nmode-backbone": "Backbone", "nmode-fpn": "FPN"}
"""Methods whose student is the plain one with nmODE² behind the maps of one of its layers."""

_MEDDET: dict[str, Any] = {"distill": "meddet", "guard": "reconstruction", "dist_weight": 1.0, "guard_weight": 1.0}
_KD: dict[str, Any] = {**_MEDDET, "fusion": "sum", "adv_weight": 0.0}
# Of teachers whose fusion is not the subject their sum is learnt from: the paper does not say what it takes there.

METHODS: Mapping[str, Mapping[str, Any]] = {
    "mobilenetv2": {"student": _PLAIN},
    "mobilenetv2-1.4": {"student": "gfl-mobilenetv2-1.4.yaml"},
    "efficientnet-b0": {"student": "gfl-efficientnet-b0.yaml"},
    "efficientnet-b1": {"student": "gfl-efficientnet-b1.yaml"},
    "shufflenet": {"student": "gfl-shufflenet.yaml"},
    "shufflenetv2": {"student": "gfl-shufflenetv2.yaml"},
    "fusion-sum": {**_MEDDET, "fusion": "sum", "adv_weight": 0.1},
    "fusion-concat": {**_MEDDET, "fusion": "concat", "adv_weight": 0.1},
    "kd": {**_KD, "student": _PLAIN},
    "kd-nmode": _KD,
    "kd-nmode-lwff": {**_KD, "fusion": "lwff"},
    "nmode-backbone": _KD,
    "nmode-fpn": _KD,
    "mgd": {"student": _PLAIN},  # rivals teach the student without nmODE², which is a part of MedDet
    "ld": {"student": _PLAIN},
    "fgd": {"student": _PLAIN},
    "MedDet": {**_MEDDET, "fusion": "lwff", "adv_weight": 0.1},
}
"""Every method of a row, as `compare` takes it; the weights are those of `cfg/distill/paper.yaml`."""


@dataclass(frozen=True)
class PaperRow:
    """A row of a table with the paper's figures; None where it gives none.

    Attributes:
        label: What the row is called.
        method: The method of `METHODS`, or the teacher of `TEACHERS`, that stands in it.
        mean_precision: The paper's mAP in per cent; over which overlaps is not known.
        recall: Its recall.
        fps: Its images per second.
        parameters: Its parameters in millions.
        gflops: Its operations in 10^9 at 512x512, which are multiply-adds.
    """

    label: str
    method: str
    mean_precision: float
    recall: float | None = None
    fps: float | None = None
    parameters: float | None = None
    gflops: float | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        title: What it is about.
        rows: Its rows.
    """

    title: str
    rows: tuple[PaperRow, ...]


_WHOLE = PaperRow("MedDet", "MedDet", 85.5, 0.972, 19.8, 10.42, 31.69)

TABLES: Mapping[str, PaperTable] = {
    "students": PaperTable(
        "Teachers, the student and other small detectors",
        (
            PaperRow("GFL ResNet-152 (teacher)", "gfl-resnet152", 86.1, 0.976, 2.3, 66.51, 92.13),
            PaperRow("GFL ResNet-101 (teacher)", "gfl-resnet101", 85.8, 0.974, 2.5, 51.24, 71.20),
            PaperRow("GFL ResNet-50 (teacher)", "gfl-resnet50", 85.6, 0.970, 3.9, 32.32, 50.21),
            PaperRow("GFL MobileNetV2", "mobilenetv2", 80.8, 0.976),
            PaperRow("GFL MobileNetV2-1.4", "mobilenetv2-1.4", 81.0, 0.975),
            PaperRow("GFL EfficientNet-B0", "efficientnet-b0", 80.8, 0.976),
            PaperRow("GFL EfficientNet-B1", "efficientnet-b1", 81.0, 0.975),
            PaperRow("GFL ShuffleNet", "shufflenet", 75.0, 0.964),
            PaperRow("GFL ShuffleNetV2", "shufflenetv2", 77.8, 0.966),
            _WHOLE,
        ),
    ),
    "fusion": PaperTable(
        "Fusion of the teachers",
        (
            PaperRow("sum", "fusion-sum", 85.1),
            PaperRow("concatenation", "fusion-concat", 85.0),
            PaperRow("LWFF", "MedDet", 85.5),
        ),
    ),
    "terms": PaperTable(
        "Parts of the method",
        (
            PaperRow("KD", "kd", 84.2, 0.968),
            PaperRow("KD, nmODE²", "kd-nmode", 85.0, 0.969),
            PaperRow("KD, nmODE², LWFF", "kd-nmode-lwff", 85.3, 0.971),
            PaperRow("KD, nmODE², LWFF, AATM", "MedDet", 85.5, 0.972),
        ),
    ),
    "placement": PaperTable(
        "Place of nmODE²",
        (
            PaperRow("backbone", "nmode-backbone", 83.6),
            PaperRow("FPN", "nmode-fpn", 84.3),
            PaperRow("head", "kd-nmode", 85.0),
        ),
    ),
    "rivals": PaperTable(
        "Methods of distillation",
        (
            PaperRow("MGD", "mgd", 84.2, 0.969),
            PaperRow("LD", "ld", 84.7, 0.970),
            PaperRow("FGD", "fgd", 84.5, 0.970),
            PaperRow("MedDet", "MedDet", 85.5, 0.972),
        ),
    ),
}
"""The tables by the names that `tables=` takes."""
