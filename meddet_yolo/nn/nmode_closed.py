"""Closed form of nmODE²: y(t_end) as a function of g, built once for each t_end.

With y(0) = 0 and a fixed t_end, ``y' = -y + sin²(y + cos²(y + g))`` makes y(t_end) a smooth scalar function f of g with
period pi. It is solved here once in float64 on a grid over one period; its Fourier series is then exact to about 1e-12
and gives every other form: the lookup table of the eager CPU path and the pointwise form for graphs. The paper solves
the ODE for every element; this shortcut is our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float64]
ComplexArray = npt.NDArray[np.complex128]

MAX_HARMONICS = 1024
_SERIES_TOLERANCE = 1e-13


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """f(g) = y(t_end) of nmODE² as a Fourier series in 2g.

    Attributes:
        t_end: End of the integration interval, y(0) = 0.
        coefficients: Complex array of shape (K + 1,): f(g) = Re sum_k coefficients[k] exp(2ikg).
        series_error: Bound on |series - f|: solver error, aliasing and truncation.
    """

    t_end: float
    coefficients: ComplexArray
    series_error: float

    def derivative(self, order: int) -> ComplexArray:
        """Coefficients of the derivative of the given order, shape (K + 1,)."""
        harmonics = np.arange(len(self.coefficients))
        return self.coefficients * (2j * harmonics) ** order

    def evaluate(self, g: FloatArray, order: int = 0) -> FloatArray:
        """Value of f, or of its derivative of the given order, at g in float64."""
        return np.polynomial.polynomial.polyval(np.exp(2j * g), self.derivative(order)).real

    def truncated(self, order: int, tolerance: float) -> ComplexArray:
        """The shortest head of ``derivative(order)`` whose tail sums to at most ``tolerance``."""
        coefficients = self.derivative(order)
        tail = np.cumsum(np.abs(coefficients[::-1]))[::-1]
        return coefficients[: max(1, int(np.count_nonzero(tail > tolerance)))]


def _solve(g: FloatArray, t_end: float, steps: int) -> FloatArray:
    """Classical fourth-order Runge-Kutta from y(0) = 0."""

    def slope(y: FloatArray) -> FloatArray:
        return -y + np.sin(y + np.cos(y + g) ** 2) ** 2

    h = t_end / steps
    y = np.zeros_like(g)
    for _ in range(steps):
        k1 = slope(y)
        k2 = slope(y + h / 2 * k1)
        k3 = slope(y + h / 2 * k2)
        k4 = slope(y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


@lru_cache(maxsize=32)
def closed_form(t_end: float) -> ClosedForm:
    """Build the closed form for ``t_end`` (about 0.1 s at t_end = 1, then cached).

    Args:
        t_end: End of the integration interval, positive and finite.

    Raises:
        ValueError: If ``t_end`` is not positive and finite, or so long that f has no short series any more.
    """
    if not (math.isfinite(t_end) and t_end > 0):
        raise ValueError(f"t_end must be a positive finite number, got {t_end}; the state starts at y(0) = 0.")
    steps = max(64, math.ceil(512 * t_end))
    points = 256
    while True:
        g = np.arange(points) * (np.pi / points)
        coarse, fine = _solve(g, t_end, steps), _solve(g, t_end, 2 * steps)
        solver_error = float(np.abs(fine - coarse).max()) / 15
        spectrum = np.fft.rfft(fine) / points
        tail = float(np.abs(spectrum[points // 4 :]).sum())
        if tail < _SERIES_TOLERANCE * points:
            break
        points *= 2
        if points > 4 * MAX_HARMONICS:
            raise ValueError(
                f"nmODE² with t_end={t_end} needs more than {MAX_HARMONICS} harmonics, too many for the closed form; "
                "use a shorter t_end or solver='dopri5'."
            )
    coefficients = 2 * spectrum[: points // 2]
    coefficients[0] /= 2
    return ClosedForm(t_end, coefficients, solver_error + 4 * tail)


@torch.compiler.assume_constant_result
def _constants(t_end: float, order: int) -> list[tuple[float, float]]:
    """Cosine and sine coefficients of the pointwise form, lowest harmonic first."""
    head = closed_form(t_end).truncated(order, 1e-7 if order == 0 else 1e-6)
    return [(float(c.real), float(-c.imag)) for c in head]


def evaluate(g: Tensor, t_end: float, order: int) -> Tensor:
    """Derivative number ``order`` of f at g, in g's dtype."""
    work = g.float() if g.dtype in (torch.float16, torch.bfloat16) else g
    turns = torch.round(work * (1 / math.pi))
    reduced = ((work - turns * 3.140625) - turns * 9.67502593994140625e-4) - turns * 1.509957990978376432e-7
    cos, sin = torch.cos(2 * reduced), torch.sin(2 * reduced)
    twice = 2 * cos
    constants = _constants(t_end, order)
    even, even_next = torch.zeros_like(cos), torch.zeros_like(cos)
    odd, odd_next = torch.zeros_like(cos), torch.zeros_like(cos)
    for a, b in reversed(constants[1:]):
        even, even_next = a + twice * even - even_next, even
        odd, odd_next = b + twice * odd - odd_next, odd
    return (constants[0][0] + cos * even - even_next + sin * odd).to(g.dtype)
