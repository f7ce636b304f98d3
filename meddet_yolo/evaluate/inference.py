"""What a model finds in the images of a data set, by the validator's own path, kept in a file by the model's hash."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ultralytics import YOLO

from meddet_yolo import registry
from meddet_yolo.console import quiet
from meddet_yolo.evaluate.detections import Found, TruthSet, align, load_found, save_found
from meddet_yolo.evaluate.validator import CollectingValidator

__all__ = ["find", "predictions_key"]

_READ = 1 << 20  # bytes hashed at a time


def find(
    model: str | Path, data: str | Path, split: str, truth: TruthSet, *, cache: Path | None = None, **options: Any
) -> tuple[list[Found], bool]:
    """Return what a model finds in every image of a split.

    Args:
        model: A checkpoint, or an ONNX, OpenVINO or engine file or folder.
        data: The data set's YAML.
        split: Its part.
        truth: The part's images.
        cache: Folder in which predictions are kept; those of the same model, images and options are read from there.
        **options: Further arguments of `YOLO.val`, such as `imgsz`, `batch` or `device`.

    Returns:
        The detections in the images' order, and whether they came from the cache.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: The model is no detector, or has other classes than the data set.
    """
    path = Path(model).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"model={model}: no such file")
    file = cache / f"{path.stem}-{predictions_key(path, truth, options)}.npz" if cache is not None else None
    if file is not None and file.is_file():
        return align(load_found(file), truth, str(file)), True
    registry.register()
    loaded = YOLO(str(path), task=None if path.suffix == ".pt" else "detect")
    if loaded.task != "detect":
        raise ValueError(f"model={model} is for task {loaded.task!r}, expected a detector")
    if path.suffix == ".pt":  # others tell their classes when they run
        _check_classes(model, loaded.names, truth)
    collectors: list[CollectingValidator] = []

    def collect(*args: Any, **kwargs: Any) -> CollectingValidator:
        collectors.append(CollectingValidator(*args, **kwargs))
        return collectors[-1]

    settings = {"plots": False, "verbose": False, "save_json": False, **options}
    if path.suffix != ".pt":
        settings.setdefault("rect", False)  # exported for one size
    with quiet(), tempfile.TemporaryDirectory() as folder:  # Ultralytics makes one for pictures that are not drawn
        loaded.val(validator=collect, data=str(data), split=split, **{"save_dir": folder, **settings})
    _check_classes(model, collectors[-1].names, truth)
    by_path = {str(image.path): image.name for image in truth.images}
    found = [
        Found(by_path[name], seen.found.boxes, seen.found.classes, seen.found.scores)
        for name, seen in collectors[-1].images_seen.items()
        if name in by_path
    ]
    aligned = align(found, truth, str(model))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_found(file, aligned)
    return aligned, False


def _check_classes(model: str | Path, names: dict[int, str], truth: TruthSet) -> None:
    """Refuse a model whose classes are not the data set's."""
    theirs = tuple(str(names[i]) for i in sorted(names))
    if theirs != truth.names:
        raise ValueError(
            f"model={model} has the classes {', '.join(theirs)}, but {truth.source} has {', '.join(truth.names)}"
        )


def predictions_key(model: Path, truth: TruthSet, options: dict[str, Any]) -> str:
    """Return what predictions depend on, as a hash: the model's and the images' bytes, options and versions."""
    digest = hashlib.sha256()
    files = sorted(p for p in model.rglob("*") if p.is_file()) if model.is_dir() else [model]
    _add(digest, files)
    for image in truth.images:
        digest.update(f"\0{image.name}\0".encode())
        _add(digest, [image.path] if image.path is not None else [])
    stated = {**options, "names": truth.names, "ultralytics": version("ultralytics"), "meddet": version("meddet-yolo")}
    digest.update(repr(sorted(stated.items())).encode())
    return digest.hexdigest()[:16]


def _add(digest: Any, files: Iterable[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(_READ):
                digest.update(block)
