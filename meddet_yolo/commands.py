"""The commands of `meddet` and their keys: ours from signatures and docstrings, Ultralytics' from its `default.yaml`.

Help, completion and the check of keys read this; importing it imports neither torch nor Ultralytics.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from meddet_yolo.signatures import Parameter, find_file, read_constant, read_signature

__all__ = [
    "MODES",
    "OWN_COMMANDS",
    "SUBJECTS",
    "Group",
    "Key",
    "groups_of",
    "keys_of",
    "model_names",
    "own_keys",
    "renamed_keys",
    "shipped",
    "stock_keys",
]

MODES = ("train", "val", "predict", "export")
# Commands of ours beside the modes: the function whose parameters are the command's keys. What it returns is printed: a
# string as it is, a dictionary as key=value lines, the YAML of a data set that was made as data=PATH.
OWN_COMMANDS = {
    "info": "meddet_yolo.evaluate.info:info",
    "benchmark": "meddet_yolo.benchmark:benchmark",
    "compare": "meddet_yolo.compare:compare",
    "convert": "meddet_yolo.data.convert:convert_command",
    "evaluate": "meddet_yolo.evaluate.evaluation:evaluate_command",
    "phantom": "meddet_yolo.phantom:generate_phantom",
    "quickstart": "meddet_yolo.quickstart:quickstart",
    "reproduce": "meddet_yolo.compare:reproduce",
    "slices": "meddet_yolo.imaging.pictures:write_pictures",
}
SUBJECTS = {"reproduce": "what"}  # the key that a word behind a command stands for: `meddet reproduce paper`
_PASSES_ON = {"reproduce": "compare"}  # to which command the keys go that are none of its own; `train` otherwise
# Where what each mode takes beside Ultralytics' keys stands; the first of each group also has its title.
_METHODS = "meddet_yolo.distill.method:METHODS"
_MODE_PARTS = {
    "train": (
        ("meddet_yolo.model:_Guarded.train",),
        ("meddet_yolo.distill.config:RunOptions",),
        (_METHODS,),  # a group for each
        ("meddet_yolo.data.mri_noise:MRINoiseConfig",),
    ),
    "val": (("meddet_yolo.model:MedDet.val",),),
    "predict": (("meddet_yolo.model:MedDet.predict", "meddet_yolo.predict.source:VolumeSource"),),
    "export": (
        (
            "meddet_yolo.model:MedDet.export",
            "meddet_yolo.export.exporter:export",
            "meddet_yolo.trt.request:ExportRequest",
            "meddet_yolo.export.formats:find_format",
        ),
    ),
}
# Parameters of those that are for Python alone.
_INTERNAL = {"trainer", "validator", "predictor", "stream", "images", "options", "spelling"}
# Sections of Ultralytics' file that concern a mode; that of training holds what all modes have in common, too.
_SECTIONS = {
    "train": ("Train settings", "Val/Test settings", "Hyperparameters"),
    "val": ("Val/Test settings", "Train settings"),
    "predict": ("Predict settings", "Visualize settings", "Val/Test settings", "Train settings"),
    "track": ("Tracker settings", "Predict settings", "Visualize settings", "Val/Test settings", "Train settings"),
    "export": ("Export settings", "Val/Test settings", "Train settings"),
}
_UNLISTED = {"augmentations", "save_dir"}  # which Ultralytics takes although its file does not name them


@dataclass(frozen=True)
class Key(Parameter):
    """One key of a command.

    Attributes:
        ours: Whether it is ours and not Ultralytics'.
    """

    ours: bool = True


@dataclass(frozen=True)
class Group:
    """Keys that belong together, under a title."""

    title: str
    keys: tuple[Key, ...]


def groups_of(command: str) -> tuple[Group, ...]:
    """Return the keys of a command that are worth showing, ours first; of `cfg`, those of all modes.

    Examples:
        >>> [key.name for key in groups_of("val")[0].keys]
        ['noise', 'sigma']
    """
    if command in OWN_COMMANDS:
        signature = read_signature(OWN_COMMANDS[command])
        return (Group(signature.summary, tuple(_key(parameter) for parameter in signature.parameters)),)
    if command == "cfg":
        ours = [group for mode in MODES for group in _mode_groups(mode)]
        return (*ours, *_stock_groups())
    stock = {group.title: group for group in _stock_groups()}
    return (*_mode_groups(command), *(stock[title] for title in _SECTIONS.get(command, ()) if title in stock))


def own_keys(mode: str) -> dict[str, Key]:
    """Return our keys of a mode by name."""
    return {key.name: key for group in _mode_groups(mode) for key in group.keys}


@cache
def keys_of(command: str) -> dict[str, Key]:
    """Return every key that a command takes by name, those of training among `compare`'s.

    Examples:
        >>> keys_of("train")["distill"].default, keys_of("train")["epochs"].ours
        ('meddet', False)
    """
    if command in OWN_COMMANDS:
        own = {key.name: key for group in groups_of(command) for key in group.keys}
        more = read_signature(OWN_COMMANDS[command]).takes_more
        return {**keys_of(_PASSES_ON.get(command, "train")), **own} if more else own
    stock = {key.name: key for group in _stock_groups() for key in group.keys}
    return {**{name: Key(name, ours=False) for name in _UNLISTED}, **stock, **own_keys(command)}


def stock_keys() -> frozenset[str]:
    """Return the names of Ultralytics' keys."""
    return frozenset(key.name for group in _stock_groups() for key in group.keys) | _UNLISTED


@cache
def renamed_keys() -> frozenset[str]:
    """Return words that Ultralytics' translation of its former keys mentions, such keys among them."""
    source = (_ultralytics() / "cfg" / "__init__.py").read_text(encoding="utf-8")
    functions = re.findall(r"^def \w*deprecat\w*\(.*?(?=^\S)", source, re.MULTILINE | re.DOTALL)
    return frozenset(word for function in functions for word in re.findall(r"[\"'](\w+)[\"']", function))


def model_names() -> list[str]:
    """Return the names of detectors' YAMLs, ours first, Ultralytics' with every scale that a file has.

    Examples:
        >>> names = model_names()
        >>> "meddet-n.yaml" in names, "yolo11s.yaml" in names, "yolo11n-seg.yaml" in names
        (True, True, False)
    """
    names = [*shipped("models")]
    for file in sorted((_ultralytics() / "cfg" / "models").glob("*/yolo*.yaml")):
        if re.fullmatch(r"yolov?\d+[a-z]?", file.stem):
            block = re.search(r"^scales:.*\n((?:[ #].*\n)+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            scales = re.findall(r"^ +(\w): *\[", block[1], re.MULTILINE) if block else []
            names += [f"{file.stem}{scale}.yaml" for scale in scales] or [file.name]
    return names


def shipped(folder: str) -> list[str]:
    """Return the names of our files in `models`, `distill` (recipes) or `datasets`."""
    return sorted(file.name for file in (find_file("meddet_yolo.cfg").parent / folder).glob("*.yaml"))


# Ours -----------------------------------------------------------------------------------------------------------------


def _key(parameter: Parameter) -> Key:
    return Key(parameter.name, parameter.type, parameter.default, parameter.meaning, parameter.choices)


@cache
def _mode_groups(mode: str) -> tuple[Group, ...]:
    taken = {key.name for group in _stock_groups() for key in group.keys} | _INTERNAL
    groups = []
    for targets in _targets(mode):
        signatures = [read_signature(target) for target in targets]
        keys: list[Key] = []
        for parameter in (p for signature in signatures for p in signature.parameters):
            if parameter.name not in taken:
                taken.add(parameter.name)
                keys.append(_key(parameter))
        if keys:
            groups.append(Group(signatures[0].summary, tuple(keys)))
    return tuple(groups)


def _targets(mode: str) -> Iterator[tuple[str, ...]]:
    for part in _MODE_PARTS.get(mode, ()):
        if part == (_METHODS,):
            yield from ((f"{method}.Options",) for method in read_constant(_METHODS).values())
        else:
            yield part


# Ultralytics' ---------------------------------------------------------------------------------------------------------


def _ultralytics() -> Path:
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'ultralytics'", name="ultralytics")
    return Path(spec.origin).parent


@cache
def _stock_groups() -> tuple[Group, ...]:
    """Read the sections of Ultralytics' file; the comment of a line is the key's help."""
    import yaml

    text = (_ultralytics() / "cfg" / "default.yaml").read_text(encoding="utf-8")
    values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C where there is it: ten times faster
    title, groups = "General", dict[str, list[Key]]()
    for line in text.splitlines():
        if section := re.fullmatch(r"# (.+?)(?: -+)?", line):
            title = section[1]
        elif found := re.match(r"(\w+):.*?#\s*(?:\((.*?)\))?\s*(.*)", line):
            name, kind, meaning = found.groups()
            kind = (kind or "").replace(", optional", "").replace("|", " | ").replace("  ", " ")
            groups.setdefault(title, []).append(Key(name, kind, values[name], meaning, _listed(meaning), ours=False))
    return tuple(Group(title, tuple(keys)) for title, keys in groups.items())


def _listed(meaning: str) -> tuple[str, ...]:
    """Return the choices that a comment of Ultralytics lists, as in `e.g. a|b|c`."""
    found = re.search(r"\be\.g\. (\w+(?:\|\w+)+)", meaning)
    return tuple(found[1].split("|")) if found else ()
