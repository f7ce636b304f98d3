"""Read mutants in child processes that are held to a time and a memory, and count what became of them.

python -m tests.hostile.fuzz dicom=2000 nifti=1000    # so many mutants of each; prints a table
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5  # of processor time, for one mutant
MEMORY = 1 << 30  # bytes of address space above what the imports take
SILENCE = 120  # seconds without a result after which a child is taken for hanging in foreign code
OUTCOMES = ("read", "refused", "crash", "hang", "memory", "traceback")
BAD = OUTCOMES[2:]
_SEED = 1


@dataclass
class Count:
    """What became of the mutants of a reader.

    Attributes:
        number: How many of each outcome.
        bad: Number of the mutant, outcome and detail, where it was none that may be.
        seconds: Processor time, imports included.
        peak: Largest resident memory of the children above what their imports take, in bytes.
    """

    number: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    peak: int = 0


def fuzz(wanted: dict[str, int], first: int = 0, processes: int = 2) -> dict[str, Count]:
    """Read so many mutants of each reader, beginning with a number."""
    with ThreadPoolExecutor(processes) as pool:
        order = sorted(wanted, key=lambda name: name != "checkpoint")  # the slowest first
        counts = dict(zip(order, pool.map(lambda name: _fuzz(name, first, wanted[name]), order), strict=True))
    return {name: counts[name] for name in wanted}


def _fuzz(name: str, first: int, number: int) -> Count:
    """Read the mutants of one reader; after a crash a new child goes on behind the mutant that made it."""
    count, at, end = Count(), first, first + number
    while at < end:
        with tempfile.TemporaryDirectory(prefix="meddet-hostile-") as folder:
            done, why = _child(name, at, end, Path(folder), count)
        at = done
        if at < end:  # the child did not come to the end
            count.number[why] += 1
            count.bad.append((at, why, "the process ended" if why == "crash" else "no answer"))
            at += 1
        if len(count.bad) > 20:
            break
    return count


def _child(name: str, at: int, end: int, folder: Path, count: Count) -> tuple[int, str]:
    """Run a child; return the first mutant that it did not finish and what it died of."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true"}
    environment |= {"YOLO_CONFIG_DIR": str(folder / "config"), "YOLO_AUTOINSTALL": "false", "TMPDIR": str(folder)}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg", "OPENCV_LOG_LEVEL": "OFF"}
    (folder / "config").mkdir()
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--child", name, str(at), str(end), str(folder)]
    with (folder / "errors").open("wb") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment, text=True)
        alarm = _Alarm(child)
        assert child.stdout is not None
        for line in child.stdout:
            alarm.heard()
            result = json.loads(line)
            if "peak" in result:
                count.peak, count.seconds = max(count.peak, result["peak"]), count.seconds + result["seconds"]
                continue
            at = result["mutant"] + 1
            count.number[result["outcome"]] += 1
            if result["outcome"] in BAD:
                count.bad.append((result["mutant"], result["outcome"], result["detail"]))
        child.wait()
        alarm.stop()
    printed = (folder / "errors").read_text(errors="replace")
    if "Traceback (most recent call last)" in printed:
        count.number["traceback"] += 1
        count.bad.append((at, "traceback", printed[-1500:]))
    return at, "hang" if alarm.rang else "crash"


class _Alarm:
    """Kill a child that has been silent for too long, as one is that hangs in foreign code."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        import threading

        self.child, self.rang, self.last, self.over = child, False, time.monotonic(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def heard(self) -> None:
        self.last = time.monotonic()

    def stop(self) -> None:
        self.over.set()

    def _watch(self) -> None:
        while not self.over.wait(1):
            if time.monotonic() - self.last > SILENCE:
                self.rang = True
                self.child.kill()
                return


# In the child ---------------------------------------------------------------------------------------------------------


class _TooLong(BaseException):
    """No reader catches this."""


def _ring(*_: Any) -> None:
    raise _TooLong


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def run_child(name: str, at: int, end: int, folder: Path) -> None:
    """Read mutants one after another and print what became of each."""
    from tests.hostile.mutants import mutant
    from tests.hostile.readers import READERS, seeds_of

    out, sys.stdout = sys.stdout, io.StringIO()  # readers may print
    seeds = seeds_of(name)
    work = folder.resolve() / "mutants"
    work.mkdir(parents=True, exist_ok=True)
    sys.path[:] = [os.path.abspath(entry) for entry in sys.path]
    os.chdir(work)  # a mutant may name the working folder, and that shall not be a checkout with all that lies in it
    for number, seed in enumerate(seeds):  # a sound file loads what is loaded late, and must be read
        reason = _outcome(READERS[name], seed.content, seed.suffix, work / f"sound{number}")
        assert reason[0] in ("read", "refused"), (name, number, reason)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY, -1))
    signal.signal(signal.SIGPROF, _ring)
    before = _status("VmHWM")
    for number in range(at, end):
        random = Random(f"{name} {_SEED} {number}")
        content, suffix = mutant(seeds, random)
        outcome, detail = _outcome(READERS[name], content, suffix, work / "m")
        print(json.dumps({"mutant": number, "outcome": outcome, "detail": detail[-1500:]}), file=out, flush=True)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime
    print(json.dumps({"peak": max(0, _status("VmHWM") - before), "seconds": seconds}), file=out, flush=True)


def _outcome(reader: Any, content: bytes, suffix: str, folder: Path) -> tuple[str, str]:
    """Read a mutant and say what became of it."""
    import traceback

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / f"m{suffix}"
    path.write_bytes(content)
    error: BaseException | None = None
    reason: str | None = None
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reason = reader.read(path)
    except BaseException as caught:
        error = caught
    finally:
        with contextlib.suppress(_TooLong):
            signal.setitimer(signal.ITIMER_PROF, 0)
    if error is not None:
        detail = "".join(traceback.format_exception(error))
        if isinstance(error, _TooLong) or "_TooLong" in detail:
            return "hang", detail
        if _has_memory_error(error):
            return "memory", detail
        if not isinstance(error, reader.refusals) or len(str(error).strip()) < 10:
            return "traceback", detail
        return "refused", str(error)
    if reason is not None and ("memory at hand" in reason or "MemoryError" in reason):
        return "memory", reason
    return ("read", "") if reason is None else ("refused", reason)


def _has_memory_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def table(counts: dict[str, Count]) -> str:
    """Return what became of the mutants as a Markdown table."""
    lines = ["| reader | mutants | read | refused | crashes | hangs | over memory | tracebacks | seconds | peak MB |"]
    lines.append("|---|" + "---:|" * 9)
    for name, count in counts.items():
        numbers = [sum(count.number.values()), *count.number.values()]
        cells = [*map(str, numbers), f"{count.seconds:.0f}", f"{count.peak / 1e6:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        asked = {name: int(number) for name, _, number in (argument.partition("=") for argument in sys.argv[1:])}
        counted = fuzz(asked)
        print(table(counted))
        for reader_name, result in counted.items():
            for place, kind, text in result.bad[:6]:
                print(f"\n== {reader_name} {place}: {kind}\n{text}")
