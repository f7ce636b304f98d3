"""What our pictures share: colours, panels and legends."""

from __future__ import annotations

from typing import Any

__all__ = ["PALETTE", "legend_entry", "panels"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
"""Okabe and Ito's colours, told apart by colour-blind readers, the yellow of them darkened."""


def panels(count: int, side: float) -> tuple[Any, list[Any]]:
    """Return a figure with so many panels, at most three in a row."""
    from matplotlib.figure import Figure

    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(side * columns + 0.4, side * 0.82 * rows + 0.9), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.grid(True, which="both", linewidth=0.3, alpha=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes


def legend_entry(label: str, **style: Any) -> Any:
    """Return a line of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **{"linestyle": "", "color": "0.3", "marker": "o", **style})
