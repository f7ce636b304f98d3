"""Draw docs/nmode2.png: f, f' and the error of the float32 closed form over one period of g.

python docs/nmode2.py
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from meddet_yolo.nn.nmode import nmode2
from meddet_yolo.nn.nmode.closed import closed_form, packed_table

T_END = 1.0


def main() -> None:
    """Evaluate and draw."""
    form = closed_form(T_END)
    g = torch.linspace(-math.pi / 2, math.pi / 2, 40_001).requires_grad_()
    y = nmode2(g, T_END)
    (slope,) = torch.autograd.grad(y.sum(), g)
    x = g.detach().double().numpy()
    errors = (np.abs(y.detach().numpy() - form(x)), np.abs(slope.numpy() - form(x, 1)))
    bounds = (packed_table(T_END, 0).error, packed_table(T_END, 1).error)

    figure, (values, error) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    values.plot(x, y.detach(), label="f(g)", color="tab:blue")
    values.plot(x, slope, label="f'(g)", color="tab:orange")
    values.axhline(0, color="0.7", linewidth=0.8)
    values.set_title(f"nmODE² in closed form, y(0) = 0, t_end = {T_END:g}: one period")
    values.legend()
    for name, line, bound, colour in zip(("f", "f'"), errors, bounds, ("tab:blue", "tab:orange"), strict=True):
        # the largest error among 100 neighbours: single errors are a dense band
        peaks = line[: len(line) // 100 * 100].reshape(-1, 100).max(axis=1)
        error.semilogy(x[50 : len(peaks) * 100 : 100], peaks, color=colour, label=f"error of {name} in float32")
        error.axhline(bound, color=colour, linestyle="--", linewidth=0.8, label=f"stored bound, {bound:.1e}")
    error.set_xlabel("g = Wx + b")
    error.set_ylim(top=4e-5)  # room for the legend
    error.legend(ncols=2, fontsize="small")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
