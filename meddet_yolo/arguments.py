"""The words and keys of the command line, read as `yolo` reads them.

Nothing here imports torch or Ultralytics before a command is known to be one: a slip of the pen is told at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from meddet_yolo.console import as_list, describe, read_keys

__all__ = [
    "MODES",
    "REQUIRED",
    "TASKS",
    "THEIR_COMMANDS",
    "THEIR_MODES",
    "UsageError",
    "check_command",
    "nearest",
    "parse",
    "read_recipe",
    "take_trust",
]

MODES = ("train", "val", "predict", "export")
REQUIRED = {
    "train": {
        "model": "what to train, for example model=meddet-n.yaml",
        "data": "the data set, for example data=d.yaml",
    },
    "val": {"model": "the checkpoint to validate, for example model=best.pt"},
    "predict": {
        "model": "the checkpoint to predict with, for example model=best.pt",
        "source": "an image, a folder or a video, for example source=images/",
    },
    "export": {"model": "the checkpoint to export, for example model=best.pt"},
}
THEIR_COMMANDS = ("checks", "cfg", "copy-cfg", "login", "logout", "solutions")  # besides modes
# Ultralytics' own, which a test compares with these: importing them takes seconds.
THEIR_MODES = (*MODES, "track", "benchmark")
TASKS = ("detect", "segment", "semantic", "depth", "classify", "pose", "obb")
_PLAIN = re.compile(r"-{0,2}(\w+)=(?:\[[^\[\]]*\]|[^\s\[\]][^\[\]]*)")


class UsageError(Exception):
    """The command line itself is wrong; exit code 2."""


def check_command(args: Sequence[str], own: Collection[str]) -> None:
    """Refuse what can be no command, or lacks its model, without importing anything.

    What is written in a way that takes more to read passes.

    Args:
        args: The arguments.
        own: Our commands beside the modes.

    Raises:
        UsageError: If there is no such command, or `model` is missing.

    Examples:
        >>> check_command(["train", "model=a.yaml", "data=d.yaml"], ["info"])
        >>> check_command(["inof"], ["info"])
        Traceback (most recent call last):
        ...
        meddet_yolo.arguments.UsageError: 'inof' is no command: did you mean 'info'? (`meddet help` lists them)
    """
    known = (*own, *THEIR_MODES, *TASKS, *THEIR_COMMANDS)
    words = [a.removeprefix("--").removesuffix(",") for a in args]
    is_word = bool(args) and "=" not in args[0] and not "".join(args[1:2]).startswith("=")
    if is_word and not any(word in (*known, "mode") or word.startswith("mode=") for word in words):
        raise UsageError(f"{words[0]!r} is no command: {nearest(words[0], known)} (`meddet help` lists them)")
    mode, *rest = words or [""]
    keys = [found[1] if (found := _PLAIN.fullmatch(word)) else "" for word in rest]
    if mode not in MODES or "" in keys or {"cfg", "resume", "task", "mode"} & set(keys):
        return
    if not difflib.get_close_matches("model", keys):
        raise UsageError(f"model= is missing: {REQUIRED[mode]['model']}")


def take_trust(args: Sequence[str]) -> tuple[list[str], bool]:
    """Take `trust=true` out of the arguments: it holds for whatever the command reads.

    Examples:
        >>> take_trust(["val", "model=a.pt", "trust=true"]), take_trust(["--trust", "train"])
        ((['val', 'model=a.pt'], True), (['train'], True))
    """
    rest, trust = [], False
    for argument in args:
        key, equals, value = argument.removeprefix("--").partition("=")
        if key.strip() != "trust":
            rest.append(argument)
        elif not equals or value.strip().lower() in {"true", "false"}:
            trust = value.strip().lower() != "false"
        else:
            raise UsageError(f"{argument}: expected trust=true or trust=false")
    return rest, trust


def parse(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split arguments into words and options, values converted as `yolo` does.

    Examples:
        >>> parse(["train", "teachers=[a.pt,", "b.pt]", "imgsz", "=", "256", "trust"])
        (['train'], {'teachers': ['a.pt', 'b.pt'], 'imgsz': 256, 'trust': True})
    """
    from ultralytics.cfg import merge_equals_args, parse_key_value_pair
    from ultralytics.utils import DEFAULT_CFG_DICT

    from meddet_yolo.distill.config import DistillConfig

    flags = {k for k, v in {**DEFAULT_CFG_DICT, **DistillConfig.defaults()}.items() if isinstance(v, bool)}
    words: list[str] = []
    options: dict[str, Any] = {}
    try:
        merged = merge_equals_args(list(args))
    except SyntaxError as error:
        raise UsageError(describe(error)) from error
    for argument in merged:
        argument = argument.removeprefix("--").removesuffix(",")
        if "=" not in argument:
            if argument in flags and argument not in THEIR_MODES:  # `val` is both
                options[argument] = True
            else:
                words.append(argument)
            continue
        try:
            key, value = parse_key_value_pair(argument)
        except AssertionError as error:
            raise UsageError(f"{argument!r} has no value: write {argument}VALUE") from error
        if not key:
            raise UsageError(f"{argument!r} has no key: write key=value")
        options[key] = as_list(value) if key in {"teachers", "distill"} else value
    return words, options


def read_recipe(cfg: Any) -> dict[str, Any]:
    """Read a recipe: a YAML file, or the bare name of one that the package ships."""
    import meddet_yolo.cfg

    shipped = Path(meddet_yolo.cfg.__file__).parent / "distill"
    path = Path(str(cfg)).expanduser()
    if not path.is_file() and path.name == str(cfg):
        path = shipped / path.with_suffix(".yaml").name
    if not path.is_file():
        names = ", ".join(sorted(p.name for p in shipped.glob("*.yaml")))
        raise FileNotFoundError(f"cfg={cfg}: no such file, and no recipe that is shipped ({names})")
    recipe = read_keys(path, f"cfg={cfg}")
    recipe.pop("cfg", None)
    if recipe.pop("trust", False) is not False:
        raise UsageError(f"cfg={cfg} says trust: that is the command line's to say, because a recipe is a file too")
    return recipe


def nearest(name: str, valid: Collection[str]) -> str:
    """Return the end of a message about an unknown name: the nearest valid one, or all of a few."""
    near = difflib.get_close_matches(name, valid, 1, 0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"valid are {', '.join(sorted(valid))}" if len(valid) < 20 else "see `meddet help`"
