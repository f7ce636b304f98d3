"""Distillation of several teacher detectors into one student: tensors in, named losses out."""

from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.distill.methods.meddet.adversary import AdversarialAuxiliaryTeacher
from meddet_yolo.distill.methods.meddet.align import AdaptiveFeatureAlignment
from meddet_yolo.distill.methods.meddet.distiller import DetectorOutput, MedDetDistiller, match_levels
from meddet_yolo.distill.methods.meddet.fusion import ConcatFusion, LearnableWeightedFeatureFusion, SumFusion

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
