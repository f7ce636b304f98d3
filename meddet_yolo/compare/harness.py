"""Executing the runs of a plan: what is left to do, in an order that its dependencies allow, to the end.

The folder is all the state there is: a run with a `result.json` is finished. So a comparison that was killed at any
moment goes on when it is started again, and ends with the same table.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meddet_yolo.compare.executor import Executor
from meddet_yolo.compare.files import PROGRESS, REASON, RESULT, RUNS, SPEC, read_json, write_json
from meddet_yolo.compare.plan import RunSpec

__all__ = ["execute", "failed_runs", "locked", "prepare"]

_ATTEMPTS = 2
_LOCK = "compare.lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other comparisons out of a folder.

    Raises:
        PermissionError: If the folder cannot be written to.
        RuntimeError: If another comparison is at work in it.
    """
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise PermissionError(f"out={out} cannot be written to ({error.strerror}): name another folder") from error
    try:
        with FileLock(out / _LOCK, timeout=0):
            yield
    except Timeout:
        raise RuntimeError(f"out={out} is in use by another comparison: wait for it, or name another folder") from None


def failed_runs(out: Path, runs: Sequence[RunSpec]) -> dict[str, str]:
    """Return the runs that are marked as failed, with the reason."""
    reasons = {spec.name: out / RUNS / spec.name / REASON for spec in runs}
    return {name: file.read_text(encoding="utf-8").strip() for name, file in reasons.items() if file.is_file()}


def prepare(out: Path, runs: Sequence[RunSpec], data: Mapping[int, Path]) -> None:
    """Write what each run is to its folder.

    Args:
        out: Folder of the comparison.
        runs: The runs.
        data: YAML of each fold.

    Raises:
        ValueError: If a run of that name was begun as another one.
    """
    for spec in runs:
        folder = out / RUNS / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        content = asdict(spec) | {"data": os.path.relpath(data[spec.fold], folder)}
        content = json.loads(json.dumps(content))
        file = folder / SPEC
        if not file.is_file():
            write_json(file, content)
            continue
        known = read_json(file)
        if {k: v for k, v in known.items() if v} != {k: v for k, v in content.items() if v}:  # a newer key may be unset
            raise ValueError(
                f"out={out} has run {spec.name} with {_difference(known, content)}: give the same arguments, another "
                "name to the method, or another out="
            )


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in what a run differs from what it was."""
    flat = [{**{k: v for k, v in d.items() if k != "training"}, **d["training"]} for d in (before, now)]
    keys = [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]
    return ", ".join(f"{key}={flat[0].get(key)} (now {flat[1].get(key)})" for key in keys[:3])


def execute(out: Path, runs: Sequence[RunSpec], executor: Executor, *, pause: float = 0.2) -> dict[str, str]:
    """Execute the runs that are not finished; one that fails is tried once more.

    Args:
        out: Folder of the comparison, prepared.
        runs: The runs, dependencies before those that wait for them.
        executor: Where they are executed.
        pause: Seconds between two looks at them.

    Returns:
        The runs that failed, with the reason.
    """
    state = _State(out, runs)
    show = _Progress(state)
    try:
        while state.waiting or state.running:
            for name in state.ready()[: max(executor.free(), 0)]:
                executor.submit(state.folder(name))
                state.begin(name)
            show()
            time.sleep(pause)
            for ended in executor.poll():
                state.end(ended.run, ended.reason)
    except KeyboardInterrupt:
        executor.stop()
        show.close()
        raise KeyboardInterrupt("interrupted; the same command goes on where it stopped") from None
    except BaseException:
        executor.stop()
        raise
    show(last=True)
    return state.failed


class _State:
    """Which runs are waiting, under way, done and failed."""

    def __init__(self, out: Path, runs: Sequence[RunSpec]) -> None:
        self.out = out
        self.runs = {spec.name: spec for spec in runs}
        self.done = {name for name in self.runs if (self.folder(name) / RESULT).is_file()}
        self.waiting = [name for name in self.runs if name not in self.done]
        self.running: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._attempts: dict[str, int] = {}

    def folder(self, name: str) -> Path:
        return self.out / RUNS / name

    def ready(self) -> list[str]:
        """Return the runs that wait for nothing but a place; those whose teacher failed have failed too."""
        for name in list(self.waiting):
            lost = next((need for need in self.runs[name].needs if need in self.failed), None)
            if lost:
                self.waiting.remove(name)
                self._give_up(name, f"{lost} failed")
        return [name for name in self.waiting if set(self.runs[name].needs) <= self.done]

    def begin(self, name: str) -> None:
        self.waiting.remove(name)
        (self.folder(name) / REASON).unlink(missing_ok=True)
        self.running[name] = time.monotonic()
        self._attempts[name] = self._attempts.get(name, 0) + 1

    def end(self, name: str, reason: str) -> None:
        """Note that a run's process has ended."""
        del self.running[name]
        if (self.folder(name) / RESULT).is_file():
            self.done.add(name)
        elif self._attempts[name] < _ATTEMPTS:
            self.waiting.insert(0, name)
        else:
            told = self.folder(name) / REASON
            text = told.read_text(encoding="utf-8").strip() if told.is_file() else ""
            self._give_up(name, text or reason or "it ended without a result")

    def _give_up(self, name: str, reason: str) -> None:
        """Mark a run as failed; another start of the comparison tries it again."""
        self.failed[name] = reason
        (self.folder(name) / REASON).write_text(f"{reason}\n", encoding="utf-8")


class _Progress:
    """One line that says how far a comparison is; on a terminal it is written over, elsewhere once in a while."""

    def __init__(self, state: _State) -> None:
        self._state, self._begun, self._shown = state, time.monotonic(), 0.0
        self._known = ""
        self._terminal = sys.stdout.isatty()

    def __call__(self, *, last: bool = False) -> None:
        now = time.monotonic()
        state = self._state
        counts = f"{len(state.done)} of {len(state.runs)} runs done"
        news = f"{counts} {sorted(state.running)} {len(state.failed)}"
        due = now - self._shown > (2 if self._terminal else 600)
        if not (last or due or news != self._known):
            return
        self._shown, self._known = now, news
        line = counts
        if state.failed:
            line += f", {len(state.failed)} failed"
        if state.running:
            told = [f"{name}{_epoch(state.folder(name))}" for name in state.running]
            more = f" and {len(told) - 3} more" if len(told) > 3 else ""
            line += f", running {', '.join(told[:3])}{more}"
        left = self._left(max(len(state.running), 1))
        if left is not None and not last:
            line += f", about {_duration(left)} left"
        if self._terminal:
            print(f"\r\x1b[2K{line[:300]}", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """End the line."""
        if self._terminal:
            print(flush=True)

    def _left(self, at_once: int) -> float | None:
        """Return the seconds left: epochs that are left at the speed that runs of the kind had so far."""
        seconds: dict[tuple[str, str], list[float]] = {}
        epochs_left: list[tuple[tuple[str, str], int]] = []
        for name, spec in self._state.runs.items():
            kind = (spec.student, spec.method)
            total = int(spec.training.get("epochs", 100)) if spec.trained else 0
            progress = _read_progress(self._state.folder(name))
            if progress:
                seconds.setdefault(kind, []).append(float(progress["seconds_per_epoch"]))
            if name in self._state.running or name in self._state.waiting:
                epochs_left.append((kind, total - int(progress["epoch"] if progress else 0)))
        if not seconds:
            return None
        every = statistics.mean(s for values in seconds.values() for s in values)
        work = sum(n * (statistics.mean(seconds[kind]) if kind in seconds else every) for kind, n in epochs_left)
        return work / at_once


def _read_progress(folder: Path) -> dict[str, Any] | None:
    try:
        progress: dict[str, Any] = read_json(folder / PROGRESS)
    except (OSError, ValueError):
        return None
    return progress


def _epoch(folder: Path) -> str:
    progress = _read_progress(folder)
    return f" ({progress['epoch']}/{progress['epochs']})" if progress else ""


def _duration(seconds: float) -> str:
    """Return a time in words.

    Examples:
        >>> _duration(40), _duration(600), _duration(9000)
        ('40 s', '10 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
