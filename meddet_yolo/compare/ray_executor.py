"""Runs on a Ray cluster whose machines share the comparison's folder and the data."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meddet_yolo.compare import executor
from meddet_yolo.compare.executor import Finished, how_it_ended, start_run
from meddet_yolo.console import how_to_install
from meddet_yolo.registry.trust import is_trusted

__all__ = ["RayExecutor"]

_LOST_MACHINES = 5  # so often a run goes on elsewhere before it counts as failed


class RayExecutor:
    """Runs as tasks of a Ray cluster, each of which starts the run's process on its machine.

    A run whose machine is lost is begun again by Ray on another one, where it resumes from its last epoch.

    Args:
        address: Address of the cluster, or `auto`.
        device: `cpu` leaves GPUs out; by default a run gets a GPU where the cluster has any.
        jobs: How many runs there are at once; by default as many as the cluster has CPUs, or GPUs, for.
        threads: Threads, and CPUs, of each run.
        workers: Worker processes of each run's data loader; by default 0 on a CPU, else 4.
        nice: What is added to each run's niceness.
        command: The command that executes a run; by default this package's, by the Python of the machine.

    Raises:
        ConnectionError: If there is no such cluster.
        ModuleNotFoundError: If Ray is not installed.
    """

    def __init__(
        self,
        address: str,
        *,
        device: Any = None,
        jobs: int | None = None,
        threads: int = 1,
        workers: int | None = None,
        nice: int = 0,
        command: Sequence[str] | None = None,
    ) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"executor=ray needs Ray: {how_to_install('ray')}") from error
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                _knock(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # of many kinds
                reason = " ".join(str(error).split())[:120]
                raise ConnectionError(
                    f"address={address}: no Ray cluster can be reached ({reason}): start one with `ray start --head`, "
                    "or give its address="
                ) from error
        gpus = 0 if str(device) == "cpu" else self._resources("GPU")
        self._gpus = min(1.0, gpus / jobs) if gpus and jobs else float(gpus > 0)
        self._jobs, self._threads = jobs, threads
        self._how = {
            "workers": workers if workers is not None else 4 if gpus else 0,
            "nice": nice,
            "trust": is_trusted(),
        }
        self._command = list(command) if command else None
        self._task = ray.remote(_execute).options(
            num_cpus=threads, num_gpus=self._gpus, max_retries=_LOST_MACHINES, name="meddet compare"
        )
        self._running: dict[Any, str] = {}

    def free(self) -> int:
        """Return how many more runs it takes now; machines that join the cluster count at once."""
        slots = self._jobs or int(self._resources("GPU") if self._gpus else self._resources("CPU") / self._threads)
        return max(slots, 1) - len(self._running)

    def submit(self, folder: Path) -> None:
        """Begin a run on the machine that Ray chooses."""
        self._running[self._task.remote(self._command, str(folder), self._how, self._threads)] = folder.name

    def poll(self) -> list[Finished]:
        """Return the runs that have ended since the last call."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        ended = []
        for task in ready:
            try:
                reason = how_it_ended(self._ray.get(task))
            except self._ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())[:200]
            ended.append(Finished(self._running.pop(task), reason))
        return ended

    def stop(self) -> None:
        """End all runs that are under way."""
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()

    def close(self) -> None:
        """Leave the cluster."""
        if self._ours:
            self._ray.shutdown()

    def _resources(self, kind: str) -> float:
        return float(self._ray.cluster_resources().get(kind, 0))


def _knock(address: str) -> None:
    """Refuse an address where nothing answers; Ray itself would try for minutes, and end the process."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _execute(command: Sequence[str] | None, folder: str, how: dict[str, Any], threads: int) -> int:
    """Execute a run on the machine that this is called on, and return its exit code."""
    import os

    import ray

    gpus = ray.get_gpu_ids()
    if gpus:  # by its number on the machine, which Ultralytics takes; Ray has hidden the others
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    device = str(gpus[0]) if gpus else "cpu"
    return start_run(command or executor.WORKER, Path(folder), {**how, "device": device}, threads).wait()
