"""Writing `report.html`, the evaluation as one file that needs no network, and `README.md`, the model card.

The page draws with SVG and a few hundred lines of JavaScript of its own: a plotting library that can be inlined takes
over half of the 8 MB that a page with sixty pictures may have, for three kinds of plots. Its numbers are computed here;
the slider looks them up. Data reaches the page as text that is escaped, and a policy in its head lets nothing run or
load that is not in this package.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from meddet_yolo.evaluate.detections import TruthSet
from meddet_yolo.evaluate.noise import UNITS
from meddet_yolo.evaluate.page.cards import INTENDED_USE, LIMITS, data_card, readme
from meddet_yolo.evaluate.page.gallery import choose_cases, gallery
from meddet_yolo.evaluate.page.operating import count_table, curves, slider_thresholds
from meddet_yolo.evaluate.page.provenance import provenance, versions
from meddet_yolo.evaluate.page.public import file_name, public_names, scrubber
from meddet_yolo.evaluate.page.words import about_comparison, about_intervals, about_model, undefined
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.evaluate.results import Evaluation, ModelResult
from meddet_yolo.evaluate.statistics import Interval

__all__ = ["page_data", "write_page"]

_TEMPLATES = Path(__file__).parent / "templates"
_SAYS_NOTHING = ("data", "dataset")
_SCRIPTS = ("charts.js", "gallery.js", "page.js")


def write_page(
    result: Evaluation,
    truth: TruthSet,
    pools: Sequence[Pool],
    folder: Path,
    *,
    private: bool = False,
    pictures: int = 60,
    seed: int = 0,
) -> Path:
    """Write `report.html` and `README.md`.

    Args:
        result: The evaluation.
        truth: The labelled images.
        pools: The detections of its models, in their order.
        folder: Where to write to.
        private: Whether to leave the pictures out.
        pictures: Most pictures.
        seed: Seed of the random cases.

    Returns:
        The page.
    """
    names = public_names(truth)
    known = {image.name: name for image, name in zip(truth.images, names, strict=True)}
    data_file = result.data.rpartition(" split=")[0] or result.data
    data_name = _data_name(data_file)
    known |= {data_file: data_name, **{m.source: file_name(m.source) for m in result.models}}
    scrub = scrubber(known)
    data = page_data(result, pools)
    if not private:
        hits: dict[str, Any] = {"hit": str(result.settings["hit"]), "iou": float(result.settings["iou"])}
        cases = choose_cases(pools, **hits, count=pictures, seed=seed)
        data |= gallery(pools, cases, np.array(data["thresholds"]), names.__getitem__, **hits)
    card = data_card(result, truth, data_name)
    origins = [provenance(model.source) for model in result.models]
    notes = [scrub(note) for note in result.notes]
    script = "\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    html = _environment().get_template("page.html").render(
        result=result,
        data=data,
        data_name=data_name,
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
        about=[about_model(model) for model in result.models],
        differences=[(c, about_comparison(c, result.headline)) for c in result.comparisons],
        undefined=undefined(result),
        intervals=about_intervals(result),
        hit=_hit(result),
        notes=notes,
        card=card,
        origins=list(zip(result.models, origins, strict=True)),
        intended_use=INTENDED_USE,
        limits=LIMITS,
        versions=versions(),
        private=private,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "report.html"
    file.write_text(html, encoding="utf-8")
    (folder / "README.md").write_text(readme(result, origins[0], card, notes), encoding="utf-8")
    return file


def _data_name(file: str) -> str:
    """Return the name of a data set: its YAML's or, where that says nothing, its folder's."""
    path = PurePosixPath(file.replace("\\", "/"))
    return path.parent.name if path.stem in _SAYS_NOTHING and path.parent.name else path.stem


def page_data(result: Evaluation, pools: Sequence[Pool]) -> dict[str, Any]:
    """Return what the page's plots and counters show, as plain values.

    Args:
        result: The evaluation.
        pools: The detections of its models, in their order.
    """
    thresholds = slider_thresholds(model.threshold for model in result.models)
    options: dict[str, Any] = {"hit": str(result.settings["hit"]), "iou": float(result.settings["iou"])}
    classes = len(result.names)
    return {
        "thresholds": thresholds.tolist(),
        "images": result.images,
        "names": list(result.names),
        "headline": list(result.headline),
        "models": [
            {
                "name": model.name,
                "at": int(np.searchsorted(thresholds, model.threshold)),
                "counts": count_table(pool, classes, thresholds, **options),
                "curves": curves(pool, classes, **options),
                "reliability": _reliability(model, result.names),
                "scores": {key: _score(interval) for key, interval in model.scores.items()},
            }
            for model, pool in zip(result.models, pools, strict=True)
        ],
        "noise": _noise(result),
        "sizes": _sizes(result.models[0]),
        "subgroups": [
            {
                "column": group.column,
                "value": group.value,
                "about": ", ".join(
                    f"{n} {what}" + ("s" if n != 1 else "")
                    for n, what in ((group.images, "image"), (group.patients, "patient"))
                    if n is not None
                ),
                "scores": [{k: _score(i) for k, i in group.scores[m.name].items()} for m in result.models],
            }
            for group in result.subgroups
        ],
    }


def _score(interval: Interval) -> list[Any]:
    """Return value, bounds (None where there is none) and the text of a score."""
    numbers = [float(v) if math.isfinite(v) else None for v in (interval.value, interval.low, interval.high)]
    return [*numbers, str(interval)]


def _reliability(model: ModelResult, names: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the reliability diagrams of all classes and of each; None where they were not computed."""
    details = model.details.get("calibration")
    if details is None:
        return None
    table = details["classes"]
    return [{**table[name], "edges": details["edges"]} for name in ("all", *names)]


def _noise(result: Evaluation) -> list[dict[str, Any]]:
    """Return mAP50-95 against strength for each kind of noise and, in the models' order, each model."""
    kinds = list(dict.fromkeys(r.noise for r in result.noise))
    return [
        {
            "kind": kind,
            "unit": UNITS[kind],
            "lines": [
                [(r.sigma, r.map50_95) for r in result.noise if (r.noise, r.model) == (kind, model.name)]
                for model in result.models
            ],
        }
        for kind in kinds
    ]


def _sizes(model: ModelResult) -> list[dict[str, str]] | None:
    """Return the thirds of the labelled boxes by size, in words; None where they were not computed."""
    details = model.details.get("box_size")
    if details is None or not details["bounds"]:
        return None
    return [
        {
            "key": f"found/{name}",
            "label": f"{name} third",
            "about": f"{low:.0f} to {high:.0f} pixels, {row['boxes']} boxes",
        }
        for (name, row), low, high in zip(
            details["thirds"].items(), details["bounds"][:-1], details["bounds"][1:], strict=True
        )
    ]


def _hit(result: Evaluation) -> str:
    iou = float(result.settings["iou"])
    if result.settings["hit"] == "iou":
        return f"A found box is a hit if it overlaps a labelled box of its class with an IoU of at least {iou:g}."
    return "A found box is a hit if its centre lies in a labelled box of its class."


def _hash(text: str) -> str:
    """Return a script's or style's hash as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
