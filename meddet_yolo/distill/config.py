"""Options of a distillation run: those that every run has, and those of the methods that it uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meddet_yolo.distill.classes import read_class_maps
from meddet_yolo.distill.method import METHODS, method_class
from meddet_yolo.distill.options import Options, choice, count, flag, nearest, number

__all__ = ["DistillConfig", "RunOptions"]


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What every distillation run has, whatever its method; all of them plain YAML types.

    The weights and the schedule are our own decisions: the MedDet paper (arXiv 2409.00204) gives none.

    Attributes:
        teachers: Checkpoints of the teachers, one or more; also `timm:NAME` and `torchvision:NAME`, or
            `timm:NAME@FILE`.
        distill: Distillation method, or a list of several whose terms are added.
        trust: Load teacher checkpoints without safe mode. A checkpoint is a pickle and can run code: only for files you
            made or trust.
        inherit: Where a student that starts from a model YAML without `pretrained=` takes its first weights
            from: `auto` (the smallest teacher of its family that is at least as wide and deep, if there is one),
            `none`, or a checkpoint, which need not be a teacher.
        teacher_imgsz: Input size of the teachers: one for all or a list of one each; None is the student's.
        teacher_classes: Which of a teacher's classes stand for which of the data set's, names or indices, such as
            `{disc: 0}`; for several teachers a list of one each. None: a teacher of the same classes serves with its
            predictions, one of another number of classes with its features alone.
        unlabelled: Images without labels that the teachers show the student too: a folder, a `.txt` list, or a data
            set's YAML (its `unlabelled`, or else its `train`). The detection loss never sees them.
        unlabelled_batch: How many of them go with each labelled image of a batch, above 0.
        distill_warmup: Epochs over which the weights of the distillation terms rise linearly from 0, at least 0;
            fractions allowed.
        distill_schedule: What the weights do after the warm-up: `constant`, or `cosine`, which lets them fall to a
            tenth by the end of distillation.
        distill_stop: Last epochs without distillation, at least 0; None ends it where mosaic does (`close_mosaic`, if
            the run has mosaic and more epochs than that).
        drown_warning: Warn when the distillation terms exceed this share of the student's total loss, in (0, 1].

    Raises:
        ValueError: A value is of the wrong type, out of range or not among the choices.

    Examples:
        >>> RunOptions(teachers="s.pt", teacher_imgsz=320).teacher_sizes()
        [320]
    """

    teachers: list[str] = field(default_factory=list)
    distill: str | list[str] = "meddet"
    trust: bool = False
    inherit: str = "auto"
    teacher_imgsz: int | list[int] | None = None
    teacher_classes: dict[Any, Any] | list[dict[Any, Any] | None] | None = None
    unlabelled: str | None = None
    unlabelled_batch: float = 1.0
    distill_warmup: float = 3.0
    distill_schedule: str = "constant"
    distill_stop: int | None = None
    drown_warning: float = 0.5

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        self.put("teachers", _paths(self.teachers))
        self.put("distill", _methods(self.distill))
        flag("trust", self.trust)
        self.put("inherit", _source(self.inherit))
        self.put("teacher_imgsz", _sizes(self.teacher_imgsz, len(self.teachers)))
        self.put("teacher_classes", read_class_maps(self.teacher_classes, len(self.teachers)))
        self.put("unlabelled", _images(self.unlabelled))
        self.put("unlabelled_batch", number("unlabelled_batch", self.unlabelled_batch, low=0, open_low=True))
        self.put("distill_warmup", number("distill_warmup", self.distill_warmup, low=0))
        self.put("distill_schedule", choice("distill_schedule", self.distill_schedule, ("constant", "cosine")))
        self.put("distill_stop", _stop(self.distill_stop))
        self.put("drown_warning", number("drown_warning", self.drown_warning, low=0, high=1, open_low=True))

    @property
    def methods(self) -> list[str]:
        """The names of the methods, one or more."""
        return [self.distill] if isinstance(self.distill, str) else list(self.distill)

    def teacher_sizes(self) -> list[int | None]:
        """Return the input size of every teacher, None where it is the student's."""
        if isinstance(self.teacher_imgsz, list):
            return list(self.teacher_imgsz)
        return [self.teacher_imgsz] * len(self.teachers)

    def class_maps(self) -> list[dict[Any, Any] | None]:
        """Return every teacher's mapping of its classes to the data set's, None where nothing is said."""
        if isinstance(self.teacher_classes, list):
            return list(self.teacher_classes)
        return [self.teacher_classes] * len(self.teachers)


@dataclass(frozen=True)
class DistillConfig:
    """All options of one distillation run.

    On the command line, in a recipe and in `train()` they are keys side by side; here they are parted by whom they
    concern.

    Attributes:
        run: What every run has.
        methods: The options of each method that the run uses, by its name, in the order of `distill`.

    Examples:
        >>> config = DistillConfig.from_dict({"teachers": "s.pt", "dist_weight": 2})
        >>> config.run.teachers, config.methods["meddet"].dist_weight
        (['s.pt'], 2.0)
        >>> DistillConfig.from_dict({"dist_wieght": 2})
        Traceback (most recent call last):
        ...
        ValueError: Unknown distillation option 'dist_wieght': did you mean 'dist_weight'?
    """

    run: RunOptions
    methods: dict[str, Any]

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> DistillConfig:
        """Build from a mapping of keys; those left out have their defaults.

        Raises:
            ValueError: A key is unknown (the nearest valid one is named), a value is not valid, or an option of a
                method that the run does not use is given a value other than its default.
        """
        valid = cls.defaults()
        for key in options:
            if key not in valid:
                raise ValueError(f"Unknown distillation option {key!r}: {nearest(str(key), sorted(valid))}")
        run = RunOptions(**{k: v for k, v in options.items() if k in RunOptions.keys()})
        methods = {}
        for name in run.methods:
            kind = method_class(name).Options
            methods[name] = kind(**{k: v for k, v in options.items() if k in kind.keys()})
        used = {*RunOptions.keys(), *(key for chosen in methods.values() for key in chosen.keys())}
        for key, value in options.items():
            if key not in used and value != valid[key]:
                owners = [name for name in METHODS if key in method_class(name).Options.keys()]
                raise ValueError(
                    f"{key}={value} is an option of distill={' or '.join(owners)}, but this run has "
                    f"distill={','.join(run.methods)}; leave it out or choose that method."
                )
        return cls(run, methods)

    @classmethod
    def kinds(cls) -> dict[str, type[Options]]:
        """Return every class of options by whom it concerns: "run", then each method's name."""
        return {"run": RunOptions, **{name: method_class(name).Options for name in METHODS}}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return every key, those of all methods, with its default."""
        return {key: value for kind in cls.kinds().values() for key, value in kind.defaults().items()}

    @classmethod
    def keys(cls) -> frozenset[str]:
        """Return the names of all keys."""
        return frozenset(cls.defaults())

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Return one paragraph on every key, for help and documentation."""
        return {key: text for kind in cls.kinds().values() for key, text in kind.meanings().items()}


def _methods(value: Any) -> str | list[str]:
    """Check the names of the methods; one alone is a string."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, Sequence) or not given:
        raise ValueError(f"distill must be a method or a list of them, such as meddet, got {value!r}.")
    names = [choice("distill", name, tuple(METHODS)) for name in given]
    if len(set(names)) != len(names):
        raise ValueError(f"distill names a method twice: {', '.join(names)}.")
    return names[0] if len(names) == 1 else names


def _paths(value: Any) -> list[str]:
    """Return the teachers as a list of strings."""
    if value is None:
        return []
    given = [value] if isinstance(value, str | Path) else value
    if not isinstance(given, Sequence) or not all(isinstance(p, str | Path) and str(p).strip() for p in given):
        raise ValueError(f"teachers must be a checkpoint path or a list of them, such as [a.pt, b.pt], got {value!r}.")
    return [str(p) for p in given]


def _source(value: Any) -> str:
    """Check whom a student inherits from: a word, or the path of a checkpoint."""
    if value in (None, False):
        return "none"
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError(f"inherit must be auto, none or the path of a checkpoint, got {value!r}.")
    return str(value).lower() if str(value).lower() in {"auto", "none"} else str(value)


def _images(value: Any) -> str | None:
    """Check where images without labels are."""
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError(f"unlabelled must be a folder, a .txt list of images or a data set's YAML, got {value!r}.")
    return str(value)


def _stop(value: Any) -> int | None:
    """Check the number of epochs at the end that go without distillation."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise ValueError(f"distill_stop must be a whole number of 0 or more, or empty, got {value!r}.")
    return int(value)


def _sizes(value: Any, num_teachers: int) -> int | list[int] | None:
    """Check the teachers' input sizes."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        return count("teacher_imgsz", value)
    if len(value) != num_teachers:
        raise ValueError(
            f"teacher_imgsz must be one size, or a list of one for each of the {num_teachers} teachers, got {value}."
        )
    return [count("teacher_imgsz", v) for v in value]
