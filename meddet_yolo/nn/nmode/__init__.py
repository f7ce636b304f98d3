"""nmODE²: the function in closed form, its activation and its block.

Checkpoints refer to the classes by this package's name, whatever file they stand in.
"""

from meddet_yolo.nn.nmode.layers import NmODE2, NmODE2Activation, nmode2

__all__ = ["NmODE2", "NmODE2Activation", "nmode2"]

for _layer in (NmODE2, NmODE2Activation):
    _layer.__module__ = __name__
