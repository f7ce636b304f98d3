"""Where runs are executed: an interface of two calls, and processes of this machine behind it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from meddet_yolo.compare.files import LOG
from meddet_yolo.registry.trust import is_trusted

__all__ = ["Executor", "Finished", "LocalExecutor", "devices_of", "how_it_ended", "start_run"]

WORKER = (sys.executable, "-m", "meddet_yolo.compare.worker")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Attributes:
        run: Name of the run.
        reason: Why it failed, as far as its end tells; empty where it ended as it should.
    """

    run: str
    reason: str = ""


class Executor(Protocol):
    """Executes runs, each given as its folder, and tells which have ended."""

    def free(self) -> int:
        """Return how many more runs it takes now."""

    def submit(self, folder: Path) -> None:
        """Begin a run."""

    def poll(self) -> list[Finished]:
        """Return the runs that have ended since the last call."""

    def stop(self) -> None:
        """End all runs that are under way; they can go on later."""


def devices_of(device: Any) -> list[str]:
    """Return the devices that runs are spread over, as Ultralytics names them.

    Args:
        device: `cpu`, a GPU's number, several, or None for all GPUs, or the CPU where there is none.

    Examples:
        >>> devices_of("cpu"), devices_of("0,1"), devices_of([2])
        (['cpu'], ['0', '1'], ['2'])
    """
    if device is None or device == "":
        import torch

        return [str(i) for i in range(torch.cuda.device_count())] or ["cpu"]
    given = device if isinstance(device, (list, tuple)) else str(device).strip("[]()").split(",")
    return [str(d).strip() for d in given]


class LocalExecutor:
    """Runs as processes of this machine.

    Args:
        devices: Devices that the runs are spread over, in turn.
        slots: How many runs there are at once.
        threads: Threads of each.
        workers: Worker processes of each run's data loader.
        nice: What is added to each run's niceness.
        command: The command that executes a run, by default `WORKER`; its folder and a JSON of how come behind it.
    """

    def __init__(
        self,
        devices: Sequence[str],
        slots: int,
        *,
        threads: int = 1,
        workers: int = 0,
        nice: int = 0,
        command: Sequence[str] | None = None,
    ) -> None:
        self._devices, self._slots, self._threads = list(devices), slots, threads
        self._workers, self._nice, self._command = workers, nice, list(command or WORKER)
        self._running: dict[str, tuple[subprocess.Popen[bytes], str]] = {}

    def free(self) -> int:
        """Return how many more runs it takes now."""
        return self._slots - len(self._running)

    def submit(self, folder: Path) -> None:
        """Begin a run on the device that has the fewest; its output goes to a log in its folder."""
        loads = [device for _, device in self._running.values()]
        device = min(self._devices, key=loads.count)
        how = {"device": device, "workers": self._workers, "nice": self._nice, "trust": is_trusted()}
        self._running[folder.name] = (start_run(self._command, folder, how, self._threads), device)

    def poll(self) -> list[Finished]:
        """Return the runs that have ended since the last call."""
        ended = []
        for name, (process, _) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[name]
                ended.append(Finished(name, how_it_ended(code)))
        return ended

    def stop(self) -> None:
        """End all runs that are under way."""
        for process, _ in self._running.values():
            process.kill()
        for process, _ in self._running.values():
            process.wait()
        self._running.clear()


def start_run(command: Sequence[str], folder: Path, how: dict[str, Any], threads: int) -> subprocess.Popen[bytes]:
    """Start the process of a run; its output goes to a log in its folder.

    Args:
        command: The command that executes a run.
        folder: The run's folder.
        how: What the run's process is told besides: `device`, `workers`, `nice`.
        threads: Its threads.
    """
    environment = {
        **os.environ,
        **{name: str(threads) for name in _THREADS},
        "YOLO_OFFLINE": os.environ.get("YOLO_OFFLINE", "true"),
        "MEDDET_TRACEBACK": "0",
    }
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [*command, str(folder), json.dumps(how)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # an interrupt from the keyboard is the comparison's to handle
        )


def how_it_ended(code: int) -> str:
    """Return what an exit code says of a failure."""
    if code == 0:
        return ""
    if code > 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
    return f"killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
