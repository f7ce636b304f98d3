"""The paper's detectors: GFL's head and pyramid, its loss and its assignment.

Checkpoints refer to the classes by this package's name, whatever file they stand in.
"""

from meddet_yolo.nn.gfl.head import FPN, ConvGN, GFLDetect, Integral

__all__ = ["FPN", "GFLDetect"]

for _layer in (FPN, ConvGN, Integral, GFLDetect):
    _layer.__module__ = __name__
