"""Shipped files by their bare name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meddet_yolo.registry.layers import LAYERS, names_our_layers
from meddet_yolo.registry.model_yaml import check_model_yaml

__all__ = ["resolve_model_yaml", "wrap_yaml_model_load"]

_PREFIXES = ("meddet", "gfl-")


def wrap_yaml_model_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `yaml_model_load` that finds shipped files, knows the scale of a file with one, and refuses no models."""
    names = vars(sys.modules[original.__module__])

    @functools.wraps(original)
    def yaml_model_load(path: str | Path) -> dict[str, Any]:
        shipped = None if Path(path).exists() else resolve_model_yaml(path)
        try:
            d = original(shipped or path)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no model: expected `nc`, `backbone` and `head`") from error
        check_model_yaml(d, names, LAYERS)
        if shipped:
            d["yaml_file"] = str(path)  # as given: checkpoints should not hold paths of this machine
        scales = d.get("scales")
        if isinstance(scales, dict) and len(scales) == 1 and names_our_layers(d):
            d["scale"] = next(iter(scales))  # Ultralytics reads it from names like yolo11n only
        return d

    return yaml_model_load


def resolve_model_yaml(name: str | Path) -> Path | None:
    """Find a model YAML that this package ships.

    Args:
        name: Bare name, with or without suffix: "meddet-n.yaml" or "meddet-n".

    Returns:
        Absolute path of the file, or None if the name has a folder or does not begin with "meddet" or "gfl-".

    Raises:
        FileNotFoundError: If the name begins so but no such file is shipped; lists those that are.

    Example:
        >>> resolve_model_yaml("meddet-n").name
        'meddet-n.yaml'
        >>> resolve_model_yaml("yolo11n.yaml") is None
        True
    """
    from meddet_yolo.cfg import MODELS_DIR

    name = str(name)
    stem, dot, suffix = name.rpartition(".")
    if suffix not in ("yaml", "yml"):  # none, or the end of a name such as gfl-mobilenetv2-1.4
        stem = name if not dot or (MODELS_DIR / f"{name}.yaml").is_file() else ""
    if not stem.startswith(_PREFIXES) or "/" in name or "\\" in name:
        return None
    path = MODELS_DIR / f"{stem}.yaml"
    if path.is_file():
        return path
    family = next(prefix for prefix in _PREFIXES if stem.startswith(prefix))
    shipped = ", ".join(sorted(p.name for p in MODELS_DIR.glob(f"{family}*.yaml")))
    raise FileNotFoundError(f"model {name!r} is neither a local file nor shipped with meddet_yolo; shipped: {shipped}")
