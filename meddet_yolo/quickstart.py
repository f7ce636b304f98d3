"""The main job end to end on generated images: train two teachers, distil a student, lay all of them side by side.

It shows that everything works together, in minutes and without a download. It is no evidence for the method: one seed
on images of no patient.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from meddet_yolo.console import quiet

__all__ = ["quickstart"]

STUDENT = "meddet11-n.yaml"
TEACHERS = {"teacher-s": "yolo11s.yaml", "teacher-n": "yolov8n.yaml"}
_TEACHERS_LONGER = 2  # times the student's epochs: who teaches must know more
_STATE = "quickstart.json"
# Few images need many small steps: no gradient accumulation, no mosaic, and all of it within minutes on two cores.
_TRAINING: dict[str, Any] = {
    "batch": 4,
    "nbs": 4,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "warmup_epochs": 1,
    "mosaic": 0.0,
    "scale": 0.2,
    "val": False,
    "plots": False,
    "workers": 0,
    "amp": False,
    "channels_last": True,
}


def quickstart(
    out: str | Path = "quickstart-out",
    epochs: int = 24,
    imgsz: int = 160,
    patients: int = 24,
    seed: int = 0,
    device: str | int = "cpu",
) -> Path:
    """Run the main job on a small generated data set.

    Steps whose results are in `out` are not run again, so an interrupted run goes on where it stopped. The folder then
    holds the data, the four checkpoints, `report.md`, `report.json` and `pictures/`.

    Args:
        out: Folder for everything. It must be new, empty or an earlier run with the same arguments.
        epochs: Epochs of the student, alone and distilled, at least 1; its teachers have twice as many.
        imgsz: Image size in pixels, a multiple of 32.
        patients: Number of generated patients, at least 2, three images each; a quarter is for validation.
        seed: Seed of the data and of the trainings.
        device: Where to run, as Ultralytics takes it.

    Returns:
        Path of `report.md`.

    Raises:
        ValueError: If an argument is out of its range, or `out` holds a run with other arguments.
        FileExistsError: If `out` holds other files.

    Examples:
        >>> quickstart("demo", epochs=30)  # doctest: +SKIP
    """
    for name, value, least in (("epochs", epochs, 1), ("imgsz", imgsz, 32)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} is invalid: expected a whole number of at least {least}")
    if imgsz % 32:
        raise ValueError(f"imgsz={imgsz} is invalid: expected a multiple of 32, such as {max(32, imgsz // 32 * 32)}")
    arguments = {"epochs": epochs, "imgsz": imgsz, "patients": patients, "seed": seed, "device": str(device)}
    run = _Run(Path(out).expanduser().resolve(), arguments, total=7)
    try:
        with quiet():
            return _run_steps(run, epochs, imgsz, patients, seed, device)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on with the step that was under way") from None


def _run_steps(run: _Run, epochs: int, imgsz: int, patients: int, seed: int, device: str | int) -> Path:
    """Run the seven steps and print the table."""
    from meddet_yolo.evaluate import report
    from meddet_yolo.phantom import generate_phantom

    out = run.out
    data, result, grid = out / "data" / "data.yaml", out / "report.json", out / "pictures" / "boxes.png"
    training = {**_TRAINING, "data": str(data), "epochs": epochs, "imgsz": imgsz, "seed": seed, "device": device}
    weights = {name: out / f"{name}.pt" for name in (*TEACHERS, "student-alone", "student-distilled")}

    work: Callable[[], Any] = partial(
        generate_phantom,
        data.parent,
        patients,
        seed,
        imgsz,
        preset="tiny",
        slices=3,
        val_fraction=0.25,
        test_fraction=0.0,
    )
    run.step(f"generate the images of {patients} patients", data, work)
    for name, layout in TEACHERS.items():
        work = partial(_train, run, layout, name, {**training, "epochs": _TEACHERS_LONGER * epochs})
        run.step(f"train {name.replace('-', ' ')} ({Path(layout).stem})", weights[name], work)
    student = Path(STUDENT).stem
    work = partial(_train, run, STUDENT, "student-alone", training)
    run.step(f"train the student alone ({student})", weights["student-alone"], work)
    teachers = [str(weights[name]) for name in TEACHERS]
    work = partial(_train, run, STUDENT, "student-distilled", {**training, "teachers": teachers})
    run.step(f"distil both teachers into the student ({student})", weights["student-distilled"], work)
    run.step("validate and time all four", result, partial(_compare, weights, data, imgsz, device, out, result))
    run.step("predict and draw the boxes", grid, partial(_draw, weights, data, imgsz, device, grid))

    reports = [report.ModelReport(**entry) for entry in json.loads(result.read_text())["models"]]
    page = out / "report.md"
    page.write_text(_page(report.as_markdown(reports), reports, grid.relative_to(out), run))
    print(f"\n{report.as_text(reports)}\n\n{_inherited(run)}\n\n{_verdict(reports)}\n")
    print(f"report    {page}\npictures  {grid}\nmodel     {weights['student-distilled']}")
    print(f"next      meddet predict model={weights['student-distilled']} source={data.parent / 'images' / 'val'}")
    return page


# The steps ------------------------------------------------------------------------------------------------------------


def _train(run: _Run, layout: str, name: str, training: dict[str, Any]) -> None:
    """Train one model and keep a copy of its final weights."""
    from meddet_yolo.model import MedDet

    model = MedDet(layout)
    model.add_callback("on_train_epoch_end", run.show_epoch)
    model.train(project=str(run.out / "runs"), name=name, exist_ok=True, **training)
    trainer = model.trainer
    run.inherited[name] = trainer.inherited
    _copy(trainer.best if trainer.best.is_file() else trainer.last, run.out / f"{name}.pt")


def _compare(weights: dict[str, Path], data: Path, imgsz: int, device: str | int, out: Path, result: Path) -> None:
    """Validate and time the models, and write the result."""
    from importlib.metadata import version

    from meddet_yolo.evaluate import report

    reports = report.compare(
        {name.replace("-", " "): path for name, path in weights.items()},
        data,
        imgsz=imgsz,
        device=str(device),
        batch=8,
        workers=0,
        plots=False,
        verbose=False,
        project=str(out / "runs"),
        name="val",
        exist_ok=True,
    )
    versions = {package: version(package) for package in ("meddet-yolo", "ultralytics", "torch")}
    unfinished = result.with_suffix(".part")
    report.write_json(reports, unfinished, data=data, imgsz=imgsz, device=str(device), versions=versions)
    os.replace(unfinished, result)


def _draw(weights: dict[str, Path], data: Path, imgsz: int, device: str | int, grid: Path) -> None:
    """Draw ground truth and every model's boxes on a few validation images of different patients."""
    from ultralytics import YOLO

    from meddet_yolo.evaluate import report
    from meddet_yolo.phantom import NAMES

    order = ("student-alone", "student-distilled", *TEACHERS)
    models = {name: YOLO(weights[name]) for name in order}
    by_patient = {file.stem.split("_")[0]: file for file in report.split_images(data)}
    rows = []
    for file in list(by_patient.values())[:4]:
        image = report.read_image(file)
        columns = {"ground truth": report.labelled_boxes(file, image.shape)}
        for name, model in models.items():
            boxes = report.predicted_boxes(model, image, imgsz=imgsz, device=device)
            columns[name.replace("-", " ")] = boxes
        rows.append((image, columns))
    grid.parent.mkdir(exist_ok=True)
    report.write_image(grid, report.draw_grid(rows, NAMES))


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that the target exists only when it is whole."""
    unfinished = target.with_suffix(".part")
    shutil.copyfile(source, unfinished)
    os.replace(unfinished, target)


# What the reader sees -------------------------------------------------------------------------------------------------


def _verdict(reports: list[Any]) -> str:
    """Return what the table says about distillation, in one sentence."""
    by_name = {r.name: r for r in reports}
    gain = by_name["student distilled"].map50_95 - by_name["student alone"].map50_95
    return (
        f"Distillation changed the student's mAP50-95 by {gain:+.3f}; "
        "one seed on generated images shows that the parts work together, not how well the method does."
    )


def _inherited(run: _Run) -> str:
    """Return what the distilled student started with, in one sentence."""
    taken = run.inherited.get("student-distilled") or "inherited nothing"
    return f"Before its first step the distilled student {taken}."


def _page(table: str, reports: list[Any], grid: Path, run: _Run) -> str:
    """Return the report as Markdown."""
    told = ", ".join(f"{k}={v}" for k, v in run.arguments.items())
    steps = "\n".join(f"| {name} | {seconds:.0f} |" for name, seconds in run.seconds.items())
    return (
        f"# Quickstart\n\n`meddet quickstart {told.replace(',', '')}`\n\n{table}\n\n"
        f"{_inherited(run)} {_verdict(reports)}\n\n"
        f"Parameters and GFLOPs (a multiply-add is two operations) of the fused models at {run.arguments['imgsz']} px; "
        "recall at the confidence with the best F1; milliseconds are medians of interleaved single images.\n\n"
        f"![Boxes]({grid.as_posix()})\n\n| step | seconds |\n| --- | ---: |\n{steps}\n"
    )


class _Run:
    """A run's folder, which of its steps are done, and the lines that show its progress."""

    def __init__(self, out: Path, arguments: dict[str, Any], total: int) -> None:
        self.out, self.arguments, self.total = out, arguments, total
        self.seconds: dict[str, float] = {}
        self.inherited: dict[str, str] = {}  # by model, in words
        self._number, self._redo = 0, False
        self._begun, self._step_begun = time.monotonic(), 0.0
        state = out / _STATE
        if state.is_file():
            known = json.loads(state.read_text())
            if known["arguments"] != arguments:
                changed = ", ".join(f"{k}={known['arguments'].get(k)}" for k in arguments
                                    if known["arguments"].get(k) != arguments[k])  # fmt: skip
                raise ValueError(f"{out} holds a run with {changed}: give the same arguments or another out=")
            self.seconds, self.inherited = known["seconds"], known.get("inherited", {})
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out} is not empty and holds no quickstart: name a new folder with out=")

    def step(self, title: str, result: Path, work: Callable[[], Any]) -> None:
        """Do one step unless its result, and those of all steps before it, are there from an earlier run."""
        self._number += 1
        line = f"[{self._number}/{self.total}] {title}"
        self._redo = self._redo or title not in self.seconds or not result.is_file()
        if not self._redo:
            print(f"{line}: done before, in {self.seconds[title]:.0f} s", flush=True)
            return
        print(line, flush=True)
        self._step_begun = time.monotonic()
        work()
        self.seconds[title] = time.monotonic() - self._step_begun
        self._save()
        total = time.monotonic() - self._begun
        print(f"      {self.seconds[title]:.0f} s, {total / 60:.1f} minutes in all", flush=True)

    def show_epoch(self, trainer: Any) -> None:
        """Show how far a training has come; an Ultralytics callback."""
        done, epochs = trainer.epoch + 1, trainer.epochs
        left = (time.monotonic() - self._step_begun) / done * (epochs - done)
        text = f"      epoch {done}/{epochs}, about {left:.0f} s left"
        if sys.stdout.isatty():
            print(f"\r{text}   ", end="\r" if done == epochs else "", flush=True)
        elif done % 5 == 0 and done < epochs:
            print(text, flush=True)

    def _save(self) -> None:
        """Write which steps are done, whole or not at all."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {"arguments": self.arguments, "seconds": self.seconds, "inherited": self.inherited}
        unfinished = self.out / f"{_STATE}.part"
        unfinished.write_text(json.dumps(state, indent=2) + "\n")
        os.replace(unfinished, self.out / _STATE)
