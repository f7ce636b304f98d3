"""nmODE² as a function, an activation and a block.

The paper's neural memory ODE ``y' = -y + sin²(y + cos²(y + Wx + b))`` sits before the prediction layers of a detection
head. Open in the paper and decided here: y(0) = 0, t in [0, 1], and Wx + b is a 1x1 convolution with BatchNorm. With
these, y(t_end) is a scalar function of g = Wx + b, so the default "solver" is that function in closed form
(`meddet_yolo.nn.nmode.closed`); the numerical solvers stay as oracle, for a learned t_end and for y(0) != 0.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from meddet_yolo.nn.nmode.closed import packed_table
from meddet_yolo.nn.nmode.eval import evaluate, evaluate_scaled
from meddet_yolo.nn.nmode.start import start_of, start_on_flank

__all__ = ["SOLVERS", "NmODE2", "NmODE2Activation", "integrate_nmode2", "nmode2"]

FIXED_STEP_SOLVERS = ("euler", "midpoint", "rk4")
ADAPTIVE_SOLVERS = ("dopri5", "dopri8")
SOLVERS = ("closed", *FIXED_STEP_SOLVERS, *ADAPTIVE_SOLVERS)


class _ClosedFormFunction(torch.autograd.Function):
    """Derivative number ``order`` of f; saves g alone, its own backward is the next derivative."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, t_end: float, order: int) -> Tensor:
        ctx.save_for_backward(g)
        ctx.t_end, ctx.order = t_end, order
        return evaluate(g, t_end, order)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (g,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second backward is wanted
            return grad_output * _ClosedFormFunction.apply(g, ctx.t_end, ctx.order + 1), None, None
        return evaluate_scaled(g, ctx.t_end, ctx.order + 1, grad_output), None, None


def nmode2(g: Tensor, t_end: float = 1.0) -> Tensor:
    """nmODE² in closed form: y(t_end) of ``y' = -y + sin²(y + cos²(y + g))``, y(0) = 0, element by element.

    The result lies in [0, 1) (in [0, 0.584] for t_end = 1) and is periodic in g with period pi. The error is at most
    1e-6 in float32 for |g| up to 1e4. Differentiable any number of times; the first backward keeps g alone.

    Args:
        g: Floating-point tensor of any shape, layout and device; (B, C, H, W) in a detection head.
        t_end: End of the integration interval, a positive number; a tensor (a learned t_end) is refused.

    Returns:
        Tensor of the shape, dtype and memory format of ``g``. NaN where g is NaN or infinite.

    Raises:
        TypeError: If ``g`` is not a floating-point tensor or ``t_end`` is not a number.
        ValueError: If ``t_end`` is not positive and finite, or too long for the closed form.

    Examples:
        >>> nmode2(torch.tensor([0.0, 1.0, 1.0 + torch.pi]))
        tensor([0.5531, 0.0537, 0.0537])
    """
    _check_state(g)
    if not isinstance(t_end, (int, float)):
        raise TypeError(
            f"Expected t_end to be a number but got {type(t_end).__name__}; "
            "a learned t_end needs integrate_nmode2(g, t_end=...)."
        )
    # The tracer and the ONNX exporter see ordinary differentiable operations; without derivatives, no record is needed.
    if torch.jit.is_tracing() or not (torch.compiler.is_compiling() or _is_differentiated(g)):
        return evaluate(g, float(t_end), 0)
    result: Tensor = _ClosedFormFunction.apply(g, float(t_end), 0)
    return result


def integrate_nmode2(
    g: Tensor,
    t_end: float | Tensor = 1.0,
    *,
    solver: str = "dopri5",
    steps: int = 8,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    adjoint: bool = False,
    y0: Tensor | None = None,
) -> Tensor:
    """nmODE² by numerical integration: the oracle of `nmode2`, and the way to a learned t_end or y(0) != 0.

    Half-precision inputs are integrated in float32.

    Args:
        g: Floating-point tensor of any shape.
        t_end: End of the integration interval, positive; a 0-d tensor receives its gradient.
        solver: "euler", "midpoint", "rk4" (the 3/8 rule, as in torchdiffeq), unrolled in ``steps`` equal steps, or
            torchdiffeq's adaptive "dopri5" and "dopri8".
        steps: Number of steps of a fixed-step solver, >= 1.
        rtol: Relative tolerance of an adaptive solver.
        atol: Absolute tolerance of an adaptive solver.
        adjoint: Whether an adaptive solver takes gradients by the adjoint ODE (constant memory).
        y0: Initial state, broadcastable to ``g``; zero if omitted.

    Returns:
        Tensor of the shape and dtype of ``g``.

    Raises:
        TypeError: If ``g`` is not a floating-point tensor.
        ValueError: If the solver is unknown or closed, ``steps`` < 1, or ``t_end`` is not positive and finite.

    Examples:
        >>> integrate_nmode2(torch.tensor([0.0, 1.0]), solver="rk4", steps=4)
        tensor([0.5531, 0.0537])
    """
    _check_state(g)
    _check_options(solver, steps, t_end)
    if solver == "closed":
        raise ValueError("the closed form is the function nmode2; integrate_nmode2 needs a numerical solver.")
    work = g.float() if g.dtype in (torch.float16, torch.bfloat16) else g
    state = torch.zeros_like(work) if y0 is None else y0.to(work.dtype).expand_as(work)
    if solver in FIXED_STEP_SOLVERS:
        y = _integrate_fixed(work, state, t_end, solver, steps)
    else:
        y = _integrate_adaptive(work, state, t_end, solver, rtol, atol, adjoint)
    return y.to(g.dtype)


class NmODE2Activation(nn.Module):
    """nmODE² on every element, without parameters: g -> y(t_end), or (y(t_end) - shift) * scale if standardised.

    Args:
        t_end: End of the integration interval [0, t_end].
        solver: "closed" (default), or a solver of `integrate_nmode2`.
        steps: Number of steps of a fixed-step solver.
        rtol: Relative tolerance of an adaptive solver.
        atol: Absolute tolerance of an adaptive solver.
        adjoint: Whether an adaptive solver takes gradients by the adjoint ODE.
        standardise: Whether the output is brought to mean 0 and variance 1 for g at the starting point, see
            `meddet_yolo.nn.nmode.start`.

    Attributes:
        shift: Constant subtracted from y; 0 unless standardised.
        scale: Constant that the difference is multiplied with; 1 unless standardised.

    Raises:
        ValueError: If an option is out of its range, or ``t_end`` too long for the closed form.

    Examples:
        >>> import torch
        >>> NmODE2Activation()(torch.zeros(1, 2, 4, 4)).shape
        torch.Size([1, 2, 4, 4])
    """

    def __init__(
        self,
        t_end: float = 1.0,
        solver: str = "closed",
        steps: int = 8,
        rtol: float = 1e-4,
        atol: float = 1e-4,
        adjoint: bool = False,
        standardise: bool = False,
    ) -> None:
        """Check and keep the options; the tables of the closed form are shared and no part of the module."""
        super().__init__()
        _check_options(solver, steps, t_end)
        # As text: a number would be a variable of torch.compile(dynamic=True), to which no table belongs.
        self._t_end = float(t_end).hex()
        self.solver = solver
        self.steps = steps
        self.rtol = rtol
        self.atol = atol
        self.adjoint = adjoint
        if solver == "closed":
            packed_table(self.t_end, 0)  # a t_end that is too long is refused here, not in the first forward pass

        start = start_of(self.t_end) if standardise else None
        self.shift = start.mean if start else 0.0
        self.scale = 1 / start.std if start else 1.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was pickled with ``t_end`` as a number."""
        if "t_end" in state:
            state = {**state, "_t_end": float(state["t_end"]).hex()}
            del state["t_end"]
        super().__setstate__(state)

    @property
    def t_end(self) -> float:
        """End of the integration interval."""
        return float.fromhex(self._t_end)

    def forward(self, g: Tensor) -> Tensor:
        """Map g of any shape (B, ...) to a tensor of the same shape and dtype."""
        y = self._solve(g)
        return y if self.scale == 1.0 else (y - self.shift) * self.scale

    def _solve(self, g: Tensor) -> Tensor:
        if self.solver == "closed":
            return nmode2(g, self.t_end)
        return integrate_nmode2(
            g,
            self.t_end,
            solver=self.solver,
            steps=self.steps,
            rtol=self.rtol,
            atol=self.atol,
            adjoint=self.adjoint,
        )

    def extra_repr(self) -> str:
        """Options that matter for the chosen solver."""
        text = f"t_end={self.t_end:g}, solver={self.solver}"
        if self.solver in FIXED_STEP_SOLVERS:
            text += f", steps={self.steps}"
        elif self.solver in ADAPTIVE_SOLVERS:
            text += f", rtol={self.rtol:g}, atol={self.atol:g}, adjoint={self.adjoint}"
        return text if self.scale == 1.0 else f"{text}, shift={self.shift:.4f}, scale={self.scale:.4f}"

    @torch.no_grad()
    def fold_into(self, conv: nn.Conv2d) -> None:
        """Let the convolution that reads the output take the standardisation over, in place, for inference.

        Args:
            conv: A convolution without padding, with bias; its output stays the same.
        """
        weight = conv.weight.double() * self.scale
        if conv.bias is None or any(conv.padding):
            raise ValueError(f"Expected a convolution with bias and without padding, got {conv}.")
        conv.bias.copy_(conv.bias.double() - self.shift * weight.sum(dim=(1, 2, 3)))
        conv.weight.copy_(weight)
        self.shift, self.scale = 0.0, 1.0


class NmODE2(nn.Module):
    """nmODE² block: g = BatchNorm(1x1 convolution of x), then y(t_end) of the ODE driven by g.

    Args:
        channels: Number of channels, in and out.
        t_end: End of the integration interval [0, t_end].
        solver: As in `NmODE2Activation`.
        norm: Whether BatchNorm follows the convolution; without it the convolution has a bias.
        steps: As in `NmODE2Activation`.
        rtol: As in `NmODE2Activation`.
        atol: As in `NmODE2Activation`.
        adjoint: As in `NmODE2Activation`.
        standardise: As in `NmODE2Activation`; BatchNorm then starts on the flank, see `meddet_yolo.nn.nmode.start`.

    Raises:
        ValueError: If ``channels`` < 1 or an option is out of its range.

    Examples:
        >>> import torch
        >>> NmODE2(16)(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        t_end: float = 1.0,
        solver: str = "closed",
        norm: bool = True,
        *,
        steps: int = 8,
        rtol: float = 1e-4,
        atol: float = 1e-4,
        adjoint: bool = False,
        standardise: bool = False,
    ) -> None:
        """Build the convolution, the optional BatchNorm and the activation."""
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}.")
        self.conv = nn.Conv2d(channels, channels, kernel_size=1, bias=not norm)
        self.bn: nn.Module = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.act = NmODE2Activation(t_end, solver, steps, rtol, atol, adjoint, standardise)
        if standardise and isinstance(self.bn, nn.BatchNorm2d):
            start_on_flank(self.bn, t_end)

    def forward(self, x: Tensor) -> Tensor:
        """Map a feature map of shape (B, C, H, W) to one of the same shape."""
        result: Tensor = self.act(self.bn(self.conv(x)))
        return result

    @torch.no_grad()
    def fuse(self) -> NmODE2:
        """Fold BatchNorm's running statistics into the convolution, in place, for inference; returns self."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = nn.utils.fuse_conv_bn_eval(self.conv.eval(), self.bn.eval())
            self.bn = nn.Identity()
        return self


def _is_differentiated(g: Tensor) -> bool:
    """Whether an operation on g can be part of a derivative, backward or forward."""
    forward = getattr(forward_ad, "_current_level", 0) >= 0
    return forward or (g.requires_grad and torch.is_grad_enabled())


def _check_state(g: Tensor) -> None:
    if not isinstance(g, Tensor) or not g.is_floating_point():
        given = g.dtype if isinstance(g, Tensor) else type(g).__name__
        raise TypeError(f"Expected g to be a floating-point tensor but got {given}; convert it with .float().")


def _check_options(solver: str, steps: int, t_end: float | Tensor) -> None:
    if solver not in SOLVERS:
        nearest = difflib.get_close_matches(str(solver), SOLVERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"Unknown nmODE² solver {solver!r}; did you mean {nearest!r}? Known: {', '.join(SOLVERS)}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if not isinstance(t_end, Tensor) and not (math.isfinite(t_end) and t_end > 0):
        raise ValueError(f"t_end must be a positive finite number, got {t_end}; the state starts at y(0).")


def _slope(y: Tensor, g: Tensor) -> Tensor:
    """Right-hand side of nmODE²: -y + sin²(y + cos²(y + g))."""
    return torch.sin(y + torch.cos(y + g).square()).square() - y


def _euler(y: Tensor, g: Tensor, h: float | Tensor) -> Tensor:
    return y + h * _slope(y, g)


def _midpoint(y: Tensor, g: Tensor, h: float | Tensor) -> Tensor:
    return y + h * _slope(y + h / 2 * _slope(y, g), g)


def _rk4(y: Tensor, g: Tensor, h: float | Tensor) -> Tensor:
    """Kutta's 3/8 rule, the fourth-order method that torchdiffeq calls rk4."""
    k1 = _slope(y, g)
    k2 = _slope(y + h / 3 * k1, g)
    k3 = _slope(y + h * (k2 - k1 / 3), g)
    k4 = _slope(y + h * (k1 - k2 + k3), g)
    return y + h / 8 * (k1 + 3 * (k2 + k3) + k4)


_STEPPERS: dict[str, Callable[[Tensor, Tensor, float | Tensor], Tensor]] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "rk4": _rk4,
}


def _integrate_fixed(g: Tensor, y: Tensor, t_end: float | Tensor, solver: str, steps: int) -> Tensor:
    step = _STEPPERS[solver]
    for _ in range(steps):
        y = step(y, g, t_end / steps)
    return y


def _integrate_adaptive(
    g: Tensor, y: Tensor, t_end: float | Tensor, solver: str, rtol: float, atol: float, adjoint: bool
) -> Tensor:
    from torchdiffeq import odeint, odeint_adjoint

    def slope(_: Tensor, y: Tensor) -> Tensor:
        return _slope(y, g)

    times = torch.stack((g.new_zeros(()), torch.as_tensor(t_end, dtype=g.dtype, device=g.device).reshape(())))
    options: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": solver}
    if adjoint:
        result: Tensor = odeint_adjoint(slope, y, times, adjoint_params=(g,), **options)[-1]
    else:
        result = odeint(slope, y, times, **options)[-1]
    return result
