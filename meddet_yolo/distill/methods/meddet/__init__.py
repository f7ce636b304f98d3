"""MedDet: adaptive alignment, learnable fusion, a guard against collapse and an adversarial auxiliary teacher."""

from meddet_yolo.distill.methods.meddet.method import MedDet
from meddet_yolo.distill.methods.meddet.options import MedDetOptions

__all__ = ["MedDet", "MedDetOptions"]
