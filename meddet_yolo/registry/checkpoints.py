"""Detectors from checkpoints, without running foreign code."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddet_yolo.console import may_fetch
from meddet_yolo.registry.trust import is_trusted, trusting

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_detector"]


def load_detector(path: str | Path, trust: bool = False, tasks: Collection[str] = ("detect",)) -> nn.Module:
    """Load a trained Ultralytics detector, refusing a checkpoint that would run foreign code.

    A checkpoint is a pickle, and a pickle can call anything. By default only layers of torch, of Ultralytics and of
    this package are rebuilt from it, and nothing else is executed.

    Args:
        path: A `.pt` checkpoint. An official name such as "yolo11s.pt" that is not here is downloaded by Ultralytics.
        trust: Load the file with plain pickle, which executes whatever it holds. Nothing is ever installed for it.
        tasks: Tasks that the model may be for; a model for "segment" or "pose" holds a detector, too.

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
    from ultralytics.nn.tasks import torch_safe_load

    file = _checkpoint_file(path)
    with trusting(trust or is_trusted()):
        checkpoint, _ = torch_safe_load(str(file))
    model = checkpoint.get("ema") or checkpoint.get("model")
    try:
        return _as_detector(model, checkpoint.get("train_args") or {}, file, tasks)
    except TypeError:
        raise
    except Exception as error:  # a layer that lacks something can raise anything
        raise ValueError(
            f"checkpoint {file} holds a damaged model ({type(error).__name__}: {error}); copy or download it again"
        ) from error


def _checkpoint_file(path: str | Path) -> Path:
    """Return the local file of a checkpoint, downloading an official one."""
    from ultralytics.utils import SETTINGS, checks
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
        if not stored.is_file() and not may_fetch():
            raise FileNotFoundError(f"checkpoint {file} is not here and cannot be downloaded: this machine is offline")
        file = Path(attempt_download_asset(name))
    if str(file) != checks.check_yolov5u_filename(str(file).replace("'", ""), verbose=False):
        raise ValueError(f"Ultralytics would look for {file} under another name; rename the file (e.g. to teacher.pt)")
    return file


def _as_detector(model: Any, train_args: Mapping[str, Any], file: Path, tasks: Collection[str]) -> nn.Module:
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
    if detector.task not in tasks or not isinstance(head, Detect | RTDETRDecoder):
        kind = f"{type(model).__name__} for task {detector.task!r}"
        if head is not None:
            kind += f" with head {type(head).__name__}"
        raise TypeError(
            f"{file} is a {kind}; expected a YOLO or RT-DETR detector (task {' or '.join(map(repr, tasks))})"
        )
    detector.float().eval()
    detector.pt_path = str(file)
    names = detector.names
    detector.names = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    for m in detector.modules():
        if isinstance(m, torch.nn.Upsample) and not hasattr(m, "recompute_scale_factor"):
            m.recompute_scale_factor = None  # written by torch 1.10 and before
    return detector
