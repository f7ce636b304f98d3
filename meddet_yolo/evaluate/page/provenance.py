"""Where a detector comes from: its file, how it was trained, from which teachers, with which versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from ultralytics import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT

from meddet_yolo import registry
from meddet_yolo.console import as_list, quiet
from meddet_yolo.evaluate.detection_files import SUFFIXES
from meddet_yolo.evaluate.detections import TruthSet
from meddet_yolo.evaluate.page.public import file_name, scrubber
from meddet_yolo.files import sha256_of
from meddet_yolo.trt.engine_file import read_sidecar

__all__ = ["Provenance", "hash_of_labels", "provenance", "versions"]

Provenance = dict[str, dict[str, str]]
"""Titles, each with facts by name."""

_ALWAYS = ("model", "data", "epochs", "imgsz", "batch", "optimizer", "lr0", "seed", "pretrained")
_SAME_RUN = ("model", "data", "epochs", "imgsz", "batch", "seed")
_OF_THE_RUN = frozenset(
    ("task", "mode", "project", "name", "exist_ok", "save_dir", "save", "save_period", "device", "workers", "plots",
     "verbose", "val", "split", "cache", "cfg", "resume", "tracker", "show", "teachers", "trust", "save_json")
)  # fmt: skip
_PACKAGES = ("meddet-yolo", "ultralytics", "torch", "numpy", "scipy")


def provenance(source: str | Path) -> Provenance:
    """Return what a model's file tells of it: `File`, and for a checkpoint `Training recipe` and `Teachers`.

    Args:
        source: A checkpoint, an exported model (its sidecar is read), or a file of detections.
    """
    path = Path(source).expanduser()
    facts: Provenance = {"File": _file(path)}
    if path.suffix == ".pt":
        facts |= _training(path)
    elif path.suffix.lower() in SUFFIXES or (path.is_dir() and not any(path.glob("*.xml"))):
        facts["File"]["holds"] = "detections; of the detector that made them nothing is known"
    else:
        facts |= _export(path)
    return facts


def _file(path: Path) -> dict[str, str]:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    return {"name": path.name, "size": f"{size / 1e6:.2f} MB", "SHA-256": sha256_of(path)}


def _training(path: Path) -> Provenance:
    """Return what a checkpoint tells of its training."""
    registry.register()
    with quiet():
        loaded = YOLO(str(path))
    checkpoint: Mapping[str, Any] = getattr(loaded, "ckpt", None) or {}
    arguments = dict(checkpoint.get("train_args") or {})
    arguments |= _of_distillation(path, arguments)
    network = {"parameters": f"{sum(p.numel() for p in loaded.model.parameters()):,}"}
    told = {"date": "trained on", "version": "Ultralytics", "license": "licence"}
    network |= {name: str(checkpoint[key]) for key, name in told.items() if checkpoint.get(key)}
    if "trained on" in network:
        network["trained on"] = network["trained on"][:10]
    recipe = {
        key: _public(value)
        for key, value in arguments.items()
        if key not in _OF_THE_RUN and (key in _ALWAYS or value != DEFAULT_CFG_DICT.get(key))
    }
    recipe = {key: recipe[key] for key in (*_ALWAYS, *sorted(recipe)) if key in recipe}
    teachers = [Path(str(t)) for t in as_list(arguments.get("teachers") or arguments.get("distill_model"))]
    told_by_run = "teachers" in arguments or arguments.get("distill_model")
    nothing = {"teachers": "none" if told_by_run else "none is told by the checkpoint"}
    return {
        "Network": network,
        "Training recipe": recipe or {"recipe": "the file tells none"},
        "Teachers": {f"teacher {i}": _teacher(t) for i, t in enumerate(teachers, 1)} or nothing,
    }


def _of_distillation(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the run's `args.yaml` tells beyond the checkpoint, which knows nothing of teachers.

    It is left alone where it is of another run than the checkpoint.
    """
    file = path.absolute().parent.parent / "args.yaml"
    if not file.is_file():
        return {}
    try:
        run = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(run, dict) or any(run.get(key) != arguments.get(key) for key in _SAME_RUN):
        return {}
    return {key: value for key, value in run.items() if key not in DEFAULT_CFG_DICT and key not in arguments}


def _teacher(path: Path) -> str:
    """Return a teacher's name, with its hash where the file is at hand."""
    return f"{path.name}, SHA-256 {_file(path)['SHA-256']}" if path.is_file() else path.name


def _export(path: Path) -> Provenance:
    """Return what the sidecar of an exported model tells."""
    inside = next(iter(path.glob("*.bin")), path) if path.is_dir() else path
    try:
        sidecar = read_sidecar(inside)
    except (OSError, ValueError):
        sidecar = {}
    known = {"file", "bytes", "sha256"}
    facts = {k: _public(v) for k, v in sidecar.items() if k not in known and isinstance(v, (str, int, float, bool))}
    return {"Export": facts or {"sidecar": "none; what it was made from is unknown"}}


def _public(value: Any) -> str:
    """Return a value as text without folders."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_public, value))
    if isinstance(value, float):
        return f"{value:g}"
    return file_name(value) if isinstance(value, str) and "://" not in value else scrubber({})(value)


def hash_of_labels(truth: TruthSet) -> str:
    """Return a hash of all images' sizes, boxes and classes, by which two reports can be seen to judge the same."""
    digest = hashlib.sha256(repr(truth.names).encode())
    for image in truth.images:
        digest.update(repr(image.size).encode())
        digest.update(image.boxes.tobytes())
        digest.update(image.classes.tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of what computed the page."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
