"""Data card and model card: as facts for the page, and as the `README.md` that Hugging Face reads."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from meddet_yolo.evaluate.detections import TruthSet
from meddet_yolo.evaluate.page.provenance import Provenance, hash_of_labels, versions
from meddet_yolo.evaluate.page.words import about_comparison, about_intervals, about_model
from meddet_yolo.evaluate.results import Evaluation

__all__ = ["INTENDED_USE", "LIMITS", "check_folder", "data_card", "readme"]

_TAG = "meddet-yolo"

INTENDED_USE = (
    "Research on the detection of findings in images: comparing detectors, methods and data. It is no medical device "
    "and is not validated for diagnosis, treatment or any other clinical use. Nothing it outputs may be the basis of a "
    "decision about a patient."
)
LIMITS = (
    "What is measured here holds for images like those of the data card: other scanners, sequences, body parts, "
    "patients and label habits may give other results, and have to be measured.",
    "Labelled boxes are taken as the truth; what the labels miss counts as a false alarm, what they invent as a miss.",
    "A confidence is no probability of a finding unless the reliability diagram says so.",
    "A threshold that was chosen on the images it is judged on looks better there than it is.",
)


def check_folder(folder: Path) -> None:
    """Refuse a folder whose `README.md` is not a model card of ours, so that none is lost.

    Raises:
        ValueError: There is such a file.
    """
    file = folder / "README.md"
    if not file.is_file():
        return
    before, _, rest = file.read_text(encoding="utf-8", errors="replace").partition("---\n")
    if before or _TAG not in rest.partition("---\n")[0]:  # our metadata comes first
        raise ValueError(f"out={folder} has a README.md of its own, which the model card would overwrite: give another")


def data_card(result: Evaluation, truth: TruthSet, name: str) -> dict[str, str]:
    """Return what is known of the images that models are judged on.

    Args:
        result: The evaluation.
        truth: The labelled images.
        name: The data set's public name.
    """
    sizes = np.array([image.size for image in truth.images])
    (low_h, low_w), (high_h, high_w) = sizes.min(0).tolist(), sizes.max(0).tolist()
    empty = sum(not len(image) for image in truth.images)
    spaced = sum(image.spacing is not None for image in truth.images)
    sides = np.concatenate([(i.boxes[:, 2:] - i.boxes[:, :2]).prod(1) ** 0.5 for i in truth.images])
    card = {
        "data set": name,
        "split": str(result.settings.get("split", "")),
        "images": f"{result.images}, of which {empty} without a labelled box",
        "patients": "unknown" if result.patients is None else str(result.patients),
        "labelled boxes": ", ".join(f"{count} {cls}" for cls, count in result.boxes.items()),
        "image size": f"{low_w}×{low_h}" + (f" to {high_w}×{high_h}" if (low_h, low_w) != (high_h, high_w) else ""),
    }
    card["image size"] += " pixels (width × height)"
    if len(sides):
        card["box size"] = (
            f"median {np.median(sides):.0f} pixels, {sides.min():.0f} to {sides.max():.0f} (root of the area)"
        )
    card["pixel spacing"] = f"known of {spaced} images" if spaced else "unknown"
    card["SHA-256 of the labels"] = hash_of_labels(truth)
    return card


def readme(
    result: Evaluation, origin: Provenance, data: dict[str, str], notes: Sequence[str], *, page: str = "report.html"
) -> str:
    """Return the model card of the first model as Markdown with Hugging Face's metadata.

    Args:
        result: The evaluation.
        origin: Where the model comes from.
        data: The data card.
        notes: What a reader should know, fit to be made public.
        page: Name of the page beside it.
    """
    model = result.models[0]
    parts = [
        f"---\n{yaml.safe_dump(_metadata(result, origin, data), sort_keys=False, allow_unicode=True)}---",
        f"# {_text(model.name)}",
        f"> **For research only.** {INTENDED_USE}",
        f"An object detector for {', '.join(map(_text, result.names))}. All measures, curves and cases are on the page "
        f"[{page}]({page}).",
        "## Results",
        _list(about_model(model)),
        _table(("score", "value"), [(key, str(model.scores[key])) for key in result.headline if key in model.scores]),
        _text(about_intervals(result)),
        *(f"**Note:** {_text(note)}." for note in notes),
        *(f"**Requirement not met:** {_text(unmet)}." for unmet in result.unmet),
    ]
    for comparison in result.comparisons:
        if rows := about_comparison(comparison, result.headline):
            parts.append(f"### {_text(comparison.first)} minus {_text(comparison.second)}")
            parts.append(_table(("score", "difference", "p, corrected", ""), rows))
    parts += ["## Data it was judged on", _table(("", ""), data.items())]
    for title, facts in origin.items():
        parts += [f"## {title}", _table(("", ""), facts.items())]
    parts += ["## Limits", _list(LIMITS)]
    parts += ["## Versions", _table(("", ""), versions().items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(result: Evaluation, origin: Provenance, data: dict[str, str]) -> dict[str, Any]:
    model = result.models[0]
    scores = [
        {"type": key, "name": key, "value": round(model.scores[key].value, 6)}
        for key in result.headline
        if key in model.scores and math.isfinite(model.scores[key].value)
    ]
    metadata: dict[str, Any] = {}
    if "AGPL-3.0" in origin.get("Network", {}).get("licence", ""):
        metadata["license"] = "agpl-3.0"
    name = data["data set"]
    metadata |= {
        "library_name": "ultralytics",
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "ultralytics", "yolo", _TAG, "research-only"],
        "metrics": [score["type"] for score in scores],
        "model-index": [
            {
                "name": model.name,
                "results": [
                    {
                        "task": {"type": "object-detection", "name": "Object detection"},
                        "dataset": {"type": _slug(name), "name": name, "split": data["split"]},
                        "metrics": scores,
                    }
                ],
            }
        ],
    }
    return metadata


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-") or "data"


def _text(text: str) -> str:
    r"""Return a text that Markdown and HTML take as it is.

    Examples:
        >>> _text("a|b <script> *x* mAP50-95")
        'a\\|b &lt;script&gt; \\*x\\* mAP50-95'
    """
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|_])", r"\\\1", safe).replace("\n", " ")


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _table(head: Sequence[str], rows: Any) -> str:
    cells = [tuple(head), *rows]
    lines = [f"| {' | '.join(map(_text, row))} |" for row in cells]
    return "\n".join([lines[0], f"|{' --- |' * len(head)}", *lines[1:]])
