"""A picture of what a check has found: labels to be looked at, and images that are the same or look so."""

from __future__ import annotations

import io
import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from meddet_yolo.data.audit import Entry, Finding
from meddet_yolo.data.convert.pixels import read_picture, write_anew
from meddet_yolo.data.convert.write import Planned

__all__ = ["choose", "write_contact_sheet"]

TILES = 48  # findings shown at most
_COLUMNS = 6
_SIDE = 320  # pixels; longer images are reduced to it
_LINE = 34  # letters in a line under a picture
_FLAGGED, _OTHER = "#e4002b", "#35c4f0"  # boxes that a finding is about, and the image's others


def choose(findings: Sequence[Finding], most: int = TILES) -> list[Finding]:
    """Choose what is shown: in turn one of each kind, leaks and labels with two classes before the rest.

    Args:
        findings: All findings.
        most: How many at most.

    Returns:
        The chosen ones, by kind.

    Examples:
        >>> found = [Finding("tiny box", str(i), (i,)) for i in range(5)] + [Finding("leak: x", "", (0, 1))]
        >>> [f"{f.kind} {f.detail}".strip() for f in choose(found, 3)]
        ['leak: x', 'tiny box 0', 'tiny box 1']
    """
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=lambda f: _URGENCY.get(f.kind.split(":")[0], 2)):
        kinds[finding.kind].append(finding)
    turns = [f for f in chain.from_iterable(zip_longest(*kinds.values())) if f is not None]
    order = list(kinds)
    return sorted(turns[:most], key=lambda f: order.index(f.kind))


_URGENCY = {"leak": 0, "object with two classes": 1}


def write_contact_sheet(
    path: Path, findings: Sequence[Finding], entries: Sequence[Entry], planned: Sequence[Planned], max_pixels: int
) -> Path | None:
    """Draw findings, each with its image or first two images and their boxes; those in question are red.

    Without findings, a picture of an earlier check is removed.

    Args:
        path: The PNG.
        findings: What was found.
        entries: The images of the data set, which the findings' places count.
        planned: The same images with their files.
        max_pixels: The most pixels that a picture may have.

    Returns:
        The PNG; None without findings.
    """
    shown = choose(findings)
    if not shown:
        path.unlink(missing_ok=True)
        return None
    from matplotlib.figure import Figure

    rows = math.ceil(len(shown) / _COLUMNS)
    columns = min(_COLUMNS, len(shown))
    figure = Figure((2.6 * columns, 3.2 * rows + 0.4), dpi=110, layout="constrained")
    more = f" ({len(shown)} of {len(findings)})" if len(shown) < len(findings) else ""
    figure.suptitle(f"To be looked at{more}; red: what it is about, blue: other boxes", fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, finding in zip(axes, shown, strict=False):
        _draw(axis, finding, entries, planned, max_pixels)
    for axis in axes:
        axis.axis("off")
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    write_anew(path, content.getvalue())
    return path


def _draw(axis: Any, finding: Finding, entries: Sequence[Entry], planned: Sequence[Planned], max_pixels: int) -> None:
    """Draw a finding: its first two images side by side, boxes, and what it is."""
    from matplotlib.patches import Rectangle

    pictures, shift = [], 0.0
    for number, place in enumerate(finding.entries[:2]):
        try:
            pixels = read_picture(planned[place].item, max_pixels).pixels
        except ValueError:  # gone or changed since it was looked at
            pixels = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        scale = min(1.0, _SIDE / max(pixels.shape[:2]))
        size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        small = cv2.cvtColor(small, cv2.COLOR_GRAY2RGB if small.ndim == 2 else cv2.COLOR_BGR2RGB)
        pictures.append(cv2.copyMakeBorder(small, 0, _SIDE - size[1], 0, 6, cv2.BORDER_CONSTANT, value=(255,) * 3))
        for i, (_, x0, y0, x1, y1) in enumerate(entries[place].boxes):
            flagged = number == 0 and i in finding.boxes
            corner, sides = (x0 * scale + shift, y0 * scale), ((x1 - x0) * scale, (y1 - y0) * scale)
            colour, width = (_FLAGGED, 1.6) if flagged else (_OTHER, 0.5)
            layer = 3 if flagged else 2
            axis.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=width, zorder=layer))
        shift += pictures[-1].shape[1]
    axis.imshow(np.hstack(pictures))
    names = " | ".join(f"{entries[p].split}/{entries[p].name}" for p in finding.entries[:2])
    others = f" and {len(finding.entries) - 2} more" if len(finding.entries) > 2 else ""
    lines = [*textwrap.wrap(finding.kind, _LINE), *textwrap.wrap(finding.detail, _LINE)]
    lines += textwrap.wrap(names + others, _LINE)[:3]
    axis.set_title("\n".join(lines), fontsize=6.5)
