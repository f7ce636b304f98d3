"""A student's start from the weights of a wider or deeper teacher of its family."""

from meddet_yolo.distill.inherit.run import CHANNELS, InheritReport, best_fit, inherit, recalibrate
from meddet_yolo.distill.inherit.walk import InheritError

__all__ = ["CHANNELS", "InheritError", "InheritReport", "best_fit", "inherit", "recalibrate"]
