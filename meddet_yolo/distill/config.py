"""Options of a distillation run: one validated dataclass with one documented default a field."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

METHODS = ("meddet",)
FUSION_NAMES = ("lwff", "sum", "concat")
GUARDS = ("reconstruction", "detection", "none")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Options of one distillation run, all of them plain YAML types.

    The student's loss is `L_det + a L_dist + b L_adv` (MedDet paper, arXiv 2409.00204), `a` and `b` being `dist_weight`
    and `adv_weight`. The paper gives no weights and no schedule: the defaults are our own.

    Attributes:
        teachers: Checkpoints of the teachers, one or more.
        distill: Distillation method.
        trust: Load teacher checkpoints without safe mode. A checkpoint is a pickle and can run code: only for files you
            made or trust.
        teacher_imgsz: Input size of the teachers: one for all or a list of one each; None is the student's.
        fusion: How the teachers' maps become one: `lwff` (learnable weight for each teacher and channel), `sum` or
            `concat`.
        guard: What keeps the fused feature from collapsing to what is easiest to imitate: `reconstruction` (every
            teacher must be readable from it), `detection` (the student's head must detect with it) or `none`.
        dist_weight: Weight a of L_dist, at least 0. L_dist is 2 for a student unrelated to its teachers and 0 for a
            perfect copy.
        adv_weight: Weight b of L_adv, at least 0; 0 builds no adversary. L_adv is 0.69 while the discriminator is
            undecided.
        guard_weight: Weight of the guard's loss, above 0. With the reconstruction guard it trains alignment and fusion
            only, never the student.
        distill_warmup: Epochs over which a and b rise linearly from 0, at least 0; fractions allowed.
        foreground_weight: Share of L_dist's weight inside ground-truth boxes, in [0, 1]; 0 weighs all positions alike,
            which is the paper's form.
        disc_lr: Learning rate of the discriminators' own optimizer, above 0.
        disc_grid: The discriminators judge the means of disc_grid x disc_grid regions of an image; 1 judges whole
            images.
        drown_warning: Warn when the distillation terms exceed this share of the student's total loss, in (0, 1].

    Raises:
        ValueError: A value is of the wrong type, out of range or not among the choices.

    Examples:
        >>> DistillConfig(teachers="s.pt", dist_weight=2).teachers
        ['s.pt']
        >>> DistillConfig.from_dict({"dist_wieght": 2})
        Traceback (most recent call last):
        ...
        ValueError: Unknown distillation option 'dist_wieght': did you mean 'dist_weight'?
    """

    teachers: list[str] = field(default_factory=list)
    distill: str = "meddet"
    trust: bool = False
    teacher_imgsz: int | list[int] | None = None
    fusion: str = "lwff"
    guard: str = "reconstruction"
    dist_weight: float = 1.0
    adv_weight: float = 0.1
    guard_weight: float = 1.0
    distill_warmup: float = 3.0
    foreground_weight: float = 0.0
    disc_lr: float = 0.0002
    disc_grid: int = 1
    drown_warning: float = 0.5

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        self._set("teachers", _paths(self.teachers))
        self._set("distill", _choice("distill", self.distill, METHODS))
        self._set("fusion", _choice("fusion", self.fusion, FUSION_NAMES))
        self._set("guard", _choice("guard", "none" if self.guard in (None, False) else self.guard, GUARDS))
        if not isinstance(self.trust, bool):
            raise ValueError(f"trust must be true or false, got {self.trust!r}.")
        self._set("teacher_imgsz", _sizes(self.teacher_imgsz, len(self.teachers)))
        for name in ("dist_weight", "adv_weight", "distill_warmup"):
            self._set(name, _number(name, getattr(self, name), low=0))
        for name in ("guard_weight", "disc_lr"):
            self._set(name, _number(name, getattr(self, name), low=0, open_low=True))
        self._set("foreground_weight", _number("foreground_weight", self.foreground_weight, low=0, high=1))
        self._set("drown_warning", _number("drown_warning", self.drown_warning, low=0, high=1, open_low=True))
        self._set("disc_grid", _count("disc_grid", self.disc_grid))
        if self.guard == "none" and self.dist_weight == 0:
            raise ValueError(
                "guard none leaves alignment and fusion to learn from L_dist, so dist_weight must be above 0, got 0. "
                "Raise dist_weight, or use guard: reconstruction."
            )

    def _set(self, name: str, value: Any) -> None:
        """Write a field of this frozen object while it is being built."""
        object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> DistillConfig:
        """Build from a mapping of options; those left out have their defaults.

        Raises:
            ValueError: A key is unknown (the nearest valid one is named) or a value is not valid.
        """
        valid = cls.keys()
        for key in options:
            if key not in valid:
                raise ValueError(f"Unknown distillation option {key!r}: {_nearest(str(key), sorted(valid))}")
        return cls(**options)

    @classmethod
    def from_yaml(cls, path: str | Path) -> DistillConfig:
        """Build from a YAML file that holds distillation options only.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is no YAML mapping, or an option in it is not valid.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            options = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
        if options is not None and not isinstance(options, dict):
            raise ValueError(f"{path} must hold 'option: value' lines, got a {type(options).__name__}.")
        try:
            return cls.from_dict(options or {})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return every option with its default, in the order of the fields."""
        return cls().to_dict()

    @classmethod
    def keys(cls) -> frozenset[str]:
        """Return the names of all options."""
        return frozenset(f.name for f in fields(cls))

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain types; `from_dict` takes them back."""
        return asdict(self)

    def teacher_sizes(self) -> list[int | None]:
        """Return the input size of every teacher, None where it is the student's.

        Examples:
            >>> DistillConfig(teachers=["a.pt", "b.pt"], teacher_imgsz=320).teacher_sizes()
            [320, 320]
        """
        if isinstance(self.teacher_imgsz, list):
            return list(self.teacher_imgsz)
        return [self.teacher_imgsz] * len(self.teachers)


def _nearest(given: str, valid: Sequence[str]) -> str:
    """Return the tail of an error message: the valid name nearest to the one given, or all of them."""
    close = difflib.get_close_matches(given, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid)}."


def _choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Check that a value is one of a few names."""
    if not isinstance(value, str) or value.lower() not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}: {_nearest(str(value), choices)}")
    return value.lower()


def _number(name: str, value: Any, *, low: float, high: float = math.inf, open_low: bool = False) -> float:
    """Check that a value is a finite number within a range, and return it as a float.

    Numbers in strings are taken too: YAML 1.1 reads `1e-4`, without a point, as a string.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        least = f"above {low:g}" if open_low else f"at least {low:g}"
        most = "" if math.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"{name} must be a number {least}{most}, got {value!r}.")
    return number


def _count(name: str, value: Any) -> int:
    """Check that a value is a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}.")
    return int(value)


def _paths(value: Any) -> list[str]:
    """Return the teachers as a list of strings."""
    if value is None:
        return []
    given = [value] if isinstance(value, str | Path) else value
    if not isinstance(given, Sequence) or not all(isinstance(p, str | Path) and str(p).strip() for p in given):
        raise ValueError(f"teachers must be a checkpoint path or a list of them, such as [a.pt, b.pt], got {value!r}.")
    return [str(p) for p in given]


def _sizes(value: Any, num_teachers: int) -> int | list[int] | None:
    """Check the teachers' input sizes."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _count("teacher_imgsz", value)
    if len(value) != num_teachers:
        raise ValueError(
            f"teacher_imgsz must be one size, or a list of one for each of the {num_teachers} teachers, got {value}."
        )
    return [_count("teacher_imgsz", v) for v in value]
