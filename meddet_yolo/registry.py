"""The only door to Ultralytics' internals: our layers in YAMLs, shipped files by name, detectors from checkpoints.

Ultralytics has no hook for layers of a plugin, so `register` wraps three of its functions. Every wrapper hands the
work to the original and leaves models without our layers alone:

- `parse_model`: rows that name our layers are lowered to stock rows (`NmODE2Detect` -> `Detect`, `NmODE2Block` ->
  `Conv`), the original builds the model, then ours is made out of each stock layer and put in its place.
- `yaml_model_load`: the bare name of a shipped file, such as `meddet-n.yaml`, is found; a local file of that name wins.
- `BaseModel.load`: says which tensors of pretrained weights were transferred and which were not.

`tests/test_canary.py` fails with a clear message when a new Ultralytics changes what this file leans on.

Importing this module imports neither torch nor Ultralytics: an engine must run in a container that has neither.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import logging
import re
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TransferReport", "load_detector", "register", "resolve_model_yaml", "transfer_report"]

_TASKS = "ultralytics.nn.tasks"
_HOLDERS = ("ultralytics.nn", "ultralytics.engine.model")  # modules that import the wrapped functions by name
_LAYERS = ("meddet_yolo.nn.blocks", "meddet_yolo.nn.heads")
_LOWERED = {"NmODE2Detect": "Detect", "NmODE2Block": "Conv"}
_REFUSED = re.compile(r"unsupported global:? (?:GLOBAL )?(\S+)", re.IGNORECASE)  # in torch's own words
_CLASS_PREDICTION = re.compile(r"cv3\.\d+\.2\.(weight|bias)$")
_lock = threading.RLock()


# -------------------- registration


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
        if _TASKS in sys.modules:
            _patch(importlib.import_module(_TASKS))  # waits for a thread that is still importing it
        elif not any(isinstance(finder, _PatchWhenImported) for finder in sys.meta_path):
            sys.meta_path.insert(0, _PatchWhenImported())


class _PatchWhenImported(MetaPathFinder):
    """Import hook that applies our wrappers right after Ultralytics' parser has been executed."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _TASKS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_patch(module: ModuleType) -> None:
                run(module)
                _patch(module)

            spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]  # of this one loader object
        return spec


def _patch(tasks: ModuleType) -> None:
    """Wrap Ultralytics' functions wherever they are held, and have our layers allowed in safely loaded checkpoints."""
    with _lock:
        for name, wrap in (("parse_model", _wrap_parse_model), ("yaml_model_load", _wrap_yaml_model_load)):
            original = getattr(tasks, name)
            if getattr(original, "_meddet", False):
                continue
            wrapper = wrap(original)
            wrapper._meddet = True  # type: ignore[attr-defined]
            for module in (tasks, *(sys.modules[m] for m in _HOLDERS if m in sys.modules)):
                if getattr(module, name, None) is original:
                    setattr(module, name, wrapper)
        if not getattr(tasks.BaseModel.load, "_meddet", False):
            tasks.BaseModel.load = _wrap_load(tasks.BaseModel.load)
            tasks.BaseModel.load._meddet = True
    for name in _LAYERS:  # each allows its own layers; one that is just importing Ultralytics gets there afterwards
        importlib.import_module(name)


# -------------------- model YAMLs


def _wrap_parse_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `parse_model` that knows our layers."""

    @functools.wraps(original)
    def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
        rows = [*d["backbone"], *d["head"]]
        ours = {i: _Row.read(i, row) for i, row in enumerate(rows) if row[2] in _LOWERED}
        if not ours:
            return original(d, ch, verbose)
        rows = [ours[i].lowered() if i in ours else deepcopy(row) for i, row in enumerate(rows)]
        backbone = len(d["backbone"])
        with _table(ours, verbose) as finish_table:
            layers, save = original({**d, "backbone": rows[:backbone], "head": rows[backbone:]}, ch, verbose)
            for i, row in ours.items():
                layers[i] = row.build(layers[i])
            finish_table(layers)
        return layers, save

    return parse_model


@dataclass
class _Row:
    """A row of a model YAML that names a layer of ours."""

    index: int
    source: Any
    repeats: int
    name: str
    args: list[Any]
    options: dict[str, Any]

    @classmethod
    def read(cls, index: int, row: list[Any]) -> _Row:
        source, repeats, name, args = row
        args = list(args)
        options = args.pop() if args and isinstance(args[-1], Mapping) else {}
        parsed = cls(index, source, repeats, name, args, dict(options))
        parsed.check()
        return parsed

    def check(self) -> None:
        where = f"row {self.index} of the model YAML ({self.name})"
        most = 1 if self.name == "NmODE2Detect" else 3
        if not 1 <= len(self.args) <= most or any(isinstance(a, Mapping) for a in self.args):
            wanted = "[nc, {options}]" if most == 1 else "[channels, kernel=1, stride=1, {options}]"
            raise ValueError(f"{where}: arguments {[*self.args, self.options]} are not of the form {wanted}")
        if self.name == "NmODE2Detect" and self.repeats != 1:
            raise ValueError(f"{where}: a head cannot be repeated, got {self.repeats} repeats, expected 1")
        known = _options(self.name)
        for key in self.options:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1, 0.0)[0]
                raise ValueError(f"{where}: unknown option {key!r}, did you mean {near!r}? Known: {sorted(known)}")

    def lowered(self) -> list[Any]:
        """Return the stock row that stands in for this one while Ultralytics builds the model."""
        return [self.source, self.repeats, _LOWERED[self.name], list(self.args)]

    def build(self, stock: Any) -> nn.Module:
        """Make our layer out of the stock one and give it the attributes by which Ultralytics routes features."""
        from torch.nn import Sequential

        from meddet_yolo.nn.blocks import NmODE2Block
        from meddet_yolo.nn.heads import NmODE2Detect

        index, source = stock.i, stock.f
        ours: type = NmODE2Detect if self.name == "NmODE2Detect" else NmODE2Block
        layer: Any
        if ours is NmODE2Detect:
            layer = NmODE2Detect.from_detect(stock, **self.options)
        elif isinstance(stock, Sequential):  # repeated
            blocks: list[Any] = [NmODE2Block.from_conv(conv, **self.options) for conv in stock]
            c1, c2 = blocks[0].conv.in_channels, blocks[0].conv.out_channels
            if c1 != c2:
                raise ValueError(
                    f"row {self.index} of the model YAML ({self.name}): {len(blocks)} repeats need as many input as "
                    f"output channels, got {c1} and {c2}; put a row with one block before it"
                )
            layer = Sequential(*blocks)
        else:
            layer = NmODE2Block.from_conv(stock, **self.options)
        layer.i, layer.f = index, source
        layer.np = sum(p.numel() for p in layer.parameters())
        layer.type = f"{ours.__module__}.{ours.__qualname__}"
        return layer


def _options(name: str) -> frozenset[str]:
    """Return the options that a layer of ours takes in a model YAML."""
    import inspect

    from meddet_yolo.nn.nmode import NmODE2Activation

    ode = frozenset(inspect.signature(NmODE2Activation).parameters)
    return ode | {"branches", "inject"} if name == "NmODE2Detect" else ode


@contextmanager
def _table(ours: Mapping[int, _Row], verbose: bool) -> Iterator[Callable[[Any], None]]:
    """Make the table that `parse_model` logs show our layers: hold the lines back, then log them with ours put in."""
    from ultralytics.utils import LOGGER

    if not verbose:
        yield lambda layers: None
        return
    held: list[logging.LogRecord] = []
    thread = threading.get_ident()

    def hold(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        held.append(record)
        return False

    def finish(layers: Any) -> None:
        for record in held:
            index = record.getMessage()[:3].strip()
            if index.isdigit() and int(index) in ours:
                row, layer = ours[int(index)], layers[int(index)]
                args = ", ".join([*map(str, row.args), *(f"{k}={v}" for k, v in row.options.items())])
                source = f"{layer.i:>3}{layer.f!s:>20}{row.repeats:>3}"
                record.msg = f"{source}{layer.np:10.0f}  {layer.type:<45}{f'[{args}]':<30}"

    LOGGER.addFilter(hold)
    try:
        yield finish
    finally:
        LOGGER.removeFilter(hold)
        for record in held:
            LOGGER.handle(record)


def _wrap_yaml_model_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `yaml_model_load` that finds shipped files and knows the scale of a file with one scale."""

    @functools.wraps(original)
    def yaml_model_load(path: str | Path) -> dict[str, Any]:
        shipped = None if Path(path).exists() else resolve_model_yaml(path)
        d = original(shipped or path)
        if shipped:
            d["yaml_file"] = str(path)  # as given: checkpoints should not hold paths of this machine
        scales = d.get("scales")
        if isinstance(scales, dict) and len(scales) == 1 and _is_ours(d):
            d["scale"] = next(iter(scales))  # Ultralytics reads it from names like yolo11n only
        return d

    return yaml_model_load


def _is_ours(d: Mapping[str, Any]) -> bool:
    """Return whether a model YAML names a layer of ours."""
    return any(row[2] in _LOWERED for row in [*d["backbone"], *d["head"]])


def resolve_model_yaml(name: str | Path) -> Path | None:
    """Find a model YAML that this package ships.

    Args:
        name: Bare name, with or without suffix: "meddet-n.yaml" or "meddet-n".

    Returns:
        Absolute path of the file, or None if the name has a folder or does not begin with "meddet".

    Raises:
        FileNotFoundError: If the name begins with "meddet" but no such file is shipped; lists those that are.

    Example:
        >>> resolve_model_yaml("meddet-n").name
        'meddet-n.yaml'
        >>> resolve_model_yaml("yolo11n.yaml") is None
        True
    """
    from meddet_yolo.cfg import MODELS_DIR

    name = str(name)
    stem, _, suffix = name.partition(".")
    if not stem.startswith("meddet") or "/" in name or "\\" in name or suffix not in ("", "yaml", "yml"):
        return None
    path = MODELS_DIR / f"{stem}.yaml"
    if path.is_file():
        return path
    shipped = ", ".join(sorted(p.name for p in MODELS_DIR.glob("meddet*.yaml")))
    raise FileNotFoundError(f"model {name!r} is neither a local file nor shipped with meddet_yolo; shipped: {shipped}")


# -------------------- pretrained weights


@dataclass(frozen=True)
class TransferReport:
    """What loading pretrained weights gave a model; `str()` of it is one line.

    Attributes:
        total: Number of tensors of the model.
        adapted: Tensors filled in part: class rows matched by name, a first convolution with other input channels.
        missing: Tensors that the weights do not have; they kept their own values.
        reshaped: Tensors that have another shape in the weights; they kept their own values.
    """

    total: int
    adapted: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    @property
    def transferred(self) -> int:
        """Number of tensors that hold values of the weights."""
        return self.total - len(self.missing) - len(self.reshaped)

    def __str__(self) -> str:
        """Return one line that names the layers that were left out."""
        text = f"{self.transferred}/{self.total} tensors transferred from the pretrained weights"
        if self.adapted:
            text += f", {_by_layer(self.adapted)} in part"
        left = [f"{_by_layer(names)} {why}" for names, why in self._left() if names]
        return text + "".join(f"; not transferred: {part}" for part in left)

    def _left(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        return (self.missing, "(not in the weights)"), (self.reshaped, "(other shape in the weights)")


def transfer_report(model: nn.Module, weights: nn.Module | Mapping[str, Any]) -> TransferReport:
    """Compare a model with the weights that `model.load(weights)` has just loaded into it.

    Args:
        model: The model after loading.
        weights: The source: a model, or a checkpoint with "ema" or "model".

    Returns:
        The report.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 1)
        >>> str(transfer_report(layer, layer))
        '2/2 tensors transferred from the pretrained weights'
    """
    source = (weights.get("ema") or weights["model"]) if isinstance(weights, Mapping) else weights
    theirs: Mapping[str, Tensor] = source.state_dict()
    ours: Mapping[str, Tensor] = model.state_dict()
    adapted: list[str] = []
    missing: list[str] = []
    reshaped: list[str] = []
    for name, tensor in ours.items():
        other = theirs.get(name)
        if other is None:
            missing.append(name)
        elif other.shape != tensor.shape:
            first = name == "model.0.conv.weight" and other.shape[2:] == tensor.shape[2:]
            (adapted if first or _has_rows_by_name(name, ours, theirs) else reshaped).append(name)
    return TransferReport(len(ours), tuple(adapted), tuple(missing), tuple(reshaped))


def _has_rows_by_name(name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is a class prediction that took over rows of another class count by class name."""
    layer = _CLASS_PREDICTION.search(name)
    weights = [state.get(f"{name.rpartition('.')[0]}.weight") for state in (ours, theirs)]
    if not layer or weights[0] is None or weights[1] is None or weights[0].shape[1:] != weights[1].shape[1:]:
        return False
    rows, others = (weight.detach().float().flatten(1) for weight in weights if weight is not None)
    return bool((rows[:, None] == others[None]).all(-1).any())


def _by_layer(names: Iterable[str], most: int = 6) -> str:
    """Summarise tensor names by layer: "model.23.nmode_cls (18), model.23.nmode_reg (18)"."""
    counts = Counter(".".join(name.rpartition(".")[0].split(".")[:3]) for name in names)
    parts = [f"{layer} ({n})" for layer, n in list(counts.items())[:most]]
    return ", ".join(parts) + (f" and {len(counts) - most} more layers" if len(counts) > most else "")


def _wrap_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `BaseModel.load` that reports what was transferred into a model with our layers."""

    @functools.wraps(original)
    def load(self: Any, weights: Any, verbose: bool = True) -> None:
        original(self, weights, verbose)
        if not _is_ours(self.yaml):
            return
        restarted = _restart_head(self, weights)
        if verbose:
            from ultralytics.utils import LOGGER

            report = transfer_report(self, weights)
            log = LOGGER.info if 2 * report.transferred > report.total else LOGGER.warning
            log(f"MedDet: {report}{restarted}")

    return load


def _restart_head(model: Any, weights: Any) -> str:
    """Restart nmODE² in a head that has got the weights of a head without it; return what the log says of it."""
    from meddet_yolo.nn.heads import NmODE2Detect

    source = (weights.get("ema") or weights["model"]) if isinstance(weights, Mapping) else weights
    head, given = model.model[-1], getattr(source, "model", [None])[-1]
    if not isinstance(head, NmODE2Detect) or isinstance(given, NmODE2Detect) or head.inject != "act":
        return ""
    head.restart()
    return "; the normalisations before nmODE² start anew, because they were trained for another activation"


# -------------------- teachers


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
    from ultralytics.nn.modules import Detect
    from ultralytics.nn.tasks import guess_model_task
    from ultralytics.utils import DEFAULT_CFG_DICT

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{file} holds no model; give a checkpoint that Ultralytics has saved")
    detector: Any = model
    detector.args = {**DEFAULT_CFG_DICT, **train_args}
    detector.task = getattr(model, "task", None) or guess_model_task(model)
    layers = getattr(model, "model", None)
    head = layers[-1] if isinstance(layers, torch.nn.Sequential) and len(layers) else None
    if detector.task != "detect" or not isinstance(head, Detect):
        kind = f"{type(model).__name__} for task {detector.task!r}"
        if head is not None:
            kind += f" with head {type(head).__name__}"
        raise TypeError(f"{file} is a {kind}; expected a YOLO detector (task 'detect', head Detect)")
    detector.float().eval()
    detector.pt_path = str(file)
    names = detector.names
    detector.names = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    for m in detector.modules():
        if isinstance(m, torch.nn.Upsample) and not hasattr(m, "recompute_scale_factor"):
            m.recompute_scale_factor = None  # written by torch 1.10 and before
    return detector
