"""Other formats to YOLO data sets, split by patient, and the check of a data set."""

from meddet_yolo.data.convert.run import Conversion, convert, convert_command

__all__ = ["Conversion", "convert", "convert_command"]
