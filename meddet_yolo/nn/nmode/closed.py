"""Closed form of nmODE²: y(t_end) as a function f of g, and the tables that evaluate it.

With y(0) = 0 and a fixed t_end, ``y' = -y + sin²(y + cos²(y + g))`` makes y(t_end) a smooth scalar function f of g with
period pi. It is solved here once, in float64 on a grid over one period; its Fourier series is then exact to about 1e-12
and gives f, its derivatives, and the lookup tables that evaluate them fast. The paper solves the ODE for every element;
this shortcut is our own. Everything here is NumPy, so that a build inside a tracer, a compiler or inference mode is the
same as anywhere else; `meddet_yolo.nn.nmode.eval` runs the result in PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

MAX_HARMONICS = 1024
MAX_TABLE_SIZE = 2**17
_TAIL_TOLERANCE = 1e-12
_FLOAT32_EPS = 2.0**-24
# Widest interpolation and quantisation error accepted for f and for f', relative to max(1, max|f|); the promise for
# t_end = 1 is 1e-6 for values and 1e-5 for gradients, rounding in float32 included.
_TABLE_TOLERANCE = (7e-7, 5e-6)


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """f(g) = y(t_end) of nmODE² as a Fourier series in 2g.

    Attributes:
        t_end: End of the integration interval, y(0) = 0.
        coefficients: Complex array of shape (K + 1,): f(g) = Re sum_k coefficients[k] exp(2ikg).
        error: Bound on |series - f|: solver error, aliasing and truncation together.
    """

    t_end: float
    coefficients: npt.NDArray[np.complex128]
    error: float

    def series(self, order: int) -> npt.NDArray[np.complex128]:
        """Fourier coefficients of the derivative of the given order, shape (K + 1,)."""
        return self.coefficients * (2j * np.arange(len(self.coefficients))) ** order

    def __call__(self, g: FloatArray, order: int = 0) -> FloatArray:
        """Value of f, or of its derivative of the given order, at g in float64."""
        return np.asarray(np.polynomial.polynomial.polyval(np.exp(2j * g), self.series(order)).real)

    def maximum(self, order: int) -> float:
        """Bound on max |derivative of the given order|.

        A trigonometric polynomial of degree K sampled at M > 2K equal steps exceeds its largest sample by at most the
        factor 1 / cos(pi K / M) (Ehlich and Zeller).
        """
        degree = len(self.coefficients) - 1
        points = 8 * (degree + 1)
        samples = self(np.arange(points) * (np.pi / points), order)
        return float(np.abs(samples).max() / math.cos(math.pi * degree / points))


@dataclass(frozen=True, eq=False)
class PackedTable:
    """One int32 word per grid point that holds both the value and the slope of a derivative of f.

    With x = g * size / pi, k = round(x) and word = words[k mod size]::

        value = word * value_unit + value_origin
        slope = (word << slope_shift) * slope_unit
        result = value + (x - k) * slope

    so that one load an element suffices. The low bits carry the slope as a signed number, which the shift (of a 32-bit
    integer) separates from the rest; the value is rounded around them.

    Attributes:
        words: int32 array of shape (size,).
        slope_shift: 32 less the number of low bits that carry the slope.
        value_unit: Value of one unit of the word.
        value_origin: Value of the word 0.
        slope_unit: Slope (per grid step) of one unit of the shifted word.
        error: Bound on the absolute error in float32 arithmetic, range reduction included.
    """

    words: npt.NDArray[np.int32]
    slope_shift: int
    value_unit: float
    value_origin: float
    slope_unit: float
    error: float

    @property
    def size(self) -> int:
        """Number of grid points over one period, a power of two."""
        return len(self.words)


@dataclass(frozen=True, eq=False)
class PlainTable:
    """One straight line for each cell of a period, for graphs whose runtimes have no cheap integer masks.

    With u = g / pi - round(g / pi), in [-1/2, 1/2], and j = floor((u + 1/2) * size)::

        result = intercepts[j] + u * slopes[j]

    The lines pass u = 0 and not the middle of their cell, which spares a runtime two operations.

    Attributes:
        size: Number of cells of a period, a power of two.
        intercepts: float32 array of shape (size + 1,); the last cell serves u = 1/2.
        slopes: Slopes per period, float32 array of shape (size + 1,).
        error: Bound on the absolute error in float32 arithmetic for an exact g / pi.
    """

    size: int
    intercepts: npt.NDArray[np.float32]
    slopes: npt.NDArray[np.float32]
    error: float


def _solve(g: FloatArray, t_end: float, steps: int) -> FloatArray:
    """Classical fourth-order Runge-Kutta from y(0) = 0."""

    def slope(y: FloatArray) -> FloatArray:
        return np.asarray(np.sin(y + np.cos(y + g) ** 2) ** 2 - y)

    h = t_end / steps
    y = np.zeros_like(g)
    for _ in range(steps):
        k1 = slope(y)
        k2 = slope(y + h / 2 * k1)
        k3 = slope(y + h / 2 * k2)
        k4 = slope(y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


def _grid(points: int) -> FloatArray:
    return np.arange(points, dtype=np.float64) * (np.pi / points)


@lru_cache(maxsize=32)
def closed_form(t_end: float) -> ClosedForm:
    """Solve nmODE² over one period of g and expand it (0.1 s at t_end = 1, then cached).

    Args:
        t_end: End of the integration interval, positive and finite.

    Returns:
        The series with its error bound.

    Raises:
        ValueError: If ``t_end`` is not positive and finite, or so long that f has no short series any more.

    Examples:
        >>> form = closed_form(1.0)
        >>> form.error < 1e-11, round(float(form(np.array([0.0]))[0]), 6)
        (True, 0.553136)
    """
    if not (math.isfinite(t_end) and t_end > 0):
        raise ValueError(f"t_end must be a positive finite number, got {t_end}; the state starts at y(0) = 0.")
    # Few steps suffice to see how fast the spectrum falls: the numerical solution is as smooth as the true one.
    points = 128
    while _tail(_spectrum(points, t_end, math.ceil(16 * t_end))) > _TAIL_TOLERANCE:
        points *= 2
        if points > 4 * MAX_HARMONICS:
            raise ValueError(
                f"nmODE² with t_end={t_end:g} needs more than {MAX_HARMONICS} harmonics, too many for the closed form; "
                "choose a shorter t_end or solver='dopri5'."
            )
    steps = max(64, math.ceil(512 * t_end))
    spectrum = _spectrum(points, t_end, steps)
    solver_error = float(np.abs(spectrum - _spectrum(points, t_end, steps // 2)).sum()) * 2 / 15
    remainder = np.cumsum(np.abs(spectrum[::-1]))[::-1]
    kept = max(2, int(np.count_nonzero(remainder > _TAIL_TOLERANCE / 10)))
    coefficients = 2 * spectrum[: min(kept, points // 2)]
    coefficients[0] /= 2
    truncation = 2 * float(remainder[len(coefficients)])
    aliasing = 4 * _tail(spectrum)
    return ClosedForm(t_end, coefficients, solver_error + truncation + aliasing)


def _spectrum(points: int, t_end: float, steps: int) -> npt.NDArray[np.complex128]:
    return np.asarray(np.fft.rfft(_solve(_grid(points), t_end, steps)) / points)


def _tail(spectrum: npt.NDArray[np.complex128]) -> float:
    """Sum over the upper half of the harmonics."""
    return float(np.abs(spectrum[len(spectrum) // 2 :]).sum())


@lru_cache(maxsize=64)
def packed_table(t_end: float, order: int) -> PackedTable:
    """The smallest packed table of f (order 0) or f' (order 1) within its tolerance.

    Args:
        t_end: End of the integration interval.
        order: 0 for f, 1 for f'.

    Raises:
        ValueError: If ``t_end`` is invalid, or f too steep for a table of `MAX_TABLE_SIZE` entries.
    """
    form = closed_form(t_end)
    tolerance, rounding = _tolerance(form, order), _rounding_error(form, order)
    size = 1024
    while size <= MAX_TABLE_SIZE:
        interpolation = _interpolation_error(form, order, size)
        if interpolation < tolerance:
            knots = _knots(form, order, size, np.arange(size))
            candidates = (_pack(*knots, slope_bits, interpolation + rounding) for slope_bits in range(8, 14))
            table = min(candidates, key=lambda table: table.error)
            if table.error - rounding <= tolerance:
                return table
        size *= 2
    raise ValueError(_too_steep(t_end))


def _pack(values: FloatArray, slopes: FloatArray, slope_bits: int, error: float) -> PackedTable:
    """Quantise knots into words; ``error`` is what the knots are wrong by before that."""
    levels = 2**slope_bits
    slope_unit = float(np.abs(slopes).max()) / (levels // 2 - 1)
    codes = np.round(slopes / slope_unit)
    # One step of 2**slope_bits stays free at either end, so that rounding around the codes cannot overflow.
    value_unit = float(values.max() - values.min()) / (2**32 - 4 * levels)
    value_origin = float(values.min()) + (2**31 - 2 * levels) * value_unit
    words = np.round(((values - value_origin) / value_unit - codes) / levels) * levels + codes
    quantisation = value_unit * levels / 2 + slope_unit / 4
    shift = 32 - slope_bits
    return PackedTable(
        words=words.astype(np.int32),
        slope_shift=shift,
        value_unit=value_unit,
        value_origin=value_origin,
        slope_unit=slope_unit / 2**shift,
        error=error + quantisation,
    )


@lru_cache(maxsize=64)
def plain_table(t_end: float, order: int) -> PlainTable:
    """The smallest plain table of f (order 0) or f' (order 1) within its tolerance.

    Args:
        t_end: End of the integration interval.
        order: 0 for f, 1 for f'.

    Raises:
        ValueError: If ``t_end`` is invalid, or f too steep for a table of `MAX_TABLE_SIZE` entries.
    """
    form = closed_form(t_end)
    size = 1024
    while _interpolation_error(form, order, size) > _tolerance(form, order):
        size *= 2
        if size > MAX_TABLE_SIZE:
            raise ValueError(_too_steep(t_end))
    middle = (np.arange(size + 1) + 0.5) / size - 0.5
    values, steps = _knots(form, order, size, middle * size)
    slopes = (steps * size).astype(np.float32)
    intercepts = values - middle * slopes  # with the rounded slopes: the line is exact in the middle of its cell
    # Rounding of an intercept, of u * slope, and of their sum; u itself is exact.
    largest = np.abs(intercepts).max() + np.abs(slopes).max() / 2 + form.maximum(order)
    error = _interpolation_error(form, order, size) + _FLOAT32_EPS * float(largest)
    return PlainTable(size, intercepts.astype(np.float32), slopes, error)


def _tolerance(form: ClosedForm, order: int) -> float:
    return _TABLE_TOLERANCE[order] * max(1.0, form.maximum(order))


def _too_steep(t_end: float) -> str:
    return (
        f"nmODE² with t_end={t_end:g} is too steep for a lookup table of {MAX_TABLE_SIZE} entries; "
        "choose a shorter t_end or solver='dopri5'."
    )


def _knots(form: ClosedForm, order: int, size: int, indices: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Values and slopes per grid step for an interpolation that uses the nearest knot.

    Half the largest parabola term moves into the value, which halves the interpolation error.
    """
    step = math.pi / size
    g = indices * step
    return form(g, order) + form(g, order + 2) * step**2 / 16, form(g, order + 1) * step


def _interpolation_error(form: ClosedForm, order: int, size: int) -> float:
    """Bound on the error of `_knots` in exact arithmetic, the error of the series included."""
    step = math.pi / size
    series = form.error * (2 * len(form.coefficients)) ** order
    return series + form.maximum(order + 2) * step**2 / 16 + form.maximum(order + 3) * step**3 / 48


def _rounding_error(form: ClosedForm, order: int) -> float:
    """Bound on what float32 arithmetic adds: a reduced argument of up to pi/2 and a few roundings of the value."""
    return _FLOAT32_EPS * (form.maximum(order + 1) * math.pi / 2 + 4 * form.maximum(order))


def sixteen_bit_values(patterns: FloatArray, t_end: float, order: int) -> FloatArray:
    """Values of f (order 0) or f' (order 1) at numbers that a 16-bit float can take; NaN where not finite.

    f has zeros of order four at odd multiples of pi/2. Near them the series is right in absolute terms only, so f is
    solved there point by point: the rounded result is then within half a unit in the last place everywhere.
    """
    form = closed_form(t_end)
    finite = np.isfinite(patterns)
    result = np.full(patterns.shape, np.nan)
    result[finite] = form(patterns[finite], order)
    if order == 0:
        near_zero = finite & (np.abs(np.cos(np.where(finite, patterns, 0.0))) < 0.2)
        result[near_zero] = _solve(patterns[near_zero], t_end, max(32, math.ceil(256 * t_end)))
    return result
