"""Our layers in model YAMLs: `parse_model` wrapped, so that rows naming them build them."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from meddet_yolo.registry.model_yaml import check_model_yaml

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LAYERS", "import_layers", "names_our_layers", "wrap_parse_model"]


def names_our_layers(d: Mapping[str, Any]) -> bool:
    """Return whether a model YAML names a layer of ours."""
    rows = [row for part in ("backbone", "head") if isinstance(d.get(part), list) for row in d[part]]
    return any(isinstance(row, list) and len(row) > 2 and str(row[2]) in LAYERS for row in rows)


def wrap_parse_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `parse_model` that knows our layers and runs no code that a YAML holds."""
    names = vars(sys.modules[original.__module__])

    @functools.wraps(original)
    def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
        check_model_yaml(d, names, LAYERS)
        rows = [*d["backbone"], *d["head"]]
        ours = {i: _Row.read(i, row) for i, row in enumerate(rows) if row[2] in LAYERS}
        if not ours:
            return original(d, ch, verbose)
        rows = [ours[i].lowered() if i in ours else deepcopy(row) for i, row in enumerate(rows)]
        backbone = len(d["backbone"])
        with _table(ours, verbose) as finish_table:
            layers, save = original({**d, "backbone": rows[:backbone], "head": rows[backbone:]}, ch, verbose)
            for i, row in ours.items():
                layers[i] = row.build(layers, ch)
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

    @property
    def where(self) -> str:
        return f"row {self.index} of the model YAML ({self.name})"

    def check(self) -> None:
        layer = LAYERS[self.name]
        if not 1 <= len(self.args) <= layer.most or any(isinstance(a, Mapping) for a in self.args):
            raise ValueError(f"{self.where}: arguments {[*self.args, self.options]} are not of the form {layer.form}")
        if not layer.repeatable and self.repeats != 1:
            raise ValueError(f"{self.where}: cannot be repeated, got {self.repeats} repeats, expected 1")
        known = layer.options()
        for key in self.options:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1, 0.0)[0]
                raise ValueError(f"{self.where}: unknown option {key!r}, did you mean {near!r}? Known: {sorted(known)}")

    def lowered(self) -> list[Any]:
        """Return the stock row that stands in for this one while Ultralytics builds the model."""
        layer = LAYERS[self.name]
        return [self.source, self.repeats, layer.stand_in, list(self.args) if layer.keeps_arguments else []]

    def build(self, layers: Sequence[Any], ch: int) -> nn.Module:
        """Make our layer and give it the attributes by which Ultralytics routes features.

        Args:
            layers: The model's layers; of ours, those of the rows above are in place already.
            ch: Channels of the images.
        """
        stock = layers[self.index]
        index, source = stock.i, stock.f
        layer: Any = LAYERS[self.name].build(self, stock, layers, ch)
        layer.i, layer.f = index, source
        layer.np = sum(p.numel() for p in layer.parameters())
        ours = type(layer[0] if self.repeats > 1 else layer)
        layer.type = f"{ours.__module__}.{ours.__qualname__}"
        return layer


def _nmode2_detect(row: _Row, stock: Any, layers: Sequence[Any], ch: int) -> nn.Module:
    from meddet_yolo.nn.heads import NmODE2Detect

    return NmODE2Detect.from_detect(stock, **row.options)


def _nmode2_block(row: _Row, stock: Any, layers: Sequence[Any], ch: int) -> nn.Module:
    from torch.nn import Sequential

    from meddet_yolo.nn.blocks import NmODE2Block

    if not isinstance(stock, Sequential):
        return NmODE2Block.from_conv(stock, **row.options)
    blocks: list[Any] = [NmODE2Block.from_conv(conv, **row.options) for conv in stock]
    c1, c2 = blocks[0].conv.in_channels, blocks[0].conv.out_channels
    if c1 != c2:
        raise ValueError(
            f"{row.where}: {len(blocks)} repeats need as many input as output channels, got {c1} and {c2}; put a row "
            "with one block before it"
        )
    return Sequential(*blocks)


def _backbone(row: _Row, stock: Any, layers: Sequence[Any], ch: int) -> nn.Module:
    from meddet_yolo.nn.backbones import Backbone

    if row.index != 0:
        raise ValueError(f"{row.where}: a backbone reads the images, so it must be row 0")
    try:
        return Backbone(row.args[0], ch, **row.options)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error


def _fpn(row: _Row, stock: Any, layers: Sequence[Any], ch: int) -> nn.Module:
    from meddet_yolo.nn.gfl import FPN

    source = row.source if isinstance(row.source, int) else None
    below = None if source is None else layers[source if source >= 0 else row.index + source]
    channels = getattr(below, "channels", None)
    if not isinstance(channels, list):
        raise ValueError(f"{row.where}: reads row {row.source}, which is no Backbone; an FPN needs its list of maps")
    return FPN(channels, *row.args, **row.options)


def _gfl_detect(row: _Row, stock: Any, layers: Sequence[Any], ch: int) -> nn.Module:
    from meddet_yolo.nn.gfl import GFLDetect

    try:
        return GFLDetect(stock.nc, [level[0].conv.in_channels for level in stock.cv2], **row.options)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error


@dataclass(frozen=True)
class _Layer:
    """What is to be known of a layer of ours.

    Attributes:
        module: The module that defines it.
        stand_in: Stock layer that is built in its place first, so that Ultralytics counts channels and links rows.
        form: The arguments of a row, for messages.
        build: Makes it, given its row, the stand-in, the model's layers and the channels of the images.
        options: Names of its options.
        most: Number of arguments before the options, at most.
        keeps_arguments: Whether the stand-in takes the same arguments; otherwise it takes none.
        repeatable: Whether a row may hold several.
    """

    module: str
    stand_in: str
    form: str
    build: Callable[[_Row, Any, Sequence[Any], int], Any]
    options: Callable[[], frozenset[str]]
    most: int = 1
    keeps_arguments: bool = True
    repeatable: bool = False


def _ode_options(*more: str) -> frozenset[str]:
    """Return the options of nmODE² and those that a layer has besides."""
    from meddet_yolo.nn.nmode import NmODE2Activation

    return frozenset({*inspect.signature(NmODE2Activation).parameters, *more})


LAYERS: dict[str, _Layer] = {
    "NmODE2Detect": _Layer(
        "meddet_yolo.nn.heads",
        "Detect",
        "[nc, {options}]",
        _nmode2_detect,
        lambda: _ode_options("branches", "inject", "levels"),
    ),
    "NmODE2Block": _Layer(
        "meddet_yolo.nn.blocks",
        "Conv",
        "[channels, kernel=1, stride=1, {options}]",
        _nmode2_block,
        _ode_options,
        most=3,
        repeatable=True,
    ),
    "Backbone": _Layer(
        "meddet_yolo.nn.backbones",
        "nn.Identity",
        "[name, {options}]",
        _backbone,
        lambda: frozenset({"pretrained", "frozen_bn", "nmode"}),
        keeps_arguments=False,
    ),
    "FPN": _Layer(
        "meddet_yolo.nn.gfl",
        "nn.Identity",
        "[channels, {options}]",
        _fpn,
        lambda: frozenset({"levels", "nmode"}),
        keeps_arguments=False,
    ),
    "GFLDetect": _Layer(
        "meddet_yolo.nn.gfl",
        "Detect",
        "[nc, {options}]",
        _gfl_detect,
        lambda: _ode_options("branches", "inject", "reg_max", "stack"),
    ),
}
"""Our layers by their name in model YAMLs: what parses, checks, builds and loads them reads this table."""


def import_layers() -> None:
    """Import the modules of our layers: safe loading allows a class by the module that defines it."""
    for layer in LAYERS.values():
        import_module(layer.module)


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
