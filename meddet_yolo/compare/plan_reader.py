"""Reading a plan: what a user gave for students, methods, teachers and keys, checked before anything runs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meddet_yolo.compare.plan import Method, Plan, Teacher, with_head
from meddet_yolo.console import as_list
from meddet_yolo.data.mri_noise import MRINoiseConfig
from meddet_yolo.distill.config import METHODS, DistillConfig
from meddet_yolo.model import OWN_KEYS

__all__ = ["make_plan"]

# Keys of a training that a comparison sets itself.
_RESERVED = frozenset(
    {"data", "model", "project", "name", "save_dir", "exist_ok", "resume", "mode", "task", "split", "teachers", "cfg"}
    | {"device", "workers", "seed", "student", "save", "time"}
)
# What all runs have unless told otherwise: no selection of an epoch, so no validation on the way.
_TRAINING: dict[str, Any] = {"plots": False, "val": False, "verbose": False, "cache": "ram", "channels_last": True}
_BUILT_IN = ("none", "native")


def make_plan(student: Any, methods: Any, teachers: Any, seeds: Any, folds: int, training: Mapping[str, Any]) -> Plan:
    """Make a plan of what a user gave.

    Args:
        student: A model, several, or a mapping of names to models.
        methods: Names of methods, or a mapping of names to keys of the training; those of a name that is a method's own
            come on top of it.
        teachers: Checkpoints, model YAMLs, or mappings with `model` and keys of its training.
        seeds: Number of seeds, or the seeds.
        folds: Number of folds.
        training: Keys that all trainings share.

    Raises:
        FileNotFoundError: If a model or checkpoint is not there.
        ValueError: If something is not valid.
    """
    students = _students(student)
    their, warnings = _teachers(teachers, folds)
    plan = Plan(students, _methods(methods, students, their), their, _seeds(seeds), _count("folds", folds),
                {**_TRAINING, **training}, warnings)  # fmt: skip
    _check_keys(plan.training, "the plan")
    for teacher in plan.teachers:
        _check_keys(teacher.keys, f"teacher {teacher.name}")
        _check_values({**plan.training, **teacher.keys}, f"teacher {teacher.name}")
    for method in plan.methods:
        _check_keys(method.keys, f"method {method.name}")
        _check_values({**plan.training, **method.keys}, f"method {method.name}")
    for model in sorted({spec.model for spec in plan.runs()}):
        _check_model(model)
    if len(plan.runs()) < plan.folds * (len(plan.seeds) * len(plan.students) * len(plan.methods) + len(plan.teachers)):
        raise ValueError("two runs of the plan would have one name: give students and methods other names")
    for spec in plan.runs():
        if spec.head:
            with_head(spec.model, spec.head)
    return plan


# Reading what was given -----------------------------------------------------------------------------------------------


def _students(given: Any) -> dict[str, str]:
    if isinstance(given, Mapping):
        students = {_safe(str(name)): str(model) for name, model in given.items()}
    else:
        models = [str(model) for model in as_list(given)]
        students = dict(zip(_names(models), models, strict=True))
    if not students:
        raise ValueError("student= is missing: the model to compare methods on, for example student=meddet11-n.yaml")
    return {name: _full(model) for name, model in students.items()}


def _teachers(given: Any, folds: int) -> tuple[tuple[Teacher, ...], tuple[str, ...]]:
    entries = [given] if isinstance(given, Mapping) else as_list(given)
    models, keys = [], []
    for entry in entries:
        options = dict(entry) if isinstance(entry, Mapping) else {"model": entry}
        if "model" not in options:
            raise ValueError(
                f"teachers: {entry} has no `model`: expected for example {{model: yolo11s.yaml, epochs: 60}}"
            )
        models.append(_full(str(options.pop("model"))))
        keys.append(options)
    teachers = []
    for name, model, options in zip(_names(models), models, keys, strict=True):
        teachers.append(Teacher(name, model, "epochs" in options or model.endswith((".yaml", ".yml")), options))
    given_ones = ", ".join(t.name for t in teachers if not t.trained)
    warning = (
        f"{given_ones}: given checkpoints are used in every fold and may have seen its held-out patients in their own "
        "training; `teachers: [{model: yolo11s.yaml, epochs: 60}]` trains one a fold"
    )
    return tuple(teachers), (warning,) if given_ones and folds > 1 else ()


def _methods(given: Any, students: Mapping[str, str], teachers: Sequence[Teacher]) -> tuple[Method, ...]:
    entries: dict[str, Any] = {}
    for entry in [given] if isinstance(given, Mapping) else as_list(given):
        for name, keys in entry.items() if isinstance(entry, Mapping) else [(str(entry), None)]:
            if str(name) in entries:
                raise ValueError(f"methods: {name} is there twice")
            entries[str(name)] = keys
    if not entries:
        raise ValueError("methods= is missing: for example methods=[none,native,meddet]")
    methods = tuple(_method(name, keys, students, teachers) for name, keys in entries.items())
    lacking = next((m.name for m in methods if m.needs_teachers and not teachers), None)
    if lacking:
        raise ValueError(f"method {lacking} needs a teacher: add teachers= with checkpoints or models to train")
    return methods


def _method(name: str, keys: Any, students: Mapping[str, str], teachers: Sequence[Teacher]) -> Method:
    """Return a method by its name, or made of keys."""
    base: dict[str, Any] = {}
    if name == "native":
        base = {"distill_model": "auto"}
    elif name in METHODS:
        base = {"distill": name}
    elif keys is None and name not in _BUILT_IN:
        known = [*_BUILT_IN, *METHODS]
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)};"
        raise ValueError(f"method {name!r} is unknown: {hint} a plan's YAML can name sets of keys as methods")
    if keys is not None and not isinstance(keys, Mapping):
        raise ValueError(f"method {name} must be keys of a training, such as {{inherit: auto}}, got {keys!r}")
    keys = {**base, **(keys or {})}
    student, head = keys.pop("student", None), keys.pop("head", None) or {}
    if not isinstance(head, Mapping):
        raise ValueError(f"method {name}: head must be options of the head, such as {{inject: gate}}, got {head!r}")
    if isinstance(student, Mapping):
        lacking = set(students) - {str(key) for key in student}
        if lacking:
            raise ValueError(f"method {name}: no model for student {sorted(lacking)[0]} in `student`")
        student = {str(key): _full(str(model)) for key, model in student.items()}
    elif student is not None:
        student = _full(str(student))
    chosen: tuple[str, ...] | None = None
    if keys.get("teachers") is not None:
        by_model = {t.model: t.name for t in teachers}
        chosen = tuple(by_model.get(_full(str(t)), str(t)) for t in as_list(keys["teachers"]))
        unknown = next((t for t in chosen if t not in by_model.values()), None)
        if unknown:
            raise ValueError(f"method {name}: {unknown!r} is none of the teachers {', '.join(by_model.values())}")
    keys.pop("teachers", None)
    return Method(_safe(name), keys, chosen or None, student, head)


def _seeds(given: Any) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool):
        return tuple(range(_count("seeds", given)))
    seeds = [int(s) if str(s).isdigit() else s for s in as_list(given)]
    if not seeds or any(not isinstance(s, int) or isinstance(s, bool) for s in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={given!r}: expected a number of seeds, or a list of different whole numbers")
    return tuple(seeds)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
    return value


def _names(models: Sequence[str]) -> list[str]:
    """Return short names of models, each once."""
    names: list[str] = []
    for model in models:
        stem = _safe(Path(model).stem)
        if stem in {"best", "last"}:
            stem = _safe(next((p.name for p in Path(model).parents if p.name not in {"weights", "train", ""}), stem))
        number = sum(name == stem or re.fullmatch(rf"{re.escape(stem)}\.\d+", name) is not None for name in names)
        names.append(f"{stem}.{number + 1}" if number else stem)
    return names


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


def _full(model: str) -> str:
    """Return a file's absolute path; names that are no file stay."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_file() else model


# Checks ---------------------------------------------------------------------------------------------------------------


def _check_keys(keys: Mapping[str, Any], where: str) -> None:
    """Refuse keys that no training has, or that are the comparison's."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    valid = {*DEFAULT_CFG_DICT, *OWN_KEYS["train"]} - _RESERVED
    for key in keys:
        if key in _RESERVED:
            raise ValueError(f"{where}: {key} is set by the comparison itself")
        if key not in valid:
            near = difflib.get_close_matches(key, valid, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "`meddet cfg` and docs/distil.md have the keys of `train`"
            raise ValueError(f"{where}: {key} is no key of a training: {hint}")
    if keys.get("cache") == "disk":
        raise ValueError(f"{where}: cache=disk would write beside the images: use cache=ram or cache=False")


def _check_values(keys: Mapping[str, Any], where: str) -> None:
    """Refuse values that a training would refuse when it starts."""
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    try:
        get_cfg(overrides={k: v for k, v in keys.items() if k in DEFAULT_CFG_DICT})
        DistillConfig.from_dict({k: v for k, v in keys.items() if k in DistillConfig.keys()})
        MRINoiseConfig.from_options({k: v for k, v in keys.items() if k in MRINoiseConfig.keys()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _check_model(model: str) -> None:
    """Refuse a model that is neither a file nor known by its name."""
    from ultralytics.nn.tasks import yaml_model_load
    from ultralytics.utils.downloads import GITHUB_ASSETS_STEMS

    path = Path(model)
    if path.is_file():
        return
    if path.suffix in {".yaml", ".yml"}:
        yaml_model_load(model)
        return
    if path.name != model or path.stem not in GITHUB_ASSETS_STEMS:
        raise FileNotFoundError(f"{model}: no such file, nor the name of a model")
