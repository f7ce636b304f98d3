"""Searching files and folders for DICOM and NIfTI images, by their headers."""

from __future__ import annotations

import contextlib
import glob
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from meddet_yolo.imaging.dicom_header import DicomFrame, read_header
from meddet_yolo.imaging.geometry import oriented
from meddet_yolo.imaging.limits import MAX_PIXELS, VolumeError, checked_max_pixels
from meddet_yolo.imaging.nifti import is_nifti
from meddet_yolo.imaging.privacy import content_key, public_name, redact
from meddet_yolo.imaging.volumes import (
    Skipped,
    Volume,
    choose,
    is_volume,
    open_volume,
    reason_of,
    series_volume,
    stem_of,
)

__all__ = ["CACHE_SUFFIX", "Found", "ListError", "find_volumes", "holds_volumes", "volume_files"]

CACHE_SUFFIX = ".slices"  # folders of slices that a data set has decoded; never searched for images


class ListError(RuntimeError):
    """A `.txt` list that cannot be followed."""


@dataclass
class Found:
    """What a source holds.

    Args:
        volumes: What can be read, as far as headers tell.
        images: Files given by name that are neither DICOM nor NIfTI, for others to read.
        beside: Other files that lie beside DICOM and NIfTI in a folder, or match a pattern.
        skipped: What cannot.
        notes: What a user should know of the rest.
        words: Words that name patients, to mask in whatever is shown.
    """

    volumes: list[Volume] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    beside: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    words: set[str] = field(default_factory=set)


def find_volumes(
    source: str | Path | Iterable[str | Path], slices: str | int = "mid", max_pixels: int = MAX_PIXELS
) -> Found:
    """Search a source for DICOM and NIfTI images by their headers.

    Args:
        source: A file, a folder (searched with its subfolders), a glob pattern, a `.txt` list of these, or several.
            DICOM files of one folder are put together by series and plane; files given by name or pattern stand for
            themselves.
        slices: Which slices of a series or volume: "mid", "all" or a number; see `choose`.
        max_pixels: The most pixels that a picture may have; see `limits`.

    Raises:
        FileNotFoundError: If a path does not exist.
        ListError: If a list is no text or lists itself.
        ImportError: If pydicom or nibabel is missing.
    """
    choose([0.0], slices)  # refuse a bad value before anything is read
    max_pixels = checked_max_pixels(max_pixels)
    found = Found()
    folders: dict[Path, list[Path]] = {}
    for item in [source] if isinstance(source, (str, Path)) else list(source):
        for path in _expand(item):
            if path.is_dir():
                folders.update(_folders(path, found))
            elif is_volume(path):
                _add(found, [path], slices, max_pixels)
            else:
                (found.images if path == Path(item) else found.beside).append(path)
    for folder, files in folders.items():
        _add(found, files, slices, max_pixels, folder)
    # Only now are all words known: a file may be named after a patient whom the header of another one tells.
    found.volumes = [_public(volume, found.words) for volume in found.volumes]
    found.skipped = [skipped.masked(found.words) for skipped in found.skipped]
    found.notes = [redact(note, found.words) for note in found.notes]
    return found


def _public(volume: Volume, words: Collection[str]) -> Volume:
    """Rename a volume and those of its slices whose names hold a word."""
    names = [volume.name, *(part.name for part in volume.parts)]
    if all(redact(name, words) == name for name in names):
        return volume
    parts = []
    for part in volume.parts:
        uid = part.frame.reference.sop_instance if part.frame else ""
        name = public_name(stem_of(part.path), words, uid or content_key(part.path))
        several = part.frame is None or part.frame.frames > 1
        name = f"{name}_s{part.index:03d}" if several else name
        parts.append(part if redact(part.name, words) == part.name else replace(part, name=name))
    first = volume.parts[0]
    uid = first.frame.reference.series if first.frame else ""
    if first.frame and len({part.path for part in volume.parts}) == 1:
        uid = first.frame.reference.sop_instance
    name = public_name(volume.name, words, uid or content_key(first.path))
    return replace(volume, name=name, parts=tuple(parts))


def volume_files(source: str | Path) -> list[Path]:
    """Return the DICOM and NIfTI files of a file, folder (with its subfolders), pattern or `.txt` list.

    Raises:
        FileNotFoundError: If a path does not exist.
        ListError: If a list is no text or lists itself.
    """
    files = []
    for path in _expand(source):
        if path.is_dir():
            files += [file for members in _folders(path, Found()).values() for file in members]
        elif is_volume(path):
            files.append(path)
    return files


def holds_volumes(items: Iterable[str | Path]) -> bool:
    """Return whether there is DICOM or NIfTI among paths, folders and patterns; what does not exist holds none."""
    for item in items:
        with contextlib.suppress(OSError, ValueError):  # also texts that are no path: addresses, camera numbers
            if volume_files(item):
                return True
    return False


def _expand(item: str | Path, inside: tuple[Path, ...] = ()) -> list[Path]:
    """Return the files and folders that a path, pattern or list file stands for."""
    path = Path(item)
    if _exists(path):
        return _listed(path, inside) if path.suffix.lower() == ".txt" and path.is_file() else [path]
    if glob.has_magic(str(item)):
        return [Path(p) for p in sorted(glob.glob(str(item), recursive=True))]
    raise FileNotFoundError(f"{item}: no such file or folder")


def _exists(path: Path) -> bool:
    """Return whether there is something of that name, which may be any text."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a character that no name has
        return False


def _listed(path: Path, inside: tuple[Path, ...]) -> list[Path]:
    """Return what a list file lists; other lists may be in it, one level deep."""
    resolved = path.resolve()
    if resolved in inside:
        raise ListError(f"{path} lists itself: take that line out")
    if len(inside) > 1:  # lists that each list the next one twice would double with every level
        raise ListError(f"{path} is a list in a list in a list: name the files in one")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ListError(f"{path} is no text, expected a list of files in UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    return [p for n in names for p in _expand(n if _exists(Path(n)) else path.parent / n, (*inside, resolved))]


def _folders(top: Path, found: Found) -> dict[Path, list[Path]]:
    """Return the DICOM and NIfTI files of a folder and its subfolders, by folder; other files of `top` are noted."""
    folders = {}
    for folder, names, files in os.walk(top):
        names[:] = sorted(n for n in names if not n.startswith(".") and not n.endswith(CACHE_SUFFIX))
        paths = [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
        medical = [p for p in paths if is_volume(p) and p.name.upper() != "DICOMDIR"]
        if medical:
            folders[Path(folder)] = medical
        if Path(folder) == top:
            found.beside += [p for p in paths if p not in set(medical)]
    return folders


def _add(found: Found, files: Sequence[Path], slices: str | int, max_pixels: int, folder: Path | None = None) -> None:
    """Open files and put what belongs together into volumes."""
    series: dict[tuple[str, str | None], list[DicomFrame]] = defaultdict(list)
    for path in files:
        try:
            if is_nifti(path):
                volume = open_volume(path, slices, max_pixels)
                found.volumes.append(volume)
                if volume.nifti is not None and not volume.nifti.located:
                    found.notes.append(f"{path}: does not say how it lies in the patient; taken as nibabel assumes")
                continue
            frames = read_header(path, max_pixels)
            planes = [oriented(frame.stored_shape, patient=frame.patient).plane for frame in frames]
        except ImportError:  # what is missing is missing for all
            raise
        except Exception as error:  # one file must not end the run, whatever it makes a library do
            found.words |= error.words if isinstance(error, VolumeError) else frozenset()
            found.skipped.append(Skipped(path, reason_of(error)))
            continue
        found.words |= frames[0].words
        for frame, plane in zip(frames, planes, strict=True):
            # A file without a series is one of its own, as one that was given by name is.
            key = frame.reference.series if folder is not None and frame.reference.series else str(path)
            series[key, plane].append(frame)
    _add_series(found, series, slices, folder)


def _add_series(
    found: Found,
    series: dict[tuple[str, str | None], list[DicomFrame]],
    slices: str | int,
    folder: Path | None,
) -> None:
    """Add the series of one folder; beside sagittal ones, those of other planes are left out."""
    if not series:
        return
    planes = {plane for _, plane in series}
    several = sum("sagittal" not in planes or plane == "sagittal" for _, plane in series) > 1
    largest = max(series, key=lambda key: (key[1] == "sagittal", len(series[key])))
    for number, ((uid, plane), frames) in enumerate(series.items()):
        files = list(dict.fromkeys(frame.path for frame in frames))
        if "sagittal" in planes and plane != "sagittal":
            reason = f"{plane or 'no'} plane, in a folder of sagittal slices; give it by itself to use it"
            found.skipped += [Skipped(path, f"mixed series: {reason}") for path in files]
            continue
        if (uid, plane) != largest and uid != largest[0] and len(series[largest]) > 1:
            shown = ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")
            found.notes.append(f"{folder}: mixed series: {shown} ({len(files)} files) taken as a series by itself")
        frames = sorted(frames, key=lambda frame: (frame.number, str(frame.path), frame.index))
        if folder is None or len(files) == 1:
            name = public_name(stem_of(files[0]), frames[0].words, frames[0].reference.sop_instance)
        else:
            name = public_name(folder.resolve().name, found.words, uid)
            name = f"{name}_{number + 1}" if several else name
        found.volumes.append(series_volume(frames, name, slices))
