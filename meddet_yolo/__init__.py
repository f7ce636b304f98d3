"""MedDet: multi-teacher feature distillation of Ultralytics YOLO detectors with nmODE² heads."""
