"""DICOM and NIfTI images: slices that belong together, opened by their headers, decoded when they are asked for.

Nothing here needs torch or Ultralytics. What cannot be read becomes a `Skipped` with its reason, and the rest goes on.
`search` finds them in files and folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.imaging.dicom import DicomFrame, DicomReference, VolumeError, is_dicom, read_frame, read_header
from meddet_yolo.imaging.geometry import SliceGeometry, oriented, picture
from meddet_yolo.imaging.grey import percentile_grey, scaled_grey
from meddet_yolo.imaging.label_maps import is_label_map
from meddet_yolo.imaging.limits import MAX_PIXELS
from meddet_yolo.imaging.nifti import NIFTI_SUFFIXES, NiftiVolume, is_nifti, read_nifti
from meddet_yolo.imaging.privacy import public_name, redact

__all__ = [
    "Part",
    "Skipped",
    "Slice",
    "Volume",
    "VolumeError",
    "choose",
    "is_volume",
    "open_volume",
    "reason_of",
    "series_volume",
    "stem_of",
]

MID_COUNT, MID_STEP_MM = 3, 4.0  # slices=mid: the middle one and one 4 mm, a usual spacing, to each side


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

    def masked(self, words: Iterable[str]) -> Skipped:
        """Return it without the words that name a patient."""
        return Skipped(Path(redact(str(self.path), words)), redact(self.reason, words))


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
                if is_label_map(voxels):
                    raise VolumeError(f"is a label map ({len(np.unique(voxels))} whole values in regions), no image")
            except Exception as error:
                yield Skipped(self.nifti.path, reason_of(error))
                return
        for part in self.parts:
            try:
                if part.frame is not None:
                    grey = read_frame(part.frame, window)
                elif voxels is not None and isinstance(window, tuple):
                    centre, width = window
                    grey = scaled_grey(voxels[part.index], centre - width / 2, centre + width / 2)
                elif voxels is not None:
                    grey = percentile_grey(voxels[part.index].astype(np.float32))
                image = picture(grey, part.geometry)
            except Exception as error:  # one file must not end the run, whatever it makes a library do
                yield Skipped(part.path, redact(reason_of(error), self.words))
                continue
            offset = None
            if part.geometry.plane == "sagittal" and part.position is not None and self.middle is not None:
                offset = part.position - self.middle
            reference = part.frame.reference if part.frame else None
            yield Slice(image, part.geometry, part.name, part.path, part.index, offset, reference)


def reason_of(error: Exception) -> str:
    """Return why a file cannot be read, from what reading it raised.

    Examples:
        >>> reason_of(VolumeError("holds no image")), reason_of(ZeroDivisionError())
        ('holds no image', 'damaged, or of a kind that is not known (ZeroDivisionError)')
    """
    if isinstance(error, (VolumeError, ImportError)):
        return str(error)
    if isinstance(error, MemoryError):
        return "too large for the memory at hand"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    return f"damaged, or of a kind that is not known ({type(error).__name__})"  # the text may quote the file


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


def open_volume(path: str | Path, slices: str | int = "all", max_pixels: int = MAX_PIXELS) -> Volume:
    """Open one file by its header.

    Args:
        path: A DICOM file or a NIfTI volume.
        slices: Which slices of a volume or frames of a multi-frame file: "all", "mid" or a number; see `choose`.
        max_pixels: The most pixels that a picture may have; see `limits`.

    Raises:
        VolumeError: If the file cannot be used; the message is the reason without the file's name.
        ImportError: If pydicom or nibabel is missing.
    """
    path = Path(path)
    if not is_nifti(path):
        frames = read_header(path, max_pixels)
        return series_volume(
            frames, public_name(stem_of(path), frames[0].words, frames[0].reference.sop_instance), slices
        )
    volume = read_nifti(path, max_pixels)
    stem = stem_of(path)
    geometries = [
        oriented(volume.stored_shape, patient=volume.patient_matrix(i)) for i in range(volume.shape[volume.axis])
    ]
    parts = [
        Part(path, i, f"{stem}_s{i:03d}", geometry, _position(geometry, None)) for i, geometry in enumerate(geometries)
    ]
    return Volume(stem, *_chosen(parts, slices), nifti=volume)


def series_volume(frames: Sequence[DicomFrame], name: str, slices: str | int) -> Volume:
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
