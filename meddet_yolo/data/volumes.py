"""Finding and reading DICOM and NIfTI images: files, series folders, multi-frame objects, volumes.

Nothing here needs torch or Ultralytics. A source is searched first (`find_volumes`), by headers only; the pictures are
decoded one volume at a time when they are asked for (`Volume.read`). What cannot be read becomes a `Skipped` with its
reason, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.data.dicom import DicomFrame, DicomReference, VolumeError, is_dicom, read_frame, read_header
from meddet_yolo.data.geometry import SliceGeometry, oriented, picture
from meddet_yolo.data.grey import percentile_grey, scaled_grey
from meddet_yolo.data.nifti import NIFTI_SUFFIXES, NiftiVolume, is_nifti, read_nifti
from meddet_yolo.data.privacy import public_name, redact

__all__ = [
    "Found",
    "Skipped",
    "Slice",
    "Volume",
    "VolumeError",
    "find_volumes",
    "holds_volumes",
    "is_volume",
    "open_volume",
    "stem_of",
]

MID_COUNT, MID_STEP_MM = 3, 4.0  # slices=mid: the middle one and one 4 mm, a usual spacing, to each side
CACHE_SUFFIX = ".slices"  # folders of slices that a data set has decoded; never searched for images


@dataclass(frozen=True)
class Slice:
    """A decoded slice.

    Args:
        image: Grey picture (height, width), shown upright (see `geometry.oriented`).
        geometry: Where its pixels lie in the file and in the patient.
        name: Name for output files, without suffix; never names the patient.
        path: The file it comes from.
        index: Its number in the file, from 0: the frame, or the voxel index across the patient.
        offset_mm: Distance from the middle of its volume, to the patient's left positive; None where unknown.
        reference: UIDs of the DICOM object; None for NIfTI.
    """

    image: NDArray[np.uint8]
    geometry: SliceGeometry
    name: str
    path: Path
    index: int
    offset_mm: float | None = None
    reference: DicomReference | None = None


@dataclass(frozen=True)
class Skipped:
    """A file, or a slice of one, that was left out, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Part:
    """A slice that is not decoded yet."""

    path: Path
    index: int
    name: str
    geometry: SliceGeometry
    position: float | None = None  # along the normal that points to the patient's left, front or head, in mm
    frame: DicomFrame | None = None


@dataclass(frozen=True)
class Volume:
    """Slices that belong together: a series, a multi-frame object, a NIfTI volume, or one image alone.

    Args:
        name: Name for output files, without suffix; never names the patient.
        parts: Its chosen slices, in anatomical order where that is known.
        middle: Position of its middle in mm, for `Slice.offset_mm`.
        nifti: The volume's header, where it is one.
        words: Words that name the patient, to mask.
    """

    name: str
    parts: tuple[Part, ...]
    middle: float | None = None
    nifti: NiftiVolume | None = None
    words: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """Return the number of chosen slices."""
        return len(self.parts)

    def read(self, window: str | tuple[float, float] = "header") -> Iterator[Slice | Skipped]:
        """Decode the slices one after another; a NIfTI volume is decoded once for all of them.

        Args:
            window: "header", "percentile" or (centre, width); see `dicom.read_frame`. A NIfTI file has no window, so
                that the first two are the same there.
        """
        voxels = None
        if self.nifti is not None:
            try:
                voxels = self.nifti.voxels()
            except VolumeError as error:
                yield Skipped(self.nifti.path, str(error))
                return
        for part in self.parts:
            try:
                if part.frame is not None:
                    grey = read_frame(part.frame, window)
                elif voxels is not None and isinstance(window, tuple):
                    centre, width = window
                    grey = scaled_grey(voxels[part.index], centre - width / 2, centre + width / 2)
                elif voxels is not None:
                    grey = percentile_grey(voxels[part.index])
                image = picture(grey, part.geometry)
            except VolumeError as error:
                yield Skipped(part.path, redact(str(error), self.words))
                continue
            offset = None
            if part.geometry.plane == "sagittal" and part.position is not None and self.middle is not None:
                offset = part.position - self.middle
            reference = part.frame.reference if part.frame else None
            yield Slice(image, part.geometry, part.name, part.path, part.index, offset, reference)


@dataclass
class Found:
    """What a source holds.

    Args:
        volumes: What can be read, as far as headers tell.
        images: Ordinary files that are neither DICOM nor NIfTI, for others to read.
        skipped: What cannot.
        notes: What a user should know of the rest.
        words: Words that name patients, to mask in whatever is shown.
    """

    volumes: list[Volume] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    words: set[str] = field(default_factory=set)


def is_volume(path: str | Path) -> bool:
    """Return whether a file is DICOM or NIfTI, by its name, and its first bytes where it has no suffix."""
    path = Path(path)
    return is_nifti(path) or is_dicom(path)


def stem_of(path: Path) -> str:
    """Return a file's name without its suffix; `.nii.gz` is one.

    Examples:
        >>> stem_of(Path("a/t2.nii.gz")), stem_of(Path("IM001.dcm")), stem_of(Path("1.2.840.7"))
        ('t2', 'IM001', '1.2.840.7')
    """
    name = path.name
    for suffix in sorted(NIFTI_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem if path.suffix[1:].isalpha() else name


def choose(positions: Sequence[float | None], slices: str | int) -> list[int]:
    """Choose slices by their positions in mm along the volume.

    Args:
        positions: Position of every slice; None counts as 4 mm apart.
        slices: "all", "mid" for the middle one and its neighbours at 4 mm, or the number of slices around the middle.
            Where the slices themselves are farther apart, neighbours are taken.

    Returns:
        Indices in ascending position.

    Raises:
        ValueError: If `slices` is something else.

    Examples:
        >>> choose([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "mid"), choose([0, 5, 10, 15, 20], 3)
        ([1, 5, 9], [1, 2, 3])
    """
    if slices != "all" and slices != "mid" and (isinstance(slices, (bool, str)) or slices < 1):
        raise ValueError(f"slices={slices!r} is neither 'mid', 'all' nor a number of slices from 1")
    places = np.array([i * MID_STEP_MM if p is None else p for i, p in enumerate(positions)], float)
    order = np.argsort(places, kind="stable")
    if slices == "all":
        return [int(i) for i in order]
    unique = np.unique(np.round(places, 2))
    wanted = min(MID_COUNT if slices == "mid" else int(slices), len(unique))
    extent = unique[-1] - unique[0]
    step = max(MID_STEP_MM, float(np.median(np.diff(unique)))) if len(unique) > 1 else 0.0
    step = min(step, extent / max(wanted - 1, 1))
    middle = (unique[0] + unique[-1]) / 2
    chosen: list[float] = []
    for k in range(wanted):
        free = [u for u in unique if u not in chosen]
        chosen.append(min(free, key=lambda u: abs(u - middle - (k - (wanted - 1) / 2) * step)))
    first = {round(float(places[i]), 2): int(i) for i in order[::-1]}  # of several at one place (echoes) the first
    return [first[round(float(c), 2)] for c in sorted(chosen)]


# One file -------------------------------------------------------------------------------------------------------------


def open_volume(path: str | Path, slices: str | int = "all") -> Volume:
    """Open one file by its header.

    Args:
        path: A DICOM file or a NIfTI volume.
        slices: Which slices of a volume or frames of a multi-frame file: "all", "mid" or a number; see `choose`.

    Raises:
        VolumeError: If the file cannot be used; the message is the reason without the file's name.
        ImportError: If pydicom or nibabel is missing.
    """
    path = Path(path)
    if not is_nifti(path):
        frames = read_header(path)
        return _from_frames(
            frames, public_name(stem_of(path), frames[0].words, frames[0].reference.sop_instance), slices
        )
    volume = read_nifti(path)
    stem = stem_of(path)
    geometries = [
        oriented(volume.stored_shape, patient=volume.patient_matrix(i)) for i in range(volume.shape[volume.axis])
    ]
    parts = [
        Part(path, i, f"{stem}_s{i:03d}", geometry, _position(geometry, None)) for i, geometry in enumerate(geometries)
    ]
    return Volume(stem, *_chosen(parts, slices), nifti=volume)


def _from_frames(frames: Sequence[DicomFrame], name: str, slices: str | int) -> Volume:
    """Put DICOM frames of one plane together."""
    parts: list[Part] = []
    for frame in frames:
        geometry = oriented(frame.stored_shape, patient=frame.patient, spacing=frame.spacing)
        own = public_name(stem_of(frame.path), frame.words, frame.reference.sop_instance)
        own = own if frame.frames == 1 else f"{own}_s{frame.index:03d}"
        normal = None if not parts else parts[0].geometry
        parts.append(Part(frame.path, frame.index, own, geometry, _position(geometry, normal), frame))
    words = frozenset().union(*(frame.words for frame in frames))
    return Volume(name, *_chosen(parts, slices), words=words)


def _position(geometry: SliceGeometry, like: SliceGeometry | None) -> float | None:
    """Return a slice's position along the normal of `like` (by default its own), which points to L, P or H."""
    matrix = geometry.patient
    direction = matrix if like is None else like.patient
    if matrix is None or direction is None:
        return None
    normal = np.cross(direction[:, 0], direction[:, 1])
    normal = normal / np.linalg.norm(normal)
    normal = normal * np.sign(normal[np.argmax(np.abs(normal))])
    return float(matrix[:, 2] @ normal)


def _chosen(parts: Sequence[Part], slices: str | int) -> tuple[tuple[Part, ...], float | None]:
    """Return the chosen slices and the position of the middle of all."""
    positions = [part.position for part in parts]
    known = [p for p in positions if p is not None]
    middle = (min(known) + max(known)) / 2 if len(known) == len(parts) > 1 else None
    return tuple(parts[i] for i in choose(positions, slices)), middle


# Files and folders ----------------------------------------------------------------------------------------------------


def find_volumes(source: str | Path | Iterable[str | Path], slices: str | int = "mid") -> Found:
    """Search a source for DICOM and NIfTI images by their headers.

    Args:
        source: A file, a folder (searched with its subfolders), a glob pattern, a `.txt` list of these, or several.
            DICOM files of one folder are put together by series and plane; files given by name or pattern stand for
            themselves.
        slices: Which slices of a series or volume: "mid", "all" or a number; see `choose`.

    Raises:
        FileNotFoundError: If a path does not exist.
        ImportError: If pydicom or nibabel is missing.
    """
    choose([0.0], slices)  # refuse a bad value before anything is read
    found = Found()
    folders: dict[Path, list[Path]] = {}
    for item in [source] if isinstance(source, (str, Path)) else list(source):
        for path in _expand(item):
            if path.is_dir():
                folders.update(_folders(path, found))
            elif is_volume(path):
                _add(found, [path], slices)
            else:
                found.images.append(path)
    for folder, files in folders.items():
        _add(found, files, slices, folder)
    found.skipped = [Skipped(Path(redact(str(s.path), found.words)), s.reason) for s in found.skipped]
    return found


def volume_files(source: str | Path) -> list[Path]:
    """Return the DICOM and NIfTI files of a file, folder (with its subfolders), pattern or `.txt` list.

    Raises:
        FileNotFoundError: If a path does not exist.
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


def _expand(item: str | Path) -> list[Path]:
    """Return the files and folders that a path, pattern or list file stands for."""
    path = Path(item)
    if path.exists():
        if path.suffix.lower() == ".txt" and path.is_file():
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            names = [line.strip() for line in lines if line.strip()]
            return [p for n in names for p in _expand(n if Path(n).exists() else path.parent / n)]
        return [path]
    if glob.has_magic(str(item)):
        return [Path(p) for p in sorted(glob.glob(str(item), recursive=True))]
    raise FileNotFoundError(f"{item}: no such file or folder")


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
            found.images += [p for p in paths if p not in set(medical)]
    return folders


def _add(found: Found, files: Sequence[Path], slices: str | int, folder: Path | None = None) -> None:
    """Open files and put what belongs together into volumes."""
    series: dict[tuple[str, str | None], list[DicomFrame]] = defaultdict(list)
    for path in files:
        try:
            if is_nifti(path):
                volume = open_volume(path, slices)
                found.volumes.append(volume)
                if volume.nifti is not None and not volume.nifti.located:
                    found.notes.append(f"{path}: does not say how it lies in the patient; taken as nibabel assumes")
                continue
            frames = read_header(path)
        except VolumeError as error:
            found.skipped.append(Skipped(path, str(error)))
            continue
        found.words |= frames[0].words
        for frame in frames:
            plane = oriented(frame.stored_shape, patient=frame.patient).plane
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
            text = f"{folder}: mixed series: {shown} ({len(files)} files) taken as a series by itself"
            found.notes.append(redact(text, found.words))
        frames = sorted(frames, key=lambda frame: (frame.number, str(frame.path), frame.index))
        if folder is None or len(files) == 1:
            name = public_name(stem_of(files[0]), frames[0].words, frames[0].reference.sop_instance)
        else:
            name = public_name(folder.resolve().name, found.words, uid)
            name = f"{name}_{number + 1}" if several else name
        found.volumes.append(_from_frames(frames, name, slices))
