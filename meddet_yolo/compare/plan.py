"""The plan of a comparison: methods x students x seeds x folds, as a table of runs that are independent of one another.

A run is described by plain JSON, which its process reads; what does not change its result (device, threads) is no part
of it. Two runs of the same description are the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from meddet_yolo.files import sha256_of
from meddet_yolo.registry import resolve_model_yaml

__all__ = ["Method", "Plan", "RunSpec", "Teacher", "with_head"]


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    Attributes:
        name: Its name in the table.
        keys: Keys of the training that make it up.
        teachers: Which of the plan's teachers it learns from, by name; None is all of them, where it learns from any.
        student: Models in place of the plan's: one for all students, or one for each by the student's name.
        head: Options of the head that replace those in the model's YAML.
    """

    name: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    teachers: tuple[str, ...] | None = None
    student: str | Mapping[str, str] | None = None
    head: Mapping[str, Any] = field(default_factory=dict)

    @property
    def distills(self) -> bool:
        """Whether teachers are handed to the training."""
        return "distill" in self.keys or self.teachers is not None

    @property
    def needs_teachers(self) -> bool:
        """Whether a file of a teacher is needed, to learn from or to inherit from."""
        return self.distills or self.keys.get("distill_model") == "auto" or self.keys.get("inherit") == "auto"


@dataclass(frozen=True)
class Teacher:
    """A teacher: a checkpoint that is given, or a model that is trained in each fold.

    Attributes:
        name: Its name in the table.
        model: Checkpoint or model YAML.
        trained: Whether the model is to be trained.
        keys: Keys of its training that differ from the plan's.
    """

    name: str
    model: str
    trained: bool
    keys: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """One run.

    Attributes:
        name: Its name, which is also its folder's.
        kind: "student", or "teacher" for a teacher, trained or given.
        student: Name of the student; of the teacher, if it is one.
        method: Name of the method; empty for a teacher.
        seed: Seed of the training.
        fold: Fold that is held out.
        model: Model YAML or checkpoint to start from.
        training: All other keys of the training. A teacher's file stands in there as the name of its run in `<...>`;
            `unlabelled: auto` are the images without labels of the fold.
        trained: Whether the model is trained; a checkpoint that is given is only measured.
        needs: Names of the runs that must be finished before.
        digest: Hash of the model's file, where it is one of the user's.
        head: Options of the head that replace those in the model's YAML.
    """

    name: str
    kind: str
    student: str
    method: str
    seed: int
    fold: int
    model: str
    training: Mapping[str, Any]
    trained: bool = True
    needs: tuple[str, ...] = ()
    digest: str = ""
    head: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a comparison runs.

    Attributes:
        students: Model of every student by its name.
        methods: The methods, in the order of the table.
        teachers: The teachers.
        seeds: Seeds of the trainings.
        folds: Number of folds.
        training: Keys that all trainings share.
        warnings: What the user should know.
    """

    students: Mapping[str, str]
    methods: tuple[Method, ...]
    teachers: tuple[Teacher, ...]
    seeds: tuple[int, ...]
    folds: int
    training: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    def runs(self) -> list[RunSpec]:
        """Return all runs, those first that others wait for and that make up the first seed of every method."""
        runs: dict[str, RunSpec] = {}
        for seed in self.seeds:
            for fold in range(self.folds):
                for teacher in self.teachers:
                    spec = self._teacher_run(teacher, fold)
                    runs.setdefault(spec.name, spec)
                for student in self.students:
                    for method in self.methods:
                        spec = self._run(student, method, seed, fold)
                        runs[spec.name] = spec
        return list(runs.values())

    @property
    def learns_unlabelled(self) -> bool:
        """Whether a method learns from the images without labels of its fold."""
        return any({**self.training, **method.keys}.get("unlabelled") == "auto" for method in self.methods)

    def _teacher_run(self, teacher: Teacher, fold: int) -> RunSpec:
        training = {**self.training, **teacher.keys}
        name = f"teacher-{teacher.name}-fold{fold}"
        digest = _digest(teacher.model)
        return RunSpec(name, "teacher", teacher.name, "", 0, fold, teacher.model, training, teacher.trained, (), digest)

    def _run(self, student: str, method: Method, seed: int, fold: int) -> RunSpec:
        model = self.students[student]
        if isinstance(method.student, str):
            model = method.student
        elif method.student is not None:
            model = method.student[student]
        training = {**self.training, **method.keys}
        needs: tuple[str, ...] = ()
        if method.needs_teachers:
            chosen = [t for t in self.teachers if method.teachers is None or t.name in method.teachers]
            needs = tuple(self._teacher_run(t, fold).name for t in chosen)
            if method.distills:
                training["teachers"] = [f"<{name}>" for name in needs]
            for key in ("distill_model", "inherit"):
                if training.get(key) == "auto" and not method.distills:
                    training[key] = f"<{needs[0]}>"
        name = f"{student}-{method.name}-seed{seed}-fold{fold}"
        return RunSpec(
            name, "student", student, method.name, seed, fold, model, training, True, needs, _digest(model), method.head
        )


def with_head(model: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's YAML with other options of its head, which is its last row.

    Raises:
        ValueError: If the model is none of a YAML whose head has options.

    Examples:
        >>> with_head("meddet11-n.yaml", {"branches": ["cls"]})["head"][-1][-1][-1]["branches"]
        ['cls']
    """
    path = resolve_model_yaml(model) or Path(model)
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    arguments = content["head"][-1][-1] if path.suffix in {".yaml", ".yml"} and content.get("head") else []
    if not arguments or not isinstance(arguments[-1], dict):
        raise ValueError(
            f"head={dict(head)} needs a model whose head has options, such as meddet11-n.yaml, got {model}"
        )
    arguments[-1].update(head)
    return content


def _digest(model: str) -> str:
    path = Path(model)
    return sha256_of(path)[:16] if path.is_absolute() and path.is_file() else ""
