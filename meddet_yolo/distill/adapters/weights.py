"""Weights from files that are no checkpoints of Ultralytics', read without executing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["load_exactly", "read_weights"]

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")


def read_weights(file: str) -> dict[str, Tensor]:
    """Read a state dict: a `.safetensors` file, or one of `torch.save`, as it is or under its customary keys.

    Args:
        file: Path of the file.

    Raises:
        ValueError: If the file is damaged, holds more than weights, or holds none.
    """
    state: Any
    try:
        if Path(file).suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(f"{file} cannot be read as weights alone ({reason}); save model.state_dict()") from error
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{file} holds no state dict; save model.state_dict()")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], source: str, ignored: Callable[[str], bool]) -> None:
    """Load weights into a model, all of them and into every tensor.

    Args:
        model: What is loaded into.
        state: The weights.
        source: What to call them in messages.
        ignored: Says of a name of `state` that it belongs to a part that the model lacks on purpose.

    Raises:
        ValueError: If a tensor is missing, left over or of another shape.

    Examples:
        >>> load_exactly(nn.Linear(2, 1), {"weight": torch.zeros(1, 2)}, "a.pth", lambda name: False)
        Traceback (most recent call last):
        ...
        ValueError: a.pth does not fit the model: 1 of 2 tensors missing (bias), 0 unknown
    """
    own = model.state_dict()
    kept = {name: value for name, value in state.items() if name in own or not ignored(name)}
    missing = [name for name in own if name not in kept]
    unknown = [name for name in kept if name not in own]
    if missing or unknown:
        names = ", ".join([*missing, *unknown][:2])
        raise ValueError(
            f"{source} does not fit the model: {len(missing)} of {len(own)} tensors missing ({names}), "
            f"{len(unknown)} unknown"
        )
    for name, value in kept.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{source} does not fit the model: {name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}"
            )
    model.load_state_dict(kept)
