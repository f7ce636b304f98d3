"""The words and keys of the command line, read as `yolo` reads them.

Nothing here imports torch or Ultralytics before a command is known to be one: a slip of the pen is told at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from meddet_yolo.commands import MODES, OWN_COMMANDS, SUBJECTS, keys_of, own_keys, renamed_keys
from meddet_yolo.console import as_list, describe, read_keys
from meddet_yolo.signatures import REQUIRED as NEEDED

__all__ = [
    "MODES",
    "REQUIRED",
    "TASKS",
    "THEIR_COMMANDS",
    "THEIR_MODES",
    "UsageError",
    "check_command",
    "check_keys",
    "check_own",
    "is_other_family",
    "nearest",
    "needed_keys",
    "parse",
    "read_recipe",
    "read_simply",
    "take_trust",
]

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
_OTHER_FAMILIES = ("rtdetr", "fastsam", "sam_", "sam2_", "sam2.1_", "sam3", "mobile_sam", "yolo_nas")
_PLAIN = re.compile(r"\w+=(?:\[[^\[\]]*\]|[^\s\[\]][^\[\]]*)")


class UsageError(Exception):
    """The command line itself is wrong; exit code 2."""


def check_command(args: Sequence[str], own: Collection[str]) -> None:
    """Refuse what can be no command, or has wrong keys, without importing torch or Ultralytics.

    What is written in a way that takes more to read passes, and so does what is for Ultralytics.

    Args:
        args: The arguments.
        own: Our commands beside the modes.

    Raises:
        UsageError: If there is no such command or key, or a needed key is missing.

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
    words, options = read_simply(args) or ([], {})
    mode, task = (next((w for w in words if w in names), "") for names in (THEIR_MODES, TASKS))
    if mode not in MODES or task not in {"", "detect"} or {"task", "mode"} & options.keys():
        return
    if is_other_family(options.get("model")):
        return
    for word in words:
        flag = keys_of(mode).get(word)
        if word not in {mode, task} and not (flag and isinstance(flag.default, bool)):
            raise UsageError(f"{word!r} is neither a command nor key=value (`meddet help {mode}` lists the keys)")
    elsewhere = {"cfg", "resume"} & {*words, *options}
    missing = [key for key in needed_keys(mode) if key not in options and not elsewhere]
    check_keys(mode, options, missing)
    if missing:
        raise UsageError(f"{missing[0]}= is missing: {REQUIRED[mode][missing[0]]}")


def check_keys(mode: str, keys: Collection[str], missing: Collection[str] = ()) -> None:
    """Refuse keys that a mode does not know; those that Ultralytics has renamed pass.

    Args:
        mode: train, val, predict or export.
        keys: The keys.
        missing: Keys that are needed and not among them, of which one may be meant.

    Raises:
        UsageError: If a key is unknown, or of another mode.

    Examples:
        >>> check_keys("train", ["modle"], ["model"])
        Traceback (most recent call last):
        ...
        meddet_yolo.arguments.UsageError: modle= is no argument of `meddet train`: did you mean 'model'?
    """
    valid = keys_of(mode)
    for key in keys:
        if key in valid or key in renamed_keys():
            continue
        if home := next((m for m in MODES if key in own_keys(m)), None):
            raise UsageError(f"{key}= is an argument of `meddet {home}`, not of `meddet {mode}`")
        raise _unknown(key, mode, valid, missing)


def check_own(command: str, words: Sequence[str], keys: Collection[str] | None) -> None:
    """Refuse what a command of ours does not take.

    Args:
        command: One of `OWN_COMMANDS`.
        words: Arguments that are not key=value.
        keys: The keys; None where they are not known yet.

    Raises:
        UsageError: If a key is unknown or missing, or there are words that the command has no use for.
    """
    if len(words) > (command in SUBJECTS):
        raise UsageError(f"{words[-1]!r} is not understood: `meddet {command}` takes key=value only")
    if keys is None:
        return
    valid = keys_of(command)
    missing = [key for key in needed_keys(command) if key not in keys]
    for key in keys:
        if key not in valid:
            raise _unknown(key, command, valid, missing)
    if missing:
        raise UsageError(f"{missing[0]}= is missing: `meddet {command} {missing[0]}=...`")


def needed_keys(command: str) -> list[str]:
    """Return the keys that a command cannot do without.

    Examples:
        >>> needed_keys("predict"), needed_keys("slices")
        (['model', 'source'], ['source', 'out'])
    """
    if command in OWN_COMMANDS:
        return [key for key, about in keys_of(command).items() if about.ours and about.default is NEEDED]
    return list(REQUIRED.get(command, ()))


def _unknown(key: str, command: str, valid: Collection[str], missing: Collection[str]) -> UsageError:
    """Return the error about an unknown key: what is missing is meant before what is merely similar."""
    near = difflib.get_close_matches(key, missing, 1)
    hint = nearest(key, near or valid, f"meddet help {command}")
    return UsageError(f"{key}= is no argument of `meddet {command}`: {hint}")


def is_other_family(model: Any) -> bool:
    """Return whether a model file's name is of a family that Ultralytics builds with a class of its own."""
    return any(part in Path(str(model)).stem.lower() for part in _OTHER_FAMILIES)


def read_simply(args: Sequence[str]) -> tuple[list[str], dict[str, str]] | None:
    """Split arguments into words and options without Ultralytics' help; None where that takes more.

    Examples:
        >>> read_simply(["train", "--model=a.yaml", "teachers=[a.pt,b.pt]"])
        (['train'], {'model': 'a.yaml', 'teachers': '[a.pt,b.pt]'})
        >>> read_simply(["imgsz", "=", "64"])
    """
    words, options = [], {}
    for argument in args:
        plain = argument.removeprefix("--").removesuffix(",")
        if _PLAIN.fullmatch(plain):
            key, _, options[key] = plain.partition("=")
        elif re.fullmatch(r"-{0,2}\w+", plain):
            words.append(plain)
        else:
            return None
    return words, options


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


def nearest(name: str, valid: Collection[str], command: str = "meddet help") -> str:
    """Return the end of a message about an unknown name: the nearest valid one, all of a few, or what lists them."""
    near = difflib.get_close_matches(name, valid, 1, 0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"valid are {', '.join(sorted(valid))}" if len(valid) < 20 else f"see `{command}`"
