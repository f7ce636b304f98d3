"""Distillation of several teacher detectors into one student: tensors in, named terms out."""

from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.distill.levels import match_levels
from meddet_yolo.distill.method import METHODS, DetectorOutput, DetectorSpec, DistillMethod, Opponent, Term
from meddet_yolo.distill.session import DistillSession
from meddet_yolo.distill.teachers import Teacher

__all__ = [
    "METHODS",
    "DetectorOutput",
    "DetectorSpec",
    "DistillConfig",
    "DistillMethod",
    "DistillSession",
    "Opponent",
    "Teacher",
    "Term",
    "match_levels",
]
