"""What a reader of a data set should know before training on it: counts, box sizes, duplicates, suspicious labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meddet_yolo.data.duplicates import Fingerprint, exact_duplicates, near_duplicates
from meddet_yolo.data.splits import SPLITS
from meddet_yolo.files import write_whole

__all__ = ["Audit", "Entry", "Finding", "audit"]

# Our own decisions; a flagged label is to be looked at, it need not be wrong.
TINY = 4.0  # pixels, of the shorter side
HUGE = 0.5  # share of the image
ELONGATED = 8.0  # longer side / shorter side
SAME = 0.8  # IoU from which two boxes are one object labelled twice
_SHOWN = 20  # files of a kind that the Markdown lists; the JSON has all


@dataclass
class Entry:
    """An image of a data set.

    Attributes:
        name: What the report calls it.
        split: Its part of the split.
        patient: Its patient; None where it is not known.
        size: (width, height) in pixels.
        boxes: (class index, x0, y0, x1, y1) in pixels, clipped to the image.
        clipped: Number of its boxes that reached out of the image by more than a pixel.
        fingerprint: For finding duplicates.
    """

    name: str
    split: str
    patient: str | None
    size: tuple[int, int]
    boxes: list[tuple[int, float, float, float, float]]
    clipped: int
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Finding:
    """Something to be looked at, for a picture of it.

    Args:
        kind: What it is.
        detail: More about it.
        entries: The images it is about, by their places in the sequence of entries.
        boxes: Their boxes that it is about, for the first of the images.
    """

    kind: str
    detail: str
    entries: tuple[int, ...]
    boxes: tuple[int, ...] = ()


@dataclass
class Audit:
    """The findings.

    Attributes:
        counts: For each part: images, patients, images without boxes, and boxes of each class.
        boxes: For each class, quantiles of width, height (pixels) and of the share of the image's area.
        suspicious: Files and details of each kind of suspicious label.
        duplicates: Pairs or groups of images that are the same, or nearly: within a part and across parts.
        leaks: What makes the measured accuracy worth nothing: patients, or the same image, in two parts.
        notes: What else a reader should know.
        left_out: Files that were left out, with reasons.
        findings: Suspicious labels, duplicates and leaks again, each with its images and boxes.
    """

    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    boxes: dict[str, dict[str, Any]] = field(default_factory=dict)
    suspicious: dict[str, list[str]] = field(default_factory=dict)
    duplicates: dict[str, list[str]] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return all that can be read, as plain types."""
        return {key: value for key, value in vars(self).items() if key != "findings"}

    def write(self, folder: Path, title: str) -> None:
        """Write `report.json` and `report.md`."""
        write_whole(folder / "report.json", json.dumps(self.to_dict(), indent=2) + "\n")
        write_whole(folder / "report.md", self.as_markdown(title))

    def as_text(self) -> str:
        """Return a few lines for a terminal."""
        classes = list(self.boxes)
        rows = [["", "images", "patients", "empty", *classes]]
        for part, count in self.counts.items():
            numbers = (count["images"], count["patients"], count["images_without_boxes"])
            rows.append([part, *(_cell(n) for n in numbers), *(str(count["boxes"][name]) for name in classes)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        for leak in self.leaks:
            lines.append(f"leak: {leak}")
        for kind, files in {**self.suspicious, **self.duplicates}.items():
            lines.append(f"{kind}: {len(files)}, for example {files[0]}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(line.rstrip() for line in lines)

    def as_markdown(self, title: str) -> str:
        """Return the whole report."""
        classes = list(self.boxes)
        parts = [f"# {title}", "", "## Counts", ""]
        parts += _table(
            ["part", "images", "patients", "without boxes", *(f"{name} boxes" for name in classes)],
            [
                [part, c["images"], c["patients"], c["images_without_boxes"], *(c["boxes"][n] for n in classes)]
                for part, c in self.counts.items()
            ],
        )
        parts += ["", "## Box sizes", "", "Median, with 5th and 95th percentile; pixels of the images as stored.", ""]
        parts += _table(
            ["class", "boxes", "width", "height", "share of image"],
            [
                [name, size["boxes"], *(_spread(size.get(key)) for key in ("width", "height", "area_share"))]
                for name, size in self.boxes.items()
            ],
        )
        for heading, groups in (
            ("Suspicious labels", self.suspicious),
            ("Duplicates", self.duplicates),
            ("Leaks", {"leaks": self.leaks} if self.leaks else {}),
            ("Left out", {"left out": self.left_out} if self.left_out else {}),
            ("Notes", {"notes": self.notes} if self.notes else {}),
        ):
            parts += ["", f"## {heading}", ""]
            parts += ["None."] if not groups else []
            for kind, files in groups.items():
                more = [f"- and {len(files) - _SHOWN} more (see report.json)"] if len(files) > _SHOWN else []
                parts += [f"**{kind}**: {len(files)}", "", *(f"- {_plain(file)}" for file in files[:_SHOWN]), *more, ""]
        return "\n".join(parts).rstrip() + "\n"


def audit(
    entries: Sequence[Entry], names: Sequence[str], *, notes: Iterable[str] = (), left_out: Iterable[str] = ()
) -> Audit:
    """Look at a data set.

    Args:
        entries: Its images.
        names: Class names by index.
        notes: Remarks to be passed on.
        left_out: Files that were left out, with reasons, to be passed on.

    Examples:
        >>> from meddet_yolo.data.duplicates import fingerprint
        >>> image = np.eye(64, dtype=np.uint8) * 255
        >>> entry = Entry("a.png", "train", "p1", (64, 64), [(0, 1.0, 1.0, 3.0, 9.0)], 0, fingerprint(image))
        >>> print(audit([entry], ["disc"]).as_text())
               images  patients  empty  disc
        train       1         1      0     1
        tiny box: 1, for example a.png: disc 2 x 8 px
    """
    report = Audit(notes=list(notes), left_out=list(left_out))
    parts = [p for p in SPLITS if any(e.split == p for e in entries)]
    for part in parts:
        mine = [e for e in entries if e.split == part]
        count = Counter(box[0] for e in mine for box in e.boxes)
        report.counts[part] = {
            "images": len(mine),
            "patients": len({e.patient for e in mine}) if all(e.patient for e in mine) else None,
            "images_without_boxes": sum(not e.boxes for e in mine),
            "boxes": {name: count[i] for i, name in enumerate(names)},
        }
    for index, name in enumerate(names):
        report.boxes[name] = _sizes(entries, index)
    report.suspicious, report.findings = _suspicious(entries, names)
    for index, name in enumerate(names):
        absent = [part for part in parts if not report.counts[part]["boxes"][name]]
        if absent:
            where = "anywhere" if len(absent) == len(parts) else "in " + ", ".join(absent)
            report.suspicious.setdefault("unused class", []).append(f"{names[index]}: no box {where}")
    _find_duplicates(entries, report)
    return report


def _sizes(entries: Sequence[Entry], index: int) -> dict[str, Any]:
    """Return quantiles of a class's boxes."""
    rows = [
        (x1 - x0, y1 - y0, (x1 - x0) * (y1 - y0) / (e.size[0] * e.size[1]))
        for e in entries
        for cls, x0, y0, x1, y1 in e.boxes
        if cls == index
    ]
    if not rows:
        return {"boxes": 0}
    quantiles = np.percentile(np.array(rows), [5, 50, 95], axis=0).T
    labels = ("width", "height", "area_share")
    spread = {
        key: {"p5": round(float(a), 5), "median": round(float(b), 5), "p95": round(float(c), 5)}
        for key, (a, b, c) in zip(labels, quantiles, strict=True)
    }
    return {"boxes": len(rows), **spread}


def _suspicious(entries: Sequence[Entry], names: Sequence[str]) -> tuple[dict[str, list[str]], list[Finding]]:
    """Return labels to be looked at, by kind, and the same with their boxes."""
    texts: dict[str, list[str]] = {}
    findings: list[Finding] = []

    def flag(kind: str, place: int, detail: str, *boxes: int) -> None:
        texts.setdefault(kind, []).append(f"{entries[place].name}: {detail}")
        findings.append(Finding(kind, detail, (place,), boxes))

    for place, entry in enumerate(entries):
        if entry.clipped:
            at_edge = [i for i, box in enumerate(entry.boxes) if _touches_edge(box, entry.size)]
            flag("box out of the image", place, f"{entry.clipped} clipped", *at_edge)
        for i, (cls, x0, y0, x1, y1) in enumerate(entry.boxes):
            width, height = x1 - x0, y1 - y0
            text = f"{names[cls]} {width:.0f} x {height:.0f} px"
            if min(width, height) < TINY:
                flag("tiny box", place, text, i)
            elif max(width, height) / min(width, height) > ELONGATED:
                flag("elongated box", place, text, i)
            if width * height > HUGE * entry.size[0] * entry.size[1]:
                flag("huge box", place, text, i)
        for i, j in _overlapping(entry.boxes):
            first, second = names[entry.boxes[i][0]], names[entry.boxes[j][0]]
            kind = "object labelled twice" if first == second else "object with two classes"
            flag(kind, place, first if first == second else f"{first} and {second}", i, j)
    empty = [entry.name for entry in entries if not entry.boxes]
    if len(empty) > len(entries) / 2:  # some are useful background; so many are rather labels that were not found
        texts["image without boxes"] = empty
    return texts, findings


def _touches_edge(box: tuple[int, float, float, float, float], size: tuple[int, int]) -> bool:
    """Return whether a box reaches an edge of its image."""
    _, x0, y0, x1, y1 = box
    return min(x0, y0) <= 0 or x1 >= size[0] or y1 >= size[1]


def _overlapping(boxes: Sequence[tuple[int, float, float, float, float]]) -> list[tuple[int, int]]:
    """Return pairs of boxes with an IoU of at least SAME."""
    if len(boxes) < 2:
        return []
    corners = np.array([box[1:] for box in boxes])
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    iou = shared / (area[:, None] + area[None] - shared)
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(iou >= SAME, 1))]


def _find_duplicates(entries: Sequence[Entry], report: Audit) -> None:
    """Note images that are the same or look the same; across parts of the split, the same image is a leak."""
    prints = [entry.fingerprint for entry in entries]
    found: dict[str, list[str]] = {}
    for group in exact_duplicates(prints):
        members = [entries[i] for i in group]
        text = " = ".join(_with_part(e) for e in members)
        leaks = len({e.split for e in members}) > 1
        if leaks:
            report.leaks.append(f"the same image in several parts: {text}")
        kind = (
            f"leak: the same image in {' and '.join(sorted({e.split for e in members}))}" if leaks else "the same image"
        )
        report.findings.append(Finding(kind, "", tuple(group)))
        found.setdefault("the same image", []).append(text)
    within = 0
    for a, b, distance in near_duplicates(prints):
        first, second = entries[a], entries[b]
        if first.patient is not None and first.patient == second.patient and first.split == second.split:
            within += 1  # neighbouring slices
            continue
        across = "across parts" if first.split != second.split else "within a part"
        kind, text = f"images that look the same, {across}", f"{_with_part(first)} ~ {_with_part(second)}"
        found.setdefault(kind, []).append(f"{text} ({distance} of 255 signs differ)")
        report.findings.append(Finding(kind, f"{distance} of 255 signs differ", (a, b)))
    if within:
        report.notes.append(f"{within} pairs of images of the same patient look the same, as neighbouring slices do")
    report.duplicates = found


def _with_part(entry: Entry) -> str:
    return f"{entry.split}/{entry.name}"


def _cell(number: int | None) -> str:
    return "?" if number is None else str(number)


def _spread(size: dict[str, float] | None) -> str:
    return "" if size is None else f"{size['median']:.3g} ({size['p5']:.3g} to {size['p95']:.3g})"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|" else c for c in text)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [["?" if cell is None else _plain(str(cell)) for cell in row] for row in rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]
