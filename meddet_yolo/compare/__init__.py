"""Methods, students, seeds and folds compared by one command, with intervals."""

from meddet_yolo.compare.reproduce import reproduce
from meddet_yolo.compare.run import compare

__all__ = ["compare", "reproduce"]
