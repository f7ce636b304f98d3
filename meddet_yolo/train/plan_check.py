"""`check=True`: everything a training needs is set up and three batches are run, and nothing is trained or kept."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from ultralytics.cfg import DEFAULT_CFG_DICT, get_save_dir
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import get_num_params, unwrap_model

from meddet_yolo.console import quiet
from meddet_yolo.distill.levels import match_teacher
from meddet_yolo.distill.teachers import detector_spec
from meddet_yolo.train.memory import peak_memory, wait_for
from meddet_yolo.train.trainer import DistillTrainer

__all__ = ["PlanCheck", "check_training"]

STEPS = 3  # batches that are timed, after one that warms up
_PATIENCE = 20.0  # seconds after which fewer must do


@dataclass(frozen=True)
class Split:
    """What a part of the data set holds.

    Args:
        images: Number of images that can be used.
        background: How many of them have no box.
        boxes: Number of boxes by class.
    """

    images: int
    background: int
    boxes: Mapping[str, int]

    def __str__(self) -> str:
        """Return it in a line."""
        boxes = ", ".join(f"{count} {name}" for name, count in self.boxes.items())
        return f"{self.images} images, {self.background} of them without a box; boxes: {boxes}"


@dataclass(frozen=True)
class PlanCheck:
    """What a training would be.

    Args:
        model: The student's name.
        parameters: Number of its parameters.
        train: What is learnt from.
        val: What is validated on.
        unlabelled: What is learnt from without labels; empty without such images.
        skipped: Files of the data set that cannot be used, with the reason.
        teachers: A line a teacher: file, classes, input size, which of its levels teaches which of the student's, and
            what it serves with.
        methods: Names of the distillation methods; empty without teachers.
        inherited: What the student would inherit, or why nothing; empty where nobody is there to inherit from.
        device: Where it would run.
        batch: Images a batch.
        batches: Batches an epoch.
        epochs: Epochs.
        step_s: Median seconds of a training step with reading its images, on `timed` batches.
        timed: Number of batches that were timed.
        val_s: Seconds of a validation, from one batch.
        memory_mb: Peak memory in MB: of the GPU, or of this process on a CPU.
        folder: Where the run would be written.
        warnings: What deserves a second look.
    """

    model: str
    parameters: int
    train: Split
    val: Split
    unlabelled: str
    skipped: Sequence[str]
    teachers: Sequence[str]
    methods: Sequence[str]
    inherited: str
    device: str
    batch: int
    batches: int
    epochs: int
    step_s: float
    timed: int
    val_s: float
    memory_mb: float
    folder: Path
    warnings: Sequence[str] = field(default_factory=tuple)

    @property
    def epoch_s(self) -> float:
        """Seconds an epoch, its validation included."""
        return self.batches * self.step_s + self.val_s

    def __str__(self) -> str:
        """Return the answer as lines."""
        lines = [
            ("model", f"{self.model}, {self.parameters:,} parameters"),
            ("inherits", self.inherited.removeprefix("inherited ") or "nothing"),
            *(("teacher", teacher) for teacher in self.teachers),
            ("learns by", ", ".join(["labels", *self.methods])),
            ("train", str(self.train)),
            ("val", str(self.val)),
            *([("unlabelled", self.unlabelled)] if self.unlabelled else []),
            *(("skipped", text) for text in self.skipped),
            ("device", f"{self.device}, peak memory {self.memory_mb:,.0f} MB"),
            ("step", f"{self.step_s:.2f} s for {self.batch} images (median of {self.timed})"),
            ("epoch", f"{_span(self.epoch_s)}: {self.batches} steps, {_span(self.val_s)} of validation"),
            ("all", f"about {_span(self.epochs * self.epoch_s)} for {self.epochs} epochs"),
            ("writes", f"{self.folder}: weights/best.pt and last.pt, results.csv, args.yaml, pictures"),
            *(("look at", text) for text in self.warnings),
        ]
        return "\n".join(f"{name:<10} {text}" for name, text in lines)


class _Enough(Exception):
    """Ends the training loop when enough is known."""


class _Clock:
    """Callbacks of a training that time its first steps and then end it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.began = self.last = 0.0

    def start(self, trainer: Any) -> None:
        """Begin where the first batch is asked for."""
        self.began = self.last = time.perf_counter()

    def step(self, trainer: Any) -> None:
        """Note a step; the first, in which memory is allotted, counts only if it stays the only one."""
        wait_for(trainer.device)
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.last = now
        if len(self.steps) > STEPS or now - self.began > _PATIENCE:
            raise _Enough

    def stop(self, trainer: Any) -> None:
        """End a training that has fewer batches."""
        raise _Enough

    @property
    def timed(self) -> list[float]:
        """Seconds of the steps that count."""
        return self.steps[1:] or self.steps


def check_training(model: Any, options: Mapping[str, Any]) -> PlanCheck:
    """Set a training up as `MedDet.train` does, run a few batches, and say what it would be.

    The data set's label caches are written as any training writes them; nothing else stays.

    Args:
        model: A `MedDet` or `YOLO`; it is not changed.
        options: Arguments of `MedDet.train`.

    Raises:
        ValueError: If the training is to be resumed, or for what makes `train` refuse.
        FileNotFoundError: If a file is missing.

    Examples:
        >>> from meddet_yolo import MedDet
        >>> print(check_training(MedDet("meddet-n.yaml"), {"data": "d.yaml", "epochs": 100}))  # doctest: +SKIP
    """
    if options.get("resume"):
        raise ValueError("check=True is for a training that has not begun, not for resume=")
    args = {**model.overrides, **options, "mode": "train", "task": "detect"}
    planned = get_save_dir(SimpleNamespace(**{**DEFAULT_CFG_DICT, **args}))
    several = str(args.get("device") or "").strip("[]() ").split(",")
    if len(several) > 1:
        args["device"] = several[0].strip()
    clock = _Clock()
    LOGGER.info(f"check: building all, reading labels, running {STEPS + 1} batches ...")
    with tempfile.TemporaryDirectory(prefix="meddet-check-") as folder, quiet():
        args |= {"save_dir": folder, "plots": False, "val": False, "save": False, "cache": False, "exist_ok": True}
        trainer = DistillTrainer(overrides=args)
        trainer.add_callback("on_train_epoch_start", clock.start)
        trainer.add_callback("on_train_batch_end", clock.step)
        trainer.add_callback("on_train_epoch_end", clock.stop)
        if model.ckpt and not isinstance(args.get("pretrained"), (str, Path)):  # as `YOLO.train` does
            weights = None if args.get("pretrained") is False else model.model
            trainer.model = trainer.get_model(weights=weights, cfg=model.model.yaml, verbose=False)
        with suppress(_Enough):
            trainer.train()
        return _answer(trainer, clock, str(args["model"]), planned, len(several))


def _answer(trainer: DistillTrainer, clock: _Clock, name: str, folder: Path, devices: int) -> PlanCheck:
    """Read off a trainer that has run some batches what its training would be."""
    names = trainer.data["names"]
    splits = [_split(loader.dataset, names) for loader in (trainer.train_loader, trainer.test_loader)]
    warnings = [f"no box of class {names[i]!r} to learn from" for i in names if not splits[0].boxes[names[i]]]
    warnings += [f"no box of class {names[i]!r} to validate with" for i in names if not splits[1].boxes[names[i]]]
    if devices > 1:
        warnings.append(f"measured on the first of {devices} devices, with all images of a batch on it")
    if trainer.batch_size > len(trainer.train_loader.dataset):
        warnings.append(f"batch={trainer.batch_size} is more than there are images")
    student = detector_spec(unwrap_model(trainer.model), "student")
    return PlanCheck(
        model=name,
        parameters=get_num_params(unwrap_model(trainer.model)),
        train=splits[0],
        val=splits[1],
        unlabelled=trainer.unlabelled.summary if trainer.unlabelled else "",
        skipped=[str(item) for item in trainer.skipped],
        teachers=[_teacher(teacher, student, trainer.args.imgsz, names) for teacher in trainer.teachers],
        methods=list(trainer.session.methods) if trainer.session else [],
        inherited=trainer.inherited,
        device=_device(trainer.device),
        batch=trainer.batch_size,
        batches=len(trainer.train_loader),
        epochs=trainer.epochs,
        step_s=median(clock.timed),
        timed=len(clock.timed),
        val_s=_validation_seconds(trainer),
        memory_mb=peak_memory(trainer.device) / 1e6,
        folder=folder,
        warnings=warnings,
    )


def _split(dataset: Any, names: Mapping[int, str]) -> Split:
    """Count what a part of the data set holds."""
    counts: Counter[int] = Counter()
    for label in dataset.labels:
        counts.update(int(i) for i in label["cls"].reshape(-1))
    background = sum(not len(label["cls"]) for label in dataset.labels)
    return Split(len(dataset.labels), background, {name: counts[i] for i, name in names.items()})


def _teacher(teacher: Any, student: Any, imgsz: int, names: Mapping[int, str]) -> str:
    """Describe a teacher in a line."""
    spec = teacher.spec_at(imgsz)
    pairs = zip(student.strides, match_teacher(student, spec), strict=True)
    levels = ", ".join(f"/{stride:g} from /{spec.strides[i]:g} ({spec.channels[i]} channels)" for stride, i in pairs)
    about = f"{teacher.name}, {len(teacher.names)} classes, read at {teacher.imgsz or imgsz} px"
    return f"{about}; levels {levels}; {teacher.use(names)}"


@torch.no_grad()
def _validation_seconds(trainer: Any) -> float:
    """Return the seconds of a validation, from reading and running one batch."""
    begin = time.perf_counter()
    batch = next(iter(trainer.test_loader))
    model = unwrap_model(trainer.model).eval()
    model(batch["img"].to(trainer.device).float() / 255)
    wait_for(trainer.device)
    return (time.perf_counter() - begin) * len(trainer.test_loader)


def _device(device: torch.device) -> str:
    """Name a device."""
    if device.type == "cuda":
        return f"GPU {device.index or 0} ({torch.cuda.get_device_name(device)})"
    return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads" if device.type == "cpu" else str(device)


def _span(seconds: float) -> str:
    """Write a span of time with two figures of its unit.

    Examples:
        >>> _span(0.5), _span(75), _span(5400), _span(200000)
        ('0.5 s', '75 s', '90 min', '56 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
