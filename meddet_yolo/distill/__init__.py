"""Distillation of several teacher detectors into one student: tensors in, named losses out."""

from meddet_yolo.distill.adversary import AdversarialAuxiliaryTeacher
from meddet_yolo.distill.align import AdaptiveFeatureAlignment
from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.distill.distiller import DetectorOutput, MedDetDistiller, match_levels
from meddet_yolo.distill.fusion import ConcatFusion, LearnableWeightedFeatureFusion, SumFusion

__all__ = [
    "AdaptiveFeatureAlignment",
    "AdversarialAuxiliaryTeacher",
    "ConcatFusion",
    "DetectorOutput",
    "DistillConfig",
    "LearnableWeightedFeatureFusion",
    "MedDetDistiller",
    "SumFusion",
    "match_levels",
]
