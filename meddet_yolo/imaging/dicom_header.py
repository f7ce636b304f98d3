"""Reading DICOM headers with pydicom: what frames a file holds, and each one's place in the patient.

Only what a picture needs is taken from a header; nothing that names the patient leaves this module, except as words to
mask (`privacy`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.console import how_to_install
from meddet_yolo.imaging.compressed import InflatingFile
from meddet_yolo.imaging.limits import (
    MAX_PIXELS,
    VolumeError,
    check_bytes,
    check_distances,
    check_picture,
    check_place,
    check_slices,
    refuse_device,
)
from meddet_yolo.imaging.privacy import IDENTIFYING, identity_words, silent

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
_NO_IMAGE = {"SEG": "a segmentation", "RTDOSE": "a dose grid", "RTSTRUCT": "contours", "RTPLAN": "a treatment plan"}


@dataclass(frozen=True)
class DicomReference:
    """The object a frame belongs to: what a Structured Report must cite. UIDs name no patient.

    Args:
        study: Study Instance UID; empty where the file has none, like the others.
        series: Series Instance UID.
        sop_class: SOP Class UID.
        sop_instance: SOP Instance UID.
        frame: Number of the frame from 1; None in a single-frame object.
    """

    study: str
    series: str
    sop_class: str
    sop_instance: str
    frame: int | None = None


@dataclass(frozen=True)
class DicomFrame:
    """What is known of a frame before its pixels are decoded.

    Args:
        path: The file.
        index: Index of the frame in its file, from 0.
        frames: Number of frames in the file.
        stored_shape: (rows, columns) of the matrix.
        patient: (3, 3) matrix from stored (column, row, 1) to LPS in mm, or None.
        spacing: (between rows, between columns) in mm, or None.
        reference: The object's UIDs.
        number: Instance number, for ordering where there is no position.
        words: Words that name the patient, to mask.
    """

    path: Path
    index: int
    frames: int
    stored_shape: tuple[int, int]
    patient: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    reference: DicomReference
    number: int
    words: frozenset[str]


def require(module: str) -> Any:
    """Import a package of the `medical` extra.

    Raises:
        ImportError: If it is not installed, with the command that installs it.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.partition('.')[0]} is needed to read DICOM and NIfTI: {how_to_install('medical')}"
        ) from error


def is_dicom(path: Path) -> bool:
    """Return whether a file looks like DICOM: by its suffix, or by its magic where the suffix says nothing."""
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    if suffix[1:].isalpha():
        return False
    try:
        if not path.is_file():  # a pipe would wait for somebody to write
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def load(path: Path, *, pixels: bool, max_pixels: int = MAX_PIXELS) -> Any:
    """Read a file's data set, with or without its pixels, and quietly.

    Raises:
        VolumeError: If the file cannot be opened, is no DICOM, or is deflated to hide what would fill the memory (see
            `limits`); the message is the reason without the file's name.
        ImportError: If pydicom is missing.
    """
    return _load(path, pixels, max_pixels)[0]


def _load(path: Path, pixels: bool, max_pixels: int) -> tuple[Any, int]:
    """Read a file's data set; return it and where in the file reading ended."""
    pydicom = require("pydicom")
    # pydicom's warnings quote values, and a value may be the patient's name. A filter is set at every call, because
    # others (pytest, users) reset them; setting one that is there already costs nothing.
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

    def check(inflated: int) -> None:  # the bytes, the data set made of them and the pixels are in memory together
        check_bytes(4 * inflated, max_pixels, "is deflated and would take")

    try:
        refuse_device(path)
        with silent("pydicom"), InflatingFile(path, check) as file:
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=not pixels)
            place = file.tell()
    except VolumeError:
        raise
    except (OSError, MemoryError) as error:
        raise VolumeError(opening_problem(error)) from error
    except Exception as error:  # whatever a damaged file makes the parser do
        raise VolumeError(f"damaged or truncated DICOM header ({type(error).__name__})") from error
    if "SOPClassUID" not in dataset and "Rows" not in dataset and not getattr(dataset, "file_meta", None):
        raise VolumeError("not a DICOM file")
    return dataset, place


def opening_problem(error: OSError | MemoryError) -> str:
    """Say why a file cannot be opened, without its name."""
    return f"cannot be opened: {getattr(error, 'strerror', None) or type(error).__name__}"


@lru_cache(maxsize=2)
def many_frames_header(path: Path, _mtime: int) -> tuple[Any, int]:
    """Return the header of a multi-frame file, read once for its frames, and where its pixels begin."""
    return _load(path, False, MAX_PIXELS)


def read_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> list[DicomFrame]:
    """Read a file's header and return its frames.

    Args:
        path: A DICOM file, single-frame or multi-frame (also enhanced MR, with functional groups).
        max_pixels: The most pixels that a picture may have.

    Raises:
        VolumeError: If the file is damaged, holds no grey image, or describes it impossibly (see `limits`).
        ImportError: If pydicom is missing.
    """
    path = Path(path)
    dataset = load(path, pixels=False, max_pixels=max_pixels)
    words: frozenset[str] = frozenset()
    with silent("pydicom"):  # values are looked at when they are asked for
        try:
            words = identity_words(dataset)  # before anything is refused: a refused file is named too
            for keyword in IDENTIFYING:
                dataset.get(keyword)  # a name that cannot be read could not be masked
            return _frames(path, dataset, words, max_pixels)
        except VolumeError as error:
            raise VolumeError(str(error), words) from error
        except Exception as error:  # a value that cannot be what its tag says; the text may quote it: left out
            raise VolumeError(f"damaged DICOM header ({type(error).__name__})", words) from error


def _frames(path: Path, dataset: Any, words: frozenset[str], max_pixels: int) -> list[DicomFrame]:
    """Check a header and describe each of its frames."""
    _refuse_non_images(dataset)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if min(rows, columns) < 1:
        raise VolumeError(f"its matrix is {rows} x {columns}, expected at least one pixel")
    count = int(dataset.get("NumberOfFrames") or 1)
    if count < 1:
        raise VolumeError(f"NumberOfFrames is {count}, expected at least 1")
    if count > 1:
        check_slices(count, _room_for_frames(path, dataset, rows * columns))
    kinds = ("StudyInstance", "SeriesInstance", "SOPClass", "SOPInstance")
    study, series, sop_class, sop_instance = (str(dataset.get(f"{kind}UID") or "") for kind in kinds)
    number = int(dataset.get("InstanceNumber") or 0)
    own_places = bool(dataset.get("PerFrameFunctionalGroupsSequence"))
    frames: list[DicomFrame] = []
    for index in range(count):
        if own_places or not frames:
            spacing = _spacing(dataset, index)
            matrix = _patient_matrix(dataset, index, spacing)
            check_picture(rows, columns, spacing, max_pixels)
        reference = DicomReference(study, series, sop_class, sop_instance, index + 1 if count > 1 else None)
        frames.append(DicomFrame(path, index, count, (rows, columns), matrix, spacing, reference, number, words))
    return frames


def _room_for_frames(path: Path, dataset: Any, pixels: int) -> int:
    """Return how many frames of so many pixels a file can hold at most, by its size."""
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    size = path.stat().st_size
    if syntax is not None and syntax.is_transfer_syntax and syntax.is_encapsulated:
        return size // 8  # the head of an item
    if syntax is not None and syntax.is_deflated:
        size *= 1032  # the best that the method can do
    return size // max(1, pixels * (int(dataset.get("BitsAllocated") or 8) // 8))


def _refuse_non_images(dataset: Any) -> None:
    """Refuse objects without a grey picture."""
    modality = str(dataset.get("Modality") or "").strip()
    if "DirectoryRecordSequence" in dataset:
        raise VolumeError("a DICOM directory, no image: give the folder that it lists instead")
    if modality in _NO_IMAGE:
        raise VolumeError(f"holds {_NO_IMAGE[modality]} ({modality}), no image")
    if "Rows" not in dataset or "Columns" not in dataset:
        kind = f" (modality {modality})" if modality else ""
        raise VolumeError(f"holds no image: no pixel matrix{kind}")
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise VolumeError(f"a colour image ({photometric or 'no photometric interpretation'}), expected grey")
    if int(dataset.get("BitsAllocated") or 0) == 1:
        raise VolumeError("a one-bit mask, expected a grey image")
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise VolumeError(
            "text is burned into its pixels (BurnedInAnnotation is YES), which may show who the patient is; "
            "clean the picture and set the tag to NO"
        )


def frame_item(dataset: Any, index: int, sequence: str) -> Any:
    """Return where a frame's attributes stand: its functional group, the shared one, or the data set itself."""
    for groups, number in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        items = dataset.get(groups)
        if items and number < len(items) and items[number].get(sequence):
            return items[number][sequence].value[0]
    return dataset


def _numbers(value: Any, count: int) -> list[float] | None:
    """Return an attribute's numbers, or None where there are not as many as wanted, or not finite ones."""
    if value is None or isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != count:
        return None
    numbers = [float(v) for v in value]
    return numbers if np.isfinite(numbers).all() else None


def _spacing(dataset: Any, index: int) -> tuple[float, float] | None:
    """Return a frame's spacing between rows and between columns in mm."""
    value = frame_item(dataset, index, "PixelMeasuresSequence").get("PixelSpacing")
    if value is None or not hasattr(value, "__len__") or len(value) == 0:
        return None
    numbers = _numbers(value, 2) or [float("nan")]
    check_distances(numbers, f"PixelSpacing is {' x '.join(str(v)[:16] for v in value[:3])} mm")
    return numbers[0], numbers[1]


def _patient_matrix(dataset: Any, index: int, spacing: tuple[float, float] | None) -> NDArray[np.float64] | None:
    """Return a frame's matrix from stored (column, row, 1), counted from the corner, to LPS in mm."""
    directions = _numbers(frame_item(dataset, index, "PlaneOrientationSequence").get("ImageOrientationPatient"), 6)
    position = _numbers(frame_item(dataset, index, "PlanePositionSequence").get("ImagePositionPatient"), 3)
    if directions is None or position is None or spacing is None:
        return None
    along_row, along_column = np.array(directions[:3]), np.array(directions[3:])
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(along_row @ along_column) > 0.1:
        raise VolumeError("ImageOrientationPatient is no pair of perpendicular unit vectors")
    check_place(position)
    step_x, step_y = along_row / lengths[0] * spacing[1], along_column / lengths[1] * spacing[0]
    return np.stack([step_x, step_y, np.array(position) - (step_x + step_y) / 2], axis=1)
