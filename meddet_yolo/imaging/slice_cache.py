"""Slices of DICOM and NIfTI files as 8-bit PNG, decoded once, for training.

A training reads every image in every epoch; decoding a volume each time would cost more than the training step. The
pictures lie beside the label files, in a folder named like theirs with the suffix `.slices`, with a `slices.json` that
says what they were made of. Names and contents hold nothing that identifies the patient beyond the picture itself. A
file that changes is decoded again; the pictures of one that is gone are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meddet_yolo.files import alone, write_whole
from meddet_yolo.imaging.dicom_header import read_header
from meddet_yolo.imaging.limits import MAX_PIXELS, VolumeError
from meddet_yolo.imaging.nifti import is_nifti
from meddet_yolo.imaging.search import CACHE_SUFFIX
from meddet_yolo.imaging.volumes import Skipped, Volume, choose, open_volume, reason_of, stem_of

__all__ = ["CachedSlices", "cache_slices"]

MANIFEST, VERSION = "slices.json", 1
LOCK = ".lock"


@dataclass
class CachedSlices:
    """Pictures of slices on disk.

    Args:
        labels: Label file of every picture, which need not exist.
        skipped: Files that could not be used, and why.
    """

    labels: dict[Path, Path] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def cache_slices(
    files: Iterable[Path],
    *,
    label_folder: Callable[[Path], Path],
    fallback: Path,
    slices: str | int = "labelled",
    window: str | tuple[float, float] = "header",
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[Iterator[Any], int], Iterable[Any]] = lambda results, total: results,
) -> CachedSlices:
    """Decode the slices of a data set's DICOM and NIfTI files, or find them decoded.

    A file with one image has the label file `NAME.txt`. A slice of a volume or multi-frame file has `NAME_sNNN.txt`,
    NNN being its voxel index across the patient, or its frame, from 0.

    Args:
        files: DICOM and NIfTI files.
        label_folder: Folder of the label files for a folder of images.
        fallback: Where to keep the pictures if they may not be written beside the labels.
        slices: Which slices of a volume or multi-frame file to use: "labelled" for those that have a label file (an
            empty one makes a background image), "mid", "all" or a number; see `volumes.choose`.
        window: As in `Volume.read`.
        max_pixels: The most pixels that a picture may have; see `limits`.
        progress: Wraps the results as they come, to show a bar; is given their number too.

    Processes that share a folder decode it one after another; the later ones find what the first has decoded.

    Examples:
        >>> import tempfile
        >>> cache_slices([], label_folder=Path, fallback=Path(tempfile.gettempdir())).labels
        {}
    """
    if slices != "labelled":
        choose([0.0], slices)  # refuses a wrong value before anything is decoded
    result = CachedSlices()
    folders: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        folders[file.parent].append(file)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for folder, members in sorted(folders.items()):
            store = _Store(folder, label_folder(folder), fallback)
            wanted = {file: _wanted(file, store.labels, slices) for file in members}

            def decode(file: Path, wanted: dict[Path, Any] = wanted) -> tuple[list[Any], list[Skipped]]:
                return _decode(file, wanted[file], window, max_pixels)

            with alone(store.folder / LOCK, "", wait=True):
                store.load()
                todo = [file for file in members if not store.has(file, wanted[file], window)]
                taken = store.names(set(members) - set(todo))
                done = progress(pool.map(decode, todo), len(todo)) if todo else ()
                failed: list[Skipped] = []
                for file, (pictures, skipped) in zip(todo, done, strict=True):
                    failed += skipped
                    if pictures:
                        try:
                            made_of = store.made_of(file, wanted[file], window)
                        except OSError:
                            failed.append(Skipped(file, "vanished while it was read"))
                            continue
                        store.add(file, made_of, pictures, taken, complete=not skipped)
                if failed:  # all headers are asked, also of files that are decoded: names must not depend on these
                    words = _words(members)
                    result.skipped += [item.masked(words) for item in failed]
                store.save(keep=set(members))
                for file in members:
                    result.labels.update(store.pictures(file))
    return result


def _words(files: Iterable[Path]) -> frozenset[str]:
    """Return the words that name the patients of some files."""
    words: frozenset[str] = frozenset()
    for file in files:
        if not is_nifti(file):
            try:
                words |= read_header(file)[0].words
            except Exception as error:
                words |= error.words if isinstance(error, VolumeError) else frozenset()
    return words


def _wanted(file: Path, labels: Path, slices: str | int) -> str | int | tuple[int, ...]:
    """Return which slices of a file to use, those with a label file as a tuple."""
    if slices != "labelled":
        return slices
    return tuple(sorted(_labelled(file, labels)))


def _labelled(file: Path, labels: Path) -> dict[int, Path]:
    """Return the label files of a volume's slices by index."""
    pattern = re.compile(re.escape(stem_of(file)) + r"_s(\d{1,9})\.txt")
    try:
        names = [(pattern.fullmatch(entry.name), entry.name) for entry in os.scandir(labels)]
    except OSError:
        return {}
    return {int(match[1]): labels / name for match, name in names if match}  # as many digits as any slice can have


def _decode(
    file: Path, wanted: str | int | tuple[int, ...], window: str | tuple[float, float], max_pixels: int
) -> tuple[list[tuple[str, int | None, bytes]], list[Skipped]]:
    """Return name, index (None for a file of one image) and PNG of every wanted slice, and what failed."""
    import cv2

    try:
        volume = open_volume(file, wanted if isinstance(wanted, (str, int)) else "all", max_pixels)
    except ImportError:  # what is missing is missing for all
        raise
    except Exception as error:  # one file must not end the run, whatever it makes a library do
        return [], [Skipped(file, reason_of(error))]
    single = volume.nifti is None and volume.parts[0].frame is not None and volume.parts[0].frame.frames == 1
    if isinstance(wanted, tuple) and not single:
        parts = tuple(part for part in volume.parts if part.index in wanted)
        if missing := set(wanted) - {part.index for part in parts}:
            return [], [Skipped(file, f"has {len(volume)} slices, but a label file for slice {min(missing)}")]
        if not parts:
            example = f"{stem_of(file)}_s{len(volume) // 2:03d}.txt"
            return [], [Skipped(file, f"none of its {len(volume)} slices has a label file (such as {example})")]
        volume = Volume(volume.name, parts, volume.middle, volume.nifti, volume.words)
    pictures, skipped = [], []
    for item in volume.read(window):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            png = cv2.imencode(".png", item.image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
            pictures.append((item.name, None if single else item.index, png))
    return pictures, skipped


class _Store:
    """The decoded pictures of one folder and what is known of them."""

    def __init__(self, images: Path, labels: Path, fallback: Path) -> None:
        self.labels = labels
        self.folder = labels.with_name(labels.name + CACHE_SUFFIX)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            key = hashlib.sha256(str(images.resolve()).encode()).hexdigest()[:16]
            self.folder = fallback / key
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.entries: dict[str, dict[str, Any]] = {}
        self.broken: dict[str, dict[str, Any]] = {}  # pictures of files of which others failed; tried again next time
        self.before = ""

    def load(self) -> None:
        """Read what is known; what is not as it was written counts as not known."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            known = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            if isinstance(known, dict) and known.get("version") == VERSION and isinstance(known.get("files"), dict):
                self.entries = {key: entry for key, entry in known["files"].items() if _is_entry(entry)}
        self.before = json.dumps(self.entries)

    @staticmethod
    def _key(file: Path) -> str:
        """Return a file's key, which does not tell its name: that may be the patient's."""
        return hashlib.sha256(file.name.encode()).hexdigest()[:32]

    @staticmethod
    def made_of(file: Path, wanted: Any, window: Any) -> list[Any]:
        """Return what pictures depend on."""
        stat = file.stat()
        return [stat.st_size, stat.st_mtime_ns, json.dumps(wanted), json.dumps(window)]

    def has(self, file: Path, wanted: Any, window: Any) -> bool:
        """Return whether a file's pictures are there and up to date."""
        entry = self.entries.get(self._key(file))
        try:
            return (
                entry is not None
                and entry["made_of"] == self.made_of(file, wanted, window)
                and all((self.folder / name).is_file() for name, _ in entry["pictures"])
            )
        except OSError:
            return False

    def names(self, files: Iterable[Path]) -> set[str]:
        """Return the names of pictures in use."""
        entries = [self.entries.get(self._key(file)) for file in files]
        return {name for entry in entries if entry for name, _ in entry["pictures"]}

    def add(
        self,
        file: Path,
        made_of: list[Any],
        pictures: list[tuple[str, int | None, bytes]],
        taken: set[str],
        *,
        complete: bool,
    ) -> None:
        """Write a file's pictures."""
        written = []
        for stem, index, png in pictures:
            name = f"{stem}.png"
            if name in taken:  # a.dcm beside a.nii
                name = f"{stem}-{self._key(file)[:6]}.png"
            taken.add(name)
            write_whole(self.folder / name, png)
            written.append([name, index])
        entry = {"made_of": made_of, "pictures": written}
        (self.entries if complete else self.broken)[self._key(file)] = entry

    def pictures(self, file: Path) -> dict[Path, Path]:
        """Return a file's pictures with their label files."""
        entry = self.entries.get(self._key(file)) or self.broken.get(self._key(file))
        labels, stem = _labelled(file, self.labels) if entry else {}, stem_of(file)
        return {
            self.folder / name: self.labels / f"{stem}.txt"
            if index is None
            else labels.get(index, self.labels / f"{stem}_s{index:03d}.txt")
            for name, index in (entry["pictures"] if entry else [])
        }

    def save(self, keep: Iterable[Path]) -> None:
        """Write what is known, and remove the pictures of files that are gone."""
        keys = {self._key(file) for file in keep}
        self.entries = {key: entry for key, entry in self.entries.items() if key in keys and key not in self.broken}
        used = {name for entry in (*self.entries.values(), *self.broken.values()) for name, _ in entry["pictures"]}
        for path in self.folder.glob("*.png"):
            if path.name not in used:
                path.unlink(missing_ok=True)
        if json.dumps(self.entries) != self.before or not (self.folder / MANIFEST).is_file():
            text = json.dumps({"version": VERSION, "files": self.entries})
            write_whole(self.folder / MANIFEST, text)


def _is_entry(entry: Any) -> bool:
    """Return whether an entry of the manifest is one that this module writes: names of pictures in its own folder."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("pictures"), list)
        and "made_of" in entry
        and all(
            isinstance(item, list)
            and len(item) == 2
            and isinstance(item[0], str)
            and re.fullmatch(r"[^/\\\0]+\.png", item[0])
            and (item[1] is None or (type(item[1]) is int and item[1] >= 0))
            for item in entry["pictures"]
        )
    )
