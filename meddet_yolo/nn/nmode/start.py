"""Where nmODE² starts to learn: on the flank of its function, with an output of mean 0 and variance 1.

As a function of g, nmODE² is a bump of period pi: it rises from 0 to its maximum and falls back to 0. Behind a batch
normalisation in its usual state (weight 1, bias 0), g covers both flanks of the bump: on average the slope is almost 0
and the sign of g is lost, and the output varies by a quarter of a SiLU's. A detector then learns markedly slower. So a
normalisation in front of nmODE² starts in the middle of the wider flank, four of its standard deviations wide, and the
output is standardised with constants: an affine map that the next convolution can absorb, so the ODE, and what a
network can express, are the same. Both are our own decisions, found by measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import nn

from meddet_yolo.nn.nmode.closed import closed_form

__all__ = ["Start", "moments", "start_of", "start_on_flank"]


@dataclass(frozen=True)
class Start:
    """Starting point of nmODE² for a t_end.

    Attributes:
        bias: Mean of g: the middle between the maximum of f and its zero at pi/2, in radians.
        weight: Standard deviation of g: a quarter of that distance, in radians.
        mean: Mean of f(g) for normally distributed g.
        std: Its standard deviation.
    """

    bias: float
    weight: float
    mean: float
    std: float


@lru_cache(maxsize=64)
def start_of(t_end: float = 1.0) -> Start:
    """Return the starting point for an integration over [0, t_end].

    Examples:
        >>> start = start_of(1.0)
        >>> round(start.bias, 3), round(start.weight, 3)
        (0.659, 0.456)
    """
    form = closed_form(t_end)
    grid = np.linspace(-math.pi / 2, math.pi / 2, 4097)
    top = float(grid[np.argmax(form(grid))])
    bias, weight = (top + math.pi / 2) / 2, (math.pi / 2 - top) / 4
    return Start(bias, weight, *moments(t_end, bias, weight))


@lru_cache(maxsize=64)
def moments(t_end: float = 1.0, bias: float = 0.0, weight: float = 1.0) -> tuple[float, float]:
    """Return mean and standard deviation of f(g) for normally distributed g.

    Args:
        t_end: End of the integration interval.
        bias: Mean of g, in radians.
        weight: Standard deviation of g, in radians.

    Examples:
        >>> [round(m, 3) for m in moments()]
        [0.295, 0.227]
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(128)
    values = closed_form(t_end)(bias + weight * nodes)
    weights = weights / weights.sum()
    mean = float(weights @ values)
    return mean, math.sqrt(float(weights @ (values - mean) ** 2))


def start_on_flank(norm: nn.BatchNorm2d, t_end: float = 1.0) -> None:
    """Set a normalisation's weight and bias to the starting point of the nmODE² behind it, in place.

    The weight is negative, because f falls on this flank: the output then rises with the input, as that of a SiLU does.

    Args:
        norm: An affine batch normalisation whose output is g.
        t_end: End of the integration interval.

    Examples:
        >>> norm = nn.BatchNorm2d(4)
        >>> start_on_flank(norm)
        >>> round(float(norm.bias[0]), 3), round(float(norm.weight[0]), 3)
        (0.659, -0.456)
    """
    start = start_of(t_end)
    nn.init.constant_(norm.bias, start.bias)
    nn.init.constant_(norm.weight, -start.weight)
