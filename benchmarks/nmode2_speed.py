"""What does nmODE² cost in closed form, against solving the ODE and against ordinary activations?

Forward, and forward + backward, of nmODE² (closed form, four unrolled RK4 steps, torchdiffeq's rk4 with four steps and
dopri5 at rtol = atol = 1e-3), SiLU and GELU on the same tensor, in turn; eager, and under torch.compile where that
makes sense. In its turn each is called once, with the caches as those before have left them (dopri5 with its dozens of
tensors last); on the small tensor, which fits the caches, a second time with a call before that is not counted. Peak
extra memory is the growth of the process during one call, in units of the input tensor (Linux).

    python benchmarks/nmode2_speed.py --threads 2
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from nmode2_timing import CLOCKS, header, interleave, ratio, summary, write
from torch import Tensor
from torchdiffeq import odeint

from meddet_yolo.nn.nmode.layers import integrate_nmode2, nmode2

SHAPES = ((8, 64, 80, 80), (1, 64, 80, 80))
SLOW = ("RK4, 4 steps, unrolled", "torchdiffeq rk4, 4 steps", "torchdiffeq dopri5, 1e-3")


def torchdiffeq_solve(g: Tensor, **options: Any) -> Tensor:
    """Return y(1) as a user of torchdiffeq would compute it."""

    def slope(_: Tensor, y: Tensor) -> Tensor:
        return -y + torch.sin(y + torch.cos(y + g) ** 2) ** 2

    return odeint(slope, torch.zeros_like(g), torch.tensor([0.0, 1.0]), **options)[-1]


def candidates(compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the functions under test by name."""
    fast: dict[str, Callable[[Tensor], Tensor]] = {
        "GELU": lambda g: F.gelu(g),
        "SiLU": lambda g: F.silu(g),
        "closed form": lambda g: nmode2(g),
    }
    if compiled:
        return {name: torch.compile(function) for name, function in fast.items()}
    solvers = (
        lambda g: integrate_nmode2(g, solver="rk4", steps=4),
        lambda g: torchdiffeq_solve(g, method="rk4", options={"step_size": 0.25}),
        lambda g: torchdiffeq_solve(g, method="dopri5", rtol=1e-3, atol=1e-3),
    )
    return fast | dict(zip(SLOW, solvers, strict=True))


def forward(function: Callable[[Tensor], Tensor], g: Tensor) -> Callable[[], object]:
    """Return a call without autograd."""

    @torch.no_grad()
    def call() -> Tensor:
        return function(g)

    return call


def forward_backward(function: Callable[[Tensor], Tensor], g: Tensor) -> Callable[[], object]:
    """Return a call that ends in the gradient of ``g``."""
    g = g.clone().requires_grad_()
    weight = torch.ones_like(g)

    def call() -> None:
        function(g).backward(weight)
        g.grad = None

    return call


def peak_extra_memory(call: Callable[[], object], unit: int) -> float:
    """Return the growth of the resident set at its peak during one call, in units of ``unit`` bytes (glibc)."""
    libc = ctypes.CDLL(None)
    m_mmap_threshold = -3
    libc.mallopt(m_mmap_threshold, 65536)  # large tensors are mapped one by one, and unmapped when freed
    call()
    libc.malloc_trim(0)  # what is free already must not hide what the call needs
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident now
    before = kilobytes("VmRSS")
    call()
    return (kilobytes("VmHWM") - before) * 1024 / unit


def kilobytes(field: str) -> int:
    """Return a memory field of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--no-compile", action="store_true", help="eager only, where no compiler is installed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    head = header(("torch", "torchdiffeq"), args.threads, args.clock)
    tables: dict[str, list[dict[str, Any]]] = {}
    measured: list[tuple[list[dict[str, Any]], dict[str, Callable[[], object]], int]] = []
    for shape in SHAPES:
        g = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for mode, wrap in (("forward", forward), ("forward + backward", forward_backward)):
            for compiled, settle in ((False, 0), (False, 1), (True, 0)):
                if (compiled and args.no_compile) or (settle and shape[0] > 1):
                    continue
                calls = {name: wrap(function, g) for name, function in candidates(compiled).items()}
                times = interleave(calls, args.rounds, args.clock, settle=settle)
                caption = f"{shape}, {mode}, {'torch.compile' if compiled else 'eager'}"
                caption += ", settled in" if settle else ""
                print(caption, file=sys.stderr, flush=True)
                tables[caption] = [
                    {
                        "function": name,
                        **summary(times[name]),
                        "times GELU": ratio(times[name], times["GELU"]),
                        "times closed form": ratio(times[name], times["closed form"]),
                    }
                    for name in calls
                ]
                if not settle:
                    measured.append((tables[caption], calls, g.numel() * g.element_size()))
    if sys.platform == "linux":  # last, because it slows allocation down
        for rows, calls, unit in measured:
            for row, call in zip(rows, calls.values(), strict=True):
                row["peak extra memory (inputs)"] = peak_extra_memory(call, unit)
    write("nmode2_speed", "Cost of nmODE² in closed form", head, tables)


if __name__ == "__main__":
    main()
