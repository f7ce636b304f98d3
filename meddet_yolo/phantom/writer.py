"""Writing a phantom data set: in parallel, resumable, verified.

A patient's record is written after all of the patient's files and holds their hashes, so a patient with a valid record
is complete. `data.yaml` is written last of all.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

from meddet_yolo.phantom.patient import NAMES
from meddet_yolo.phantom.study import PatientPlan, Study

MANIFEST = "phantom.json"
# Runs of equal bytes only: for noisy images as small as more search, in half the time.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
_PATIENTS_A_WORKER = 16  # fewer are not worth starting a process for


def write_study(root: Path, study: Study, workers: int) -> Path:
    """Write what is missing of a data set.

    Args:
        root: Folder: new, empty or an earlier, perhaps interrupted, result with the same parameters.
        study: The parameters.
        workers: Number of processes; 0 takes the number of cores where it is worth it.

    Returns:
        Path of `data.yaml`.

    Raises:
        FileExistsError: If `root` holds anything that this function did not write.
        ValueError: If `root` holds a data set made with other parameters.
    """
    _claim(root, study)
    plan = study.plan()
    records: dict[int, dict[str, Any]] = {}
    missing = []
    for place in plan:
        record = _verified(root, place)
        if record is None:
            missing.append(place)
        else:
            records[place.number] = record
    if missing:
        (root / "data.yaml").unlink(missing_ok=True)
        for split in {place.split for place in plan}:
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
        (root / "patients").mkdir(exist_ok=True)
        records.update(_make(root, study, missing, workers))
    _write_table(root, [records[place.number] for place in plan])
    return _write_data_yaml(root, study, plan)


def make_patient(root: str, study: Study, place: PatientPlan) -> dict[str, Any]:
    """Generate and write one patient; returns the record."""
    folder = Path(root)
    patient = study.patient(place.number)
    images = []
    for number in range(place.slices):
        scanned = patient.image(number, study.imgsz)
        stem = f"{place.name}_{number}"
        image, label = f"images/{place.split}/{stem}.png", f"labels/{place.split}/{stem}.txt"
        lines = []
        for cls, (x1, y1, x2, y2) in zip(patient.classes(), scanned.boxes, strict=True):
            lines.append(f"{cls} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n")
        ok, png = cv2.imencode(".png", scanned.image, _PNG)
        if not ok:
            raise OSError(f"could not encode the image {stem}.png")
        hashes = {
            file: _write(folder / file, content)
            for file, content in ((image, png.tobytes()), (label, "".join(lines).encode()))
        }
        boxes = [[round(float(v) * study.imgsz, 2) for v in box] for box in scanned.boxes]
        images.append({"sha256": hashes, "offset_mm": round(scanned.offset, 2), "boxes_xyxy": boxes})
    record = {"patient": place.name, "split": place.split, **patient.record(), "images": images}
    record["pixel_spacing_mm"] = round(record["field_of_view_mm"] / study.imgsz, 4)
    _write(folder / "patients" / f"{place.name}.json", (json.dumps(record, indent=1) + "\n").encode())
    return record


def _claim(root: Path, study: Study) -> None:
    """Make `root` the folder of this study or refuse it."""
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file: name a new folder")
    manifest = root / MANIFEST
    if manifest.is_file():
        try:
            known = dict(json.loads(manifest.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{manifest} is damaged: name a new folder with out=") from error
        wanted = study.manifest()
        changed = [f"{k}={known.get(k)!r} instead of {v!r}" for k, v in wanted.items() if known.get(k) != v]
        if changed:
            raise ValueError(
                f"{root} holds a data set made with {', '.join(changed)}: give the same parameters or another out="
            )
        return
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty and holds no generated data: name a new folder")
    root.mkdir(parents=True, exist_ok=True)
    _write(manifest, (json.dumps(study.manifest(), indent=2) + "\n").encode())


def _verified(root: Path, place: PatientPlan) -> dict[str, Any] | None:
    """Return a patient's record if all files are there as it says, else None."""
    try:
        record: dict[str, Any] = json.loads((root / "patients" / f"{place.name}.json").read_text())
        if record["split"] != place.split or len(record["images"]) != place.slices:
            return None
        for image in record["images"]:
            for file, digest in image["sha256"].items():
                if hashlib.sha256((root / file).read_bytes()).hexdigest() != digest:
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def _make(root: Path, study: Study, missing: list[PatientPlan], workers: int) -> dict[int, dict[str, Any]]:
    """Generate patients, in processes of their own where that is worth it."""
    done: dict[int, dict[str, Any]] = {}
    count = workers or min(_cores(), len(missing) // _PATIENTS_A_WORKER)
    with _progress(len(missing)) as bar, _one_thread():
        if count > 1:
            # Started afresh, not forked: the caller may hold threads and a GPU.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(count, len(missing)), mp_context=context, initializer=_start_worker)
            try:
                waiting = {pool.submit(make_patient, str(root), study, place): place for place in missing}
                for future in as_completed(waiting):
                    done[waiting[future].number] = future.result()
                    bar.update()
            except BrokenProcessPool:
                print(
                    "the worker processes did not start or were killed; going on in this one (a script that calls "
                    'generate_phantom needs `if __name__ == "__main__":` around the call, or workers=1)',
                    file=sys.stderr,
                )
            finally:
                pool.shutdown(cancel_futures=True)
        for place in missing:
            if place.number not in done:
                done[place.number] = make_patient(str(root), study, place)
                bar.update()
    return done


def _start_worker() -> None:
    """Set a worker process up: one thread each, and the parent decides what an interrupt means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread: the pieces of work are too small for more."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Show a progress bar on the standard error stream."""
    from ultralytics.utils import TQDM

    bar = TQDM(total=total, desc="patients", unit="", file=sys.stderr)
    try:
        yield bar
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on with the patients that are missing") from None
    finally:
        bar.close()


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_table(root: Path, records: list[dict[str, Any]]) -> None:
    """Write `discs.csv`: one row per image and disc."""
    rows = []
    for record in records:
        for image in record["images"]:
            file = next(f for f in image["sha256"] if f.startswith("images/"))
            for disc, box in zip(record["discs"], image["boxes_xyxy"], strict=True):
                row = {"image": file, "patient": record["patient"], "split": record["split"], **disc}
                row.update(zip(("x1", "y1", "x2", "y2"), box, strict=True))
                row["pixel_spacing_mm"], row["offset_mm"] = record["pixel_spacing_mm"], image["offset_mm"]
                rows.append(row)
    unfinished = root / "discs.csv.part"
    with unfinished.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, root / "discs.csv")


def _write_data_yaml(root: Path, study: Study, plan: list[PatientPlan]) -> Path:
    """Write the file that training takes as `data=`."""
    told = ", ".join(f"{key}={value}" for key, value in study.manifest().items() if key != "generator")
    splits = {place.split for place in plan}
    paths = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "test") if split in splits)
    names = "".join(f"  {index}: {name}\n" for index, name in NAMES.items())
    text = f"# Generated cervical-spine images ({told}); this file's folder is the root.\n{paths}names:\n{names}"
    _write(root / "data.yaml", text.encode())
    return root / "data.yaml"


def _write(path: Path, content: bytes) -> str:
    """Write a file whole or not at all; returns its hash."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
    return hashlib.sha256(content).hexdigest()
