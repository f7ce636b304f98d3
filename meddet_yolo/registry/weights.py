"""Pretrained weights: what was transferred into a model with our layers and what was not."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meddet_yolo.registry.layers import names_our_layers

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TransferReport", "transfer_report", "wrap_load"]

_STARTS_AT_ZERO = re.compile(r"\.act\.factor$|\.(one2one_)?nmode_(cls|reg)\.")  # beside a stock head's layers
_CLASS_PREDICTION = re.compile(r"cv3\.\d+\.2\.(weight|bias)$")


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
    theirs: Mapping[str, Tensor] = _source(weights).state_dict()
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


def wrap_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `BaseModel.load` that reports what was transferred into a model with our layers."""

    @functools.wraps(original)
    def load(self: Any, weights: Any, verbose: bool = True) -> None:
        original(self, weights, verbose)
        if not names_our_layers(self.yaml):
            return
        restarted = _restart_head(self, weights)
        report = transfer_report(self, weights)
        _take_names(self, weights, report)
        if verbose:
            from ultralytics.utils import LOGGER

            log = LOGGER.info if 2 * report.transferred > report.total else LOGGER.warning
            log(f"MedDet: {report}{restarted}")

    return load


def _source(weights: Any) -> Any:
    return (weights.get("ema") or weights["model"]) if isinstance(weights, Mapping) else weights


def _take_names(model: Any, weights: Any, report: TransferReport) -> None:
    """Take over the class names with weights that lack nothing but factors or gates of nmODE², which start at 0.

    Ultralytics does so only where they lack nothing at all.
    """
    names = getattr(_source(weights), "names", {})
    complete = not (report.adapted or report.reshaped) and all(map(_STARTS_AT_ZERO.search, report.missing))
    if report.missing and getattr(model.model[-1], "inject", None) == "conv":  # whose blocks change what is computed
        return
    if complete and getattr(model, "names", None) == {i: str(i) for i in range(len(names))}:
        model.names = dict(names)


def _restart_head(model: Any, weights: Any) -> str:
    """Restart nmODE² in a head that has got the weights of a head without it; return what the log says of it."""
    from meddet_yolo.nn.heads import NmODE2Detect

    source = _source(weights)
    head, given = model.model[-1], getattr(source, "model", [None])[-1]
    if not isinstance(head, NmODE2Detect) or head.inject != "act" or getattr(given, "inject", None) == "act":
        return ""
    head.restart()
    return "; the normalisations before nmODE² start anew, because they were trained for another activation"
