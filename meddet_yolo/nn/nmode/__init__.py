"""nmODE²: the function in closed form, its activation, its block, and the forms that start as nothing.

Checkpoints refer to the classes by this package's name, whatever file they stand in.
"""

from meddet_yolo.nn.nmode.forms import NmODE2Beside, NmODE2Gate
from meddet_yolo.nn.nmode.layers import NmODE2, NmODE2Activation, nmode2

__all__ = ["NmODE2", "NmODE2Activation", "NmODE2Beside", "NmODE2Gate", "nmode2"]

for _layer in (NmODE2, NmODE2Activation, NmODE2Beside, NmODE2Gate):
    _layer.__module__ = __name__
