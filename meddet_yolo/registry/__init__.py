"""The only door to Ultralytics' internals: our layers in YAMLs, shipped files by name, detectors from checkpoints.

Ultralytics has no hook for layers of a plugin, so `register` wraps some of its functions. Every wrapper hands the
work to the original and leaves models without our layers alone:

- `parse_model` (`layers.py`): rows that name our layers are lowered to stock rows (`NmODE2Detect` -> `Detect`,
  `NmODE2Block` -> `Conv`), the original builds the model, then ours is made and put in the stock layer's place.
- `yaml_model_load` (`files.py`): the bare name of a shipped file, such as `meddet-n.yaml`, is found; a local file of
  that name wins.
- `BaseModel.load` (`weights.py`): says which tensors of pretrained weights were transferred and which were not.
- `DetectionModel.init_criterion`: a head that brings its own training loss is asked for it.

And the class that runs `.engine` files makes room for one that also knows TensorRT-RTX (`rtx_backend.py`), the one that
runs OpenVINO models for one that computes ours as their export was checked (`engines.py`), `get_save_dir`
(`run_folders.py`): a run that is refused leaves no empty folder; and `check_font`, `check_amp` (`network.py`): nothing
is fetched that nobody has asked for.

Other wrappers keep files from running code as they are read, in the whole process and so for `YOLO` too, unless they
are trusted (`trust.py`):

- `torch_safe_load`, `torch_load` (`safe_loading.py`): checkpoints and all other pickles are read in safe mode.
- `parse_model` (`model_yaml.py`): a model YAML names layers and activations, and nothing else.
- `check_det_dataset` (`data_yaml.py`): the `download:` block of a data YAML is not run.
- `load_dataset_cache_file`, `save_dataset_cache_file` (`label_cache.py`): label caches hold data and nothing else.

`tests/registry/test_canary*.py` fail with a clear message when a new Ultralytics changes what this package leans on.

Importing this package imports neither torch nor Ultralytics: an engine must run in a container that has neither.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from meddet_yolo.registry.checkpoints import load_detector
from meddet_yolo.registry.data_yaml import wrap_check_det_dataset
from meddet_yolo.registry.engines import engine_backend, openvino_backend
from meddet_yolo.registry.files import resolve_model_yaml, wrap_yaml_model_load
from meddet_yolo.registry.layers import wrap_parse_model
from meddet_yolo.registry.network import wrap_check_amp, wrap_check_font
from meddet_yolo.registry.run_folders import wrap_get_save_dir
from meddet_yolo.registry.safe_loading import wrap_torch_load, wrap_torch_safe_load
from meddet_yolo.registry.trust import is_trusted, trusting
from meddet_yolo.registry.weights import TransferReport, transfer_report, wrap_load

__all__ = [
    "TransferReport",
    "is_trusted",
    "load_detector",
    "register",
    "resolve_model_yaml",
    "transfer_report",
    "trusting",
]

_lock = threading.RLock()


def register() -> None:
    """Teach Ultralytics our layers and file names; any number of calls has the effect of one.

    If Ultralytics' parser has not been imported yet, this is done at the moment it is, so that `import meddet_yolo`
    stays cheap and works without Ultralytics.

    Example:
        >>> register()
        >>> from ultralytics import YOLO
        >>> type(YOLO("meddet-n.yaml").model.model[-1]).__name__
        'NmODE2Detect'
    """
    with _lock:
        waiting = False
        for name, patch in _PATCHES.items():
            if name in sys.modules:
                patch(importlib.import_module(name))  # waits for a thread that is still importing it
            else:
                waiting = True
        if waiting and not any(isinstance(finder, _PatchWhenImported) for finder in sys.meta_path):
            sys.meta_path.insert(0, _PatchWhenImported())


class _PatchWhenImported(MetaPathFinder):
    """Import hook that applies our wrappers right after a module of Ultralytics has been executed."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _PATCHES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_patch(module: ModuleType) -> None:
                run(module)
                _PATCHES[fullname](module)

            spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]  # of this one loader object
        return spec


def _wrap(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Any]) -> None:
    """Wrap a function of Ultralytics wherever it is held; its modules import each other's functions by name."""
    with _lock:
        original = getattr(owner, name)
        if getattr(original, "_meddet", False):
            return
        wrapper: Any = wrap(original)
        wrapper._meddet = True
        theirs = [m for key, m in list(sys.modules.items()) if key.partition(".")[0] == "ultralytics"]
        for holder in (owner, *theirs):
            if vars(holder).get(name) is original:
                setattr(holder, name, wrapper)


def _patch_tasks(tasks: ModuleType) -> None:
    _wrap(tasks, "parse_model", wrap_parse_model)
    _wrap(tasks, "yaml_model_load", wrap_yaml_model_load)
    _wrap(tasks, "torch_safe_load", wrap_torch_safe_load)
    _wrap(tasks.BaseModel, "load", wrap_load)
    _wrap(tasks.DetectionModel, "init_criterion", _wrap_init_criterion)


def _patch_pickles(patches: ModuleType) -> None:
    _wrap(patches, "torch_load", wrap_torch_load)


def _patch_data(utils: ModuleType) -> None:
    from meddet_yolo.registry.label_cache import wrap_load_dataset_cache_file, wrap_save_dataset_cache_file  # NumPy's

    _wrap(utils, "check_det_dataset", wrap_check_det_dataset)
    _wrap(utils, "load_dataset_cache_file", wrap_load_dataset_cache_file)
    _wrap(utils, "save_dataset_cache_file", wrap_save_dataset_cache_file)


def _patch_checks(checks: ModuleType) -> None:
    _wrap(checks, "check_font", wrap_check_font)
    _wrap(checks, "check_amp", wrap_check_amp)


def _patch_cfg(cfg: ModuleType) -> None:
    _wrap(cfg, "get_save_dir", wrap_get_save_dir)


def _patch_autobackend(autobackend: ModuleType) -> None:
    """Let Ultralytics run what we export as it was checked."""
    backends = autobackend.AutoBackend._BACKEND_MAP
    for name, wrap in (("engine", engine_backend), ("openvino", openvino_backend)):
        if not getattr(backends[name], "_meddet", False):
            backends[name] = wrap(backends[name])


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "ultralytics.nn.tasks": _patch_tasks,
    "ultralytics.nn.autobackend": _patch_autobackend,
    "ultralytics.utils.patches": _patch_pickles,
    "ultralytics.data.utils": _patch_data,
    "ultralytics.cfg": _patch_cfg,
    "ultralytics.utils.checks": _patch_checks,
}


def _wrap_init_criterion(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `DetectionModel.init_criterion` that lets a head with a training loss of its own build it."""

    @functools.wraps(original)
    def init_criterion(self: Any) -> Any:
        build = getattr(self.model[-1], "build_criterion", None)
        return original(self) if build is None else build(self)

    return init_criterion
