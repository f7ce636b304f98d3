"""`compare`: methods x students x seeds x folds on one data set, by one call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from meddet_yolo.compare.executor import Executor, LocalExecutor, devices_of
from meddet_yolo.compare.folds import class_names, make_folds, own_unlabelled, read_images, write_folds
from meddet_yolo.compare.harness import execute, failed_runs, locked, prepare
from meddet_yolo.compare.plan import Plan
from meddet_yolo.compare.plan_reader import make_plan
from meddet_yolo.compare.report import as_text, write_report
from meddet_yolo.compare.scores import score_runs
from meddet_yolo.compare.speed import measure_speed
from meddet_yolo.console import quiet, read_keys

__all__ = ["compare"]

_NOT_IN_REPORT = frozenset(
    {"out", "address", "executor", "jobs", "nice", "report", "rounds"}
)  # no part of what was compared


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The arguments of `compare` with their defaults."""

    data: Any = None
    student: Any = None
    methods: Any = ("none",)
    teachers: Any = ()
    seeds: Any = 1
    folds: int = 4
    out: Any = "compare-out"
    patient: str | None = None
    fold_seed: int = 0
    labelled: float = 1.0
    device: Any = None
    jobs: int | None = None
    threads: int = 1
    workers: int | None = None
    nice: int = 0
    executor: str = "local"
    address: str = "auto"
    rounds: int = 1000
    report: bool = False


def compare(
    data: str | Path | None = None,
    student: Any = None,
    methods: Any = None,
    teachers: Any = None,
    seeds: Any = None,
    folds: int | None = None,
    out: str | Path | None = None,
    *,
    cfg: str | Path | None = None,
    patient: str | None = None,
    fold_seed: int | None = None,
    labelled: float | None = None,
    device: Any = None,
    jobs: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
    nice: int | None = None,
    executor: str | None = None,
    address: str | None = None,
    rounds: int | None = None,
    report: bool | None = None,
    **training: Any,
) -> str:
    r"""Compare methods of training a student on patients that none of the runs was trained on.

    Every run is a process of its own with a folder and a log. Whatever is interrupted goes on by the same call: runs
    that are finished are not repeated, those that were under way resume. Every run is measured with the weights of its
    last epoch; no epoch is chosen by its score. The data set's folder is only read.

    Args:
        data: YAML of the data set.
        student: Model of the student, several, or a mapping of short names to models.
        methods: Names: `none` (the labels alone), `native` (Ultralytics' own `distill_model=`, from the first teacher)
            or a value of `distill=`. Or a mapping of names of your own to keys of the training:
            `{"low": {"lr0": 1e-4}}`. In it, `student` replaces the model, `head` holds options of its head, `distill`
            hands the teachers over, and `inherit: auto` without `distill` inherits from the first teacher. Default:
            `none`.
        teachers: Checkpoints, used in every fold; or mappings such as `{"model": "yolo11s.yaml", "epochs": 60}`,
            trained once in each fold on the same images as its students.
        seeds: Number of seeds, or a list of them. Default: 1.
        folds: Number of folds, by patient, over all images of `train` and `val`; 1 keeps the data set's own parts and
            measures on `test`, or `val` where there is none. Default: 4.
        out: Folder of the comparison. Default: `compare-out`.
        cfg: A YAML with any of these keys; those given beside it win.
        patient: What tells the patient of an image, see `meddet_yolo.compare.folds.read_images`.
        fold_seed: Seed of the division into folds. Default: 0.
        labelled: Share of the training patients of each fold who keep their labels, in (0, 1]; the images of the others
            are what a method with `unlabelled: auto` learns from, beside those that the data set's YAML has under
            `unlabelled`. Teachers are trained on what has labels. Default: 1.
        device: Device, or several GPUs that the runs are spread over. Default: all GPUs, or the CPU.
        jobs: Number of runs at once. Default: one for each GPU; on the CPU as many as its cores allow.
        threads: Threads of each run. Default: 1.
        workers: Workers of each run's data loader. Default: 0 on the CPU, else 4.
        nice: Niceness of the runs. Default: 0.
        executor: Where runs are executed: `local`, processes of this machine, or `ray`, a Ray cluster that shares that
            folder and the data. Default: `local`.
        address: Address of the Ray cluster. Default: `auto`, the one that this machine is part of.
        rounds: Resamples of the patients behind the intervals. Default: 1000.
        report: Whether only to make the table of what is finished, while the runs go on elsewhere. Default: False.
        **training: Keys that all trainings share: `epochs`, `imgsz`, `batch`, ...

    Returns:
        The table.

    Raises:
        FileNotFoundError: If the data set, a model or a checkpoint is not there.
        PermissionError: If `out` cannot be written to.
        RuntimeError: If another comparison is at work in `out`.
        ValueError: If an argument is not valid, the patients are not known or fewer than the folds, or `out` holds
            a comparison that differs.

    Examples:
        >>> compare("d.yaml", "meddet11-n.yaml", ["none", "meddet"], ["a.pt"], seeds=3, epochs=60)  # doctest: +SKIP
    """
    given = {key: value for key, value in locals().items() if key not in ("cfg", "training") and value is not None}
    recipe = _recipe(Path(cfg).expanduser()) if cfg is not None else {}
    own = {field.name for field in fields(_Settings)}
    merged = {**recipe, **training, **given}
    settings = _Settings(**{key: value for key, value in merged.items() if key in own})
    shared = {key: value for key, value in merged.items() if key not in own}
    if settings.data is None:
        raise ValueError("data= is missing: the YAML of the data set, for example data=d.yaml")
    _check(settings)
    data_set = Path(settings.data).expanduser().resolve()
    plan = make_plan(settings.student, settings.methods, settings.teachers, settings.seeds, settings.folds, shared)
    items = read_images(data_set, settings.patient)
    folds_made = make_folds(items, settings.folds, settings.fold_seed, settings.labelled)
    if plan.learns_unlabelled and not own_unlabelled(data_set) and not folds_made[0].unlabelled:
        raise ValueError(
            f"unlabelled=auto, but there are no images without labels: set some aside with labelled=0.1, or name them "
            f"under `unlabelled` in {data_set}"
        )
    place, runs = Path(settings.out).expanduser().resolve(), plan.runs()
    if settings.report:
        return _report(place, plan, data_set, settings, merged)
    with locked(place), _executor(settings) as runner:
        prepare(place, runs, write_folds(place / "folds", data_set, items, folds_made))
        for warning in plan.warnings:
            print(f"warning: {warning}", flush=True)
        execute(place, runs, runner)
        return _report(place, plan, data_set, settings, merged)


def _report(out: Path, plan: Plan, data: Path, settings: _Settings, given: dict[str, Any]) -> str:
    """Write the table of what is finished, and return it."""
    failed = failed_runs(out, plan.runs())
    comparison = score_runs(out, plan, class_names(data), failed, rounds=settings.rounds)
    with quiet():
        speeds = measure_speed(out, plan, device=devices_of(settings.device)[0], threads=settings.threads)
    for row in comparison.rows:
        row.milliseconds_per_image = speeds.get((row.student, row.method))
    page = write_report(out, comparison, {k: v for k, v in given.items() if k not in _NOT_IN_REPORT})
    return f"{as_text(comparison)}\n\nreport    {page}"


def _recipe(file: Path) -> dict[str, Any]:
    """Read a plan's YAML; paths in it are relative to the folder that the command is called in."""
    if not file.is_file():
        raise FileNotFoundError(f"cfg={file}: no such file")
    return read_keys(file, f"cfg={file}")


@contextmanager
def _executor(settings: _Settings) -> Iterator[Executor]:
    """Give where the runs are executed."""
    if settings.executor == "ray":
        from meddet_yolo.compare.ray_executor import RayExecutor

        runner = RayExecutor(
            settings.address,
            device=settings.device,
            jobs=settings.jobs,
            threads=settings.threads,
            workers=settings.workers,
            nice=settings.nice,
        )
        try:
            yield runner
        finally:
            runner.close()
        return
    devices = devices_of(settings.device)
    on_cpu = devices == ["cpu"]
    slots = settings.jobs or (max(1, (os.cpu_count() or 1) // settings.threads) if on_cpu else len(devices))
    workers = settings.workers if settings.workers is not None else 0 if on_cpu else 4
    yield LocalExecutor(devices, slots, threads=settings.threads, workers=workers, nice=settings.nice)


def _check(settings: _Settings) -> None:
    """Refuse what no run would be started with."""
    for name, value, least in (("jobs", settings.jobs, 1), ("threads", settings.threads, 1),
                               ("workers", settings.workers, 0), ("rounds", settings.rounds, 1)):  # fmt: skip
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")
    share = settings.labelled
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"labelled={share!r}: expected a share of the training patients above 0 and at most 1")
    if settings.executor not in ("local", "ray"):
        raise ValueError(f"executor={settings.executor!r} is unknown: expected local or ray")
