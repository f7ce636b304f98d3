"""What a model YAML may say: Ultralytics evaluates its activation as Python, and calls whatever its rows name."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from typing import Any

from meddet_yolo.registry.trust import is_trusted

__all__ = ["check_model_yaml"]

_LONGEST = 200  # characters of an argument: Ultralytics parses strings as Python literals, and some are hard to parse
_MOST_REPEATS = 1000


def check_model_yaml(d: Mapping[str, Any], names: Mapping[str, Any], ours: Collection[str]) -> None:
    """Refuse a model YAML that would run code when the model is built, unless files are trusted.

    Args:
        d: Its contents.
        names: By name, what Ultralytics' parser finds when a row names a layer.
        ours: Names of our layers.

    Raises:
        ValueError: If the activation is no activation of `torch.nn` with literal arguments, a row is not of the form
            [from, repeats, layer, arguments], names something that is no layer, or has an argument or a number of
            repeats beyond all use.
    """
    if is_trusted():
        return
    where = f"model YAML {d['yaml_file']}" if d.get("yaml_file") else "the model YAML"
    if d.get("activation"):
        _check_activation(d["activation"], where)
    for index, row in enumerate([*_rows(d, "backbone", where), *_rows(d, "head", where)]):
        if not isinstance(row, list | tuple) or len(row) != 4 or not isinstance(row[3], list | tuple):
            raise ValueError(f"{where}: row {index} is {_short(row)}, expected [from, repeats, layer, [arguments]]")
        name = row[2]
        if name not in ours and not _is_layer(name, names):
            raise ValueError(f"{where}: row {index} names {_short(name)}, which is no layer of torch or Ultralytics")
        if not isinstance(row[1], int) or not 0 <= row[1] <= _MOST_REPEATS:
            raise ValueError(
                f"{where}: row {index} repeats {_short(row[1])} times, expected a number up to {_MOST_REPEATS}"
            )
        for argument in row[3]:
            if isinstance(argument, str) and len(argument) > _LONGEST:
                raise ValueError(
                    f"{where}: row {index} ({name}) has an argument of {len(argument)} characters, expected at most "
                    f"{_LONGEST}"
                )


def _rows(d: Mapping[str, Any], part: str, where: str) -> Any:
    rows = d.get(part)
    if not isinstance(rows, list | tuple):
        raise ValueError(f"{where}: `{part}` is {_short(rows)}, expected a list of [from, repeats, layer, [arguments]]")
    return rows


def _is_layer(name: Any, names: Mapping[str, Any]) -> bool:
    """Return whether a row's name is a class of layers, found as Ultralytics finds it."""
    import torchvision
    from torch import nn

    if not isinstance(name, str):
        return False
    for prefix, home in (("nn.", vars(nn)), ("torchvision.ops.", vars(torchvision.ops)), ("", names)):
        if name.startswith(prefix):
            found = home.get(name.removeprefix(prefix))
            return isinstance(found, type) and issubclass(found, nn.Module)
    return False


def _check_activation(text: Any, where: str) -> None:
    """Refuse an activation that is not of the form `nn.SiLU()` or `torch.nn.LeakyReLU(0.1)`."""
    from torch.nn.modules import activation

    try:
        call = ast.parse(text.strip(), mode="eval").body if len(text) <= _LONGEST else None
        assert isinstance(call, ast.Call)
        home, _, name = ast.unparse(call.func).rpartition(".")
        assert home in {"nn", "torch.nn"} and name in activation.__all__
        for value in [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg)]:
            ast.literal_eval(value)
        assert all(keyword.arg for keyword in call.keywords)
    except Exception as error:  # parsing what was made to hurt raises many things
        raise ValueError(
            f"{where}: activation is {_short(text)}, expected one of torch.nn with plain arguments, such as nn.SiLU() "
            "or nn.LeakyReLU(0.1); anything else would be run as code, which trust=true allows"
        ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
