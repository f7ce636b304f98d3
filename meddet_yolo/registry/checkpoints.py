"""Detectors from checkpoints, without running foreign code."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_detector", "wrap_torch_safe_load"]

_LAYERS = ("blocks", "heads", "gfl", "backbones", "shufflenet")
_REFUSED = re.compile(r"unsupported global:? (?:GLOBAL )?(\S+)", re.IGNORECASE)  # in torch's own words


def load_detector(path: str | Path, trust: bool = False) -> nn.Module:
    """Load a trained Ultralytics detector, refusing a checkpoint that would run foreign code.

    A checkpoint is a pickle, and a pickle can call anything. By default only layers of torch, of Ultralytics and of
    this package are rebuilt from it, and nothing else is executed.

    Args:
        path: A `.pt` checkpoint. An official name such as "yolo11s.pt" that is not here is downloaded by Ultralytics.
        trust: Load the file with plain pickle, which executes whatever it holds. Nothing is ever installed for it.

    Returns:
        The detection model: float32, eval mode, on the CPU, with `names` (dict), `stride`, `yaml`, `args`, `pt_path`.

    Raises:
        FileNotFoundError: If there is no such file (and it cannot be downloaded).
        ValueError: If the file is no readable checkpoint, or holds types that safe loading refuses.
        TypeError: If it is readable but no detection model: exported, for another task, or without a model.

    Example:
        >>> teacher = load_detector("runs/detect/train/weights/best.pt")  # doctest: +SKIP
        >>> teacher.names  # doctest: +SKIP
        {0: 'disc'}
    """
    file = _checkpoint_file(path)
    checkpoint = _read_checkpoint(file, trust)
    model = checkpoint.get("ema") or checkpoint.get("model")
    return _as_detector(model, checkpoint.get("train_args") or {}, file)


def wrap_torch_safe_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `torch_safe_load` that allows our layers: each is allowed by the module that defines it."""

    @functools.wraps(original)
    def torch_safe_load(*args: Any, **kwargs: Any) -> Any:
        for name in _LAYERS:
            import_module(f"meddet_yolo.nn.{name}")
        return original(*args, **kwargs)

    return torch_safe_load


def _checkpoint_file(path: str | Path) -> Path:
    """Return the local file of a checkpoint, downloading an official one."""
    from ultralytics.utils import ONLINE, SETTINGS, checks
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give the checkpoint in it, e.g. {file / 'weights' / 'best.pt'}")
    if file.suffix.lower() in (".yaml", ".yml"):
        raise TypeError(f"{file} describes an untrained model; give a trained .pt checkpoint")
    if file.suffix.lower() != ".pt":
        raise TypeError(
            f"{file} is not a PyTorch checkpoint; exported models cannot be used here, give the .pt they came from"
        )
    if not file.is_file():
        name = checks.check_yolov5u_filename(file.name, verbose=False)
        stored = Path(SETTINGS["weights_dir"]) / name
        if file.name != str(path) or name not in GITHUB_ASSETS_NAMES:
            raise FileNotFoundError(f"checkpoint {file} does not exist")
        if not stored.is_file() and not ONLINE:
            raise FileNotFoundError(f"checkpoint {file} is not here and cannot be downloaded: this machine is offline")
        file = Path(attempt_download_asset(name))
    if str(file) != checks.check_yolov5u_filename(str(file).replace("'", ""), verbose=False):
        raise ValueError(f"Ultralytics would look for {file} under another name; rename the file (e.g. to teacher.pt)")
    return file


def _read_checkpoint(file: Path, trust: bool) -> dict[str, Any]:
    """Unpickle a checkpoint in Ultralytics' safe mode, or plainly if it is trusted."""
    from ultralytics.nn.tasks import torch_safe_load

    if file.stat().st_size == 0:
        raise ValueError(f"checkpoint {file} is empty")
    if _is_torchscript(file):
        raise TypeError(f"{file} is a TorchScript export; give the .pt checkpoint that it was made from")
    if trust:
        _check_importable(file)
    try:
        checkpoint, _ = torch_safe_load(str(file), safe_only=not trust)
    except Exception as error:  # a damaged pickle can raise anything
        cause = error.__cause__ or error
        names = [] if trust else _foreign_globals(file) or re.findall(_REFUSED, str(cause))
        if names:
            raise ValueError(
                f"checkpoint {file} would run foreign code on loading ({', '.join(names)}); if you know where it comes "
                "from, pass trust=true"
            ) from error
        reason = str(cause).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"checkpoint {file} cannot be read; it is truncated, damaged or of another Ultralytics version "
            f"({type(cause).__name__}: {reason})"
        ) from error
    if not isinstance(checkpoint, dict):
        raise TypeError(f"{file} holds a {type(checkpoint).__name__}, not an Ultralytics checkpoint")
    return checkpoint


def _is_torchscript(file: Path) -> bool:
    """Return whether a file is an archive with code, which is what `torch.jit.save` writes."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())


def _foreign_globals(file: Path) -> list[str]:
    """Return the names that a checkpoint refers to and that safe loading does not allow."""
    import torch

    try:  # Ultralytics has allowed its own by now
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # not an archive, or damaged
        return []


def _check_importable(file: Path) -> None:
    """Refuse a trusted checkpoint that needs a missing package, which Ultralytics would install with pip."""
    for name in _foreign_globals(file):
        package = name.partition(".")[0]
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise ValueError(f"checkpoint {file} needs the package {package!r} ({name}), which is not installed")


def _as_detector(model: Any, train_args: Mapping[str, Any], file: Path) -> nn.Module:
    """Check that a checkpoint's model is a detector and bring it into the form that Ultralytics gives loaded models."""
    import torch
    from ultralytics.nn.modules import Detect, RTDETRDecoder
    from ultralytics.nn.tasks import guess_model_task
    from ultralytics.utils import DEFAULT_CFG_DICT

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{file} holds no model; give a checkpoint that Ultralytics has saved")
    detector: Any = model
    detector.args = {**DEFAULT_CFG_DICT, **train_args}
    detector.task = getattr(model, "task", None) or guess_model_task(model)
    layers = getattr(model, "model", None)
    head = layers[-1] if isinstance(layers, torch.nn.Sequential) and len(layers) else None
    if detector.task != "detect" or not isinstance(head, Detect | RTDETRDecoder):
        kind = f"{type(model).__name__} for task {detector.task!r}"
        if head is not None:
            kind += f" with head {type(head).__name__}"
        raise TypeError(f"{file} is a {kind}; expected a YOLO or RT-DETR detector (task 'detect', head Detect)")
    detector.float().eval()
    detector.pt_path = str(file)
    names = detector.names
    detector.names = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    for m in detector.modules():
        if isinstance(m, torch.nn.Upsample) and not hasattr(m, "recompute_scale_factor"):
            m.recompute_scale_factor = None  # written by torch 1.10 and before
    return detector
