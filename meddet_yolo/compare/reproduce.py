"""`reproduce`: the MedDet paper's tables and figures as a preset of `compare`, the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from meddet_yolo.compare.files import FOUND, RUNS, read_json, write_json
from meddet_yolo.compare.paper import METHODS, PLACED, STUDENT, TABLES, TEACHERS, PaperRow
from meddet_yolo.compare.plots import plot_sizes
from meddet_yolo.compare.predictions import load_predictions
from meddet_yolo.compare.run import compare
from meddet_yolo.console import as_list
from meddet_yolo.distill.options import choice
from meddet_yolo.registry import resolve_model_yaml

__all__ = ["PRESETS", "reproduce"]

_SHOWN = {  # columns of the picture with boxes, those that there are
    "GFL ResNet-50": "gfl-resnet50",
    "GFL MobileNetV2": "mobilenetv2",
    "MGD": "mgd",
    "LD": "ld",
    "FGD": "fgd",
    "MedDet": "MedDet",
}
_IMAGES, _CONFIDENCE = 4, 0.25
_PAPER_PATIENTS = {
    "patients": 914,
    "val_fraction": 183 / 914,
    "test_fraction": 0.0,
}  # 731 to train on, 183 to measure on
_TRAINING: dict[str, Any] = {  # as in cfg/distill/paper.yaml
    **{"optimizer": "AdamW", "lr0": 0.001, "lrf": 0.01, "cos_lr": True, "weight_decay": 0.0005, "warmup_epochs": 1.0},
    **{"fliplr": 0.0, "mosaic": 0.0, "scale": 0.2, "batch": 8, "nbs": 8},
    **{"inherit": "none", "distill_stop": 0},
}


@dataclass(frozen=True)
class Preset:
    """How large a reproduction is.

    Attributes:
        phantom: Arguments of the phantom that stands in for a data set.
        training: Keys of the trainings, and of the comparison.
    """

    phantom: Mapping[str, Any]
    training: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = {
    "smoke": Preset(
        {"preset": "tiny", "patients": 6, "imgsz": 64, "val_fraction": 0.34, "test_fraction": 0.0},
        {"imgsz": 64, "epochs": 1, "batch": 4, "nbs": 4, "distill_warmup": 0.0, "rounds": 20},
    ),
    "cpu": Preset(
        {"preset": "paper", "imgsz": 160, **_PAPER_PATIENTS}, {"imgsz": 160, "epochs": 3, "distill_warmup": 0.5}
    ),
    "gpu": Preset({"preset": "paper", **_PAPER_PATIENTS}, {"imgsz": 512, "epochs": 100, "distill_warmup": 3.0}),
}
"""By the names that `preset=` takes: minutes, a night on two cores, the paper's sizes."""


def reproduce(
    what: str = "paper",
    preset: str = "smoke",
    data: str | Path | None = None,
    out: str | Path = "reproduce-out",
    tables: str | Sequence[str] | None = None,
    **more: Any,
) -> str:
    """Repeat a paper's experiment: every table of it, with its figures beside ours, and its pictures.

    All of it is one `compare`: runs are processes with folders of their own, what is interrupted goes on by the same
    call, a run that several tables have is trained once, tables can be added later.

    Args:
        what: The paper: `paper`, that of MedDet.
        preset: `smoke` (minutes, shows that it runs), `cpu` (a night on two cores) or `gpu` (the paper's sizes).
        data: YAML of a data set. Default: a phantom of the paper's counts, of six patients for `smoke`.
        out: Folder of the experiment.
        tables: `students`, `fusion`, `terms`, `placement`, `rivals`, or several of them. Default: all.
        **more: Keys of `compare` and of its trainings, such as `device`, `jobs`, `seeds`, `folds`, `epochs`.

    Returns:
        The tables.

    Raises:
        ValueError: If `what`, `preset` or a table is unknown, or for what makes `compare` refuse.

    Examples:
        >>> reproduce("paper", preset="gpu", data="cdh1848.yaml", device=0)  # doctest: +SKIP
        >>> reproduce("paper", tables=["fusoin"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: tables must be one of students, ..., got 'fusoin': did you mean 'fusion'?
    """
    choice("what", what, ["paper"])
    size = PRESETS[choice("preset", preset, list(PRESETS))]
    chosen = [choice("tables", name, list(TABLES)) for name in as_list(tables if tables is not None else [*TABLES])]
    reserved = sorted({"student", "methods", "teachers", "cfg", "report"} & set(more))
    if reserved:
        raise ValueError(f"{reserved[0]}= is set by the paper: `meddet compare` takes one of yours")
    place = Path(out).expanduser().resolve()
    place.mkdir(parents=True, exist_ok=True)
    if data is None:
        from meddet_yolo.phantom import generate_phantom

        data = generate_phantom(place / "data", **size.phantom)
    rows = [row for name in chosen for row in TABLES[name].rows]
    arguments = {"seeds": 1, "folds": 1, **_TRAINING, **size.training, **more}
    compare(
        data=data,
        student={"student": f"{STUDENT}.yaml"},
        methods=_methods([row.method for row in rows], place / "models"),
        teachers=[{"model": f"{name}.yaml", "epochs": arguments["epochs"]} for name in TEACHERS],
        out=place,
        **arguments,
    )
    return _report(place, chosen, preset, data, int(arguments["imgsz"]))


def _methods(wanted: Sequence[str], models: Path) -> dict[str, dict[str, Any]]:
    """Return the methods that rows need, with model files for the places of nmODE² that no shipped one has."""
    methods = {name: dict(keys) for name, keys in METHODS.items() if name in wanted}
    for name in [name for name in PLACED if name in methods]:
        plain = resolve_model_yaml("gfl-mobilenetv2")
        assert plain is not None
        content = yaml.safe_load(plain.read_text(encoding="utf-8"))
        row = next(row for row in (*content["backbone"], *content["head"]) if row[2] == PLACED[name])
        row[3][-1]["nmode"] = True
        models.mkdir(exist_ok=True)
        file = models / f"{name}.yaml"
        text = yaml.safe_dump(content, sort_keys=False)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
        methods[name]["student"] = str(file)
    return methods


def _report(out: Path, chosen: Sequence[str], preset: str, data: Any, imgsz: int) -> str:
    """Write the tables and the pictures of a comparison that is done; return the tables."""
    comparison = read_json(out / "compare.json")
    found = {row["method"] or row["student"]: row for row in comparison["rows"]}
    sizes = _operations(found, out, imgsz) if "students" in chosen else {}
    lines = [
        "# The MedDet paper's tables, repeated",
        "",
        f"preset={preset}, data={data}, {imgsz} px: {comparison['images']} images of {comparison['patients']} patients",
        "",
        *_REMARKS,
    ]
    tables = {}
    for name in chosen:
        table = TABLES[name]
        tables[name] = [
            _entry(row, found.get(row.method), sizes.get(row.method) if name == "students" else None)
            for row in table.rows
        ]
        columns = [c for c in _COLUMNS if any(entry[c] for entry in tables[name])]
        cells = [columns, ["---"] * len(columns), *([entry[c] for c in columns] for entry in tables[name])]
        lines += ["", f"## {table.title}", "", *(f"| {' | '.join(row)} |" for row in cells)]
    failed = {run: reason for row in comparison["rows"] for run, reason in row["failed"].items()}
    lines += ["", *(f"- failed: {run}: {reason}" for run, reason in failed.items())] if failed else []
    points = [
        (row.label, found[row.method], sizes[row.method])
        for row in TABLES["students"].rows
        if row.method in sizes and found[row.method]["milliseconds_per_image"]
    ]
    pictures = [plot_sizes(points, out / "sizes.png")] if points else []
    boxes = _draw_boxes(out, found, data)
    pictures += [boxes] if boxes else []
    lines += [line for picture in pictures for line in ("", f"![{picture.stem}]({picture.name})")]
    text = "\n".join(lines)
    (out / "paper.md").write_text(f"{text}\n", encoding="utf-8")
    write_json(out / "paper.json", {"preset": preset, "imgsz": imgsz, "tables": tables})
    return f"{text}\n\nreport    {out / 'paper.md'}"


_REMARKS = (
    "The paper's columns: arXiv 2409.00204, on CDH-1848; mAP in per cent, over overlaps that are not known; FPS on its",
    "own machine; multiply-adds at 512 px. Ours: this data, machine and image size, 95 % intervals over patients. The",
    "data differ: compare differences between rows, not the figures of a row.",
)
_COLUMNS = (
    *("", "mAP50-95", "mAP50", "paper's mAP", "recall", "paper's recall", "images/s", "paper's FPS"),
    *("parameters (M)", "paper's (M)", "multiply-adds (G)", "paper's (G)"),
)


def _entry(row: PaperRow, ours: Mapping[str, Any] | None, operations: float | None) -> dict[str, str]:
    """Return the cells of a row by column."""
    scores = ours["scores"] if ours else {}
    sized = ours if ours and operations is not None else {}  # in the table that is about sizes
    speed, parameters = sized.get("milliseconds_per_image"), sized.get("parameters")
    values = (
        row.label,
        _interval(scores.get("mAP50-95")),
        _interval(scores.get("mAP50")),
        f"{row.mean_precision:.1f}",
        _interval(scores.get("recall")),
        _number(row.recall, ".3f"),
        _number(1000 / speed if speed else None, ".1f"),
        _number(row.fps, ".1f"),
        _number(parameters / 1e6 if parameters else None, ".2f"),
        _number(row.parameters, ".2f"),
        _number(operations, ".2f"),
        _number(row.gflops, ".2f"),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _interval(score: Mapping[str, float | None] | None) -> str:
    if not score or score["value"] is None:
        return "none yet"
    sure = "" if score["low"] is None else f" [{score['low']:.3f}, {score['high']:.3f}]"
    return f"{score['value']:.3f}{sure}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _operations(found: Mapping[str, Any], out: Path, imgsz: int) -> dict[str, float]:
    """Return the multiply-adds in 10^9 of the models of the first table, counted as the paper's come out."""
    from meddet_yolo.evaluate.info import build_model, measure_size

    operations = {}
    for row in TABLES["students"].rows:
        if row.method not in found:
            continue
        model = str(METHODS.get(row.method, {}).get("student", f"{row.method}.yaml"))
        model = f"{STUDENT}.yaml" if row.method == "MedDet" else model
        size = measure_size(build_model(model, nc=2), -(-imgsz // 32) * 32)
        operations[row.method] = (size.multiply_adds + size.elementwise) / 1e9
    return operations


def _draw_boxes(out: Path, found: Mapping[str, Any], data: Any) -> Path | None:
    """Draw the boxes of the labels and of every method side by side; nothing where no run is finished."""
    from meddet_yolo.compare.folds import class_names
    from meddet_yolo.evaluate.report import Box, draw_grid, read_image, write_image

    columns: dict[str, dict[str, Any]] = {}
    for label, method in _SHOWN.items():
        kind = "teacher-" + method + "-fold0" if method in TEACHERS else f"student-{method}-seed*-fold0"
        file = next(iter(sorted((out / RUNS).glob(f"{kind}/{FOUND}"))), None)
        if method in found and file is not None:
            columns[label] = {pair[0].name: pair for pair in load_predictions(file)}
    if not columns:
        return None
    first = next(iter(columns.values()))
    by_patient = {str(truth.patient): name for name, (_, truth) in sorted(first.items())}
    rows = []
    for name in list(by_patient.values())[:_IMAGES]:
        truth = first[name][1]
        boxes = {"ground truth": [Box(tuple(b), int(c)) for b, c in zip(truth.boxes, truth.classes, strict=True)]}
        for label, pairs in columns.items():
            given = pairs[name][0]
            boxes[label] = [
                Box(tuple(b), int(c), float(s))
                for b, c, s in zip(given.boxes, given.classes, given.scores, strict=True)
                if s >= _CONFIDENCE
            ]
        rows.append((read_image(name), boxes))
    picture = out / "boxes.jpg"
    write_image(picture, draw_grid(rows, dict(enumerate(class_names(Path(data).expanduser())))))
    return picture
