"""Reading DICOM images with pydicom: one frame at a time, to 8-bit grey, with its place in the patient.

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

from meddet_yolo.imaging.compressed import InflatingFile, codestream_shape, encapsulated_frame
from meddet_yolo.imaging.grey import percentile_grey, scaled_grey
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

__all__ = ["DicomFrame", "DicomReference", "VolumeError", "is_dicom", "load", "read_frame", "read_header", "require"]

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
_JPEG = "1.2.840.10008.1.2.4."  # all its variants
_NO_IMAGE = {"SEG": "a segmentation", "RTDOSE": "a dose grid", "RTSTRUCT": "contours", "RTPLAN": "a treatment plan"}
# Decoders by the beginning of the transfer syntax UID; the last that fits counts.
_DECODERS = {
    "1.2.840.10008.1.2.4.5": "pylibjpeg pylibjpeg-libjpeg",  # JPEG
    "1.2.840.10008.1.2.4.70": "pylibjpeg pylibjpeg-libjpeg",  # JPEG lossless
    "1.2.840.10008.1.2.4.8": "pylibjpeg pylibjpeg-libjpeg",  # JPEG-LS
    "1.2.840.10008.1.2.4.9": "pylibjpeg pylibjpeg-openjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.20": "pylibjpeg pylibjpeg-openjpeg",  # high-throughput JPEG 2000
}


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
            f'{module.partition(".")[0]} is needed to read DICOM and NIfTI: pip install "meddet-yolo[medical]"'
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
        raise VolumeError(_opening_problem(error)) from error
    except Exception as error:  # whatever a damaged file makes the parser do
        raise VolumeError(f"damaged or truncated DICOM header ({type(error).__name__})") from error
    if "SOPClassUID" not in dataset and "Rows" not in dataset and not getattr(dataset, "file_meta", None):
        raise VolumeError("not a DICOM file")
    return dataset, place


def _opening_problem(error: OSError | MemoryError) -> str:
    """Say why a file cannot be opened, without its name."""
    return f"cannot be opened: {getattr(error, 'strerror', None) or type(error).__name__}"


@lru_cache(maxsize=2)
def _many_frames_header(path: Path, _mtime: int) -> tuple[Any, int]:
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


def _item(dataset: Any, index: int, sequence: str) -> Any:
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
    value = _item(dataset, index, "PixelMeasuresSequence").get("PixelSpacing")
    if value is None or not hasattr(value, "__len__") or len(value) == 0:
        return None
    numbers = _numbers(value, 2) or [float("nan")]
    check_distances(numbers, f"PixelSpacing is {' x '.join(str(v)[:16] for v in value[:3])} mm")
    return numbers[0], numbers[1]


def _patient_matrix(dataset: Any, index: int, spacing: tuple[float, float] | None) -> NDArray[np.float64] | None:
    """Return a frame's matrix from stored (column, row, 1), counted from the corner, to LPS in mm."""
    directions = _numbers(_item(dataset, index, "PlaneOrientationSequence").get("ImageOrientationPatient"), 6)
    position = _numbers(_item(dataset, index, "PlanePositionSequence").get("ImagePositionPatient"), 3)
    if directions is None or position is None or spacing is None:
        return None
    along_row, along_column = np.array(directions[:3]), np.array(directions[3:])
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(along_row @ along_column) > 0.1:
        raise VolumeError("ImageOrientationPatient is no pair of perpendicular unit vectors")
    check_place(position)
    step_x, step_y = along_row / lengths[0] * spacing[1], along_column / lengths[1] * spacing[0]
    return np.stack([step_x, step_y, np.array(position) - (step_x + step_y) / 2], axis=1)


# Pixels ---------------------------------------------------------------------------------------------------------------


def read_frame(frame: DicomFrame, window: str | tuple[float, float] = "header") -> NDArray[np.uint8]:
    """Decode a frame to grey (rows, columns), as stored, 0 black and 255 white.

    Stored values pass the modality LUT or rescale slope and intercept, then the window, then the inversion that
    MONOCHROME1 asks for.

    Args:
        frame: A frame from `read_header`.
        window: "header" takes the file's VOI LUT or window, and percentiles where it has none; "percentile" always
            takes percentiles; (centre, width) is used as it is, in the units that rescaling gives.

    Raises:
        VolumeError: If the pixels are missing, truncated, or compressed in a way that no installed decoder reads.
    """
    with silent("pydicom"):
        return _read_frame(frame, window)


def _read_frame(frame: DicomFrame, window: str | tuple[float, float]) -> NDArray[np.uint8]:
    """Decode a frame to grey."""
    pixels = require("pydicom.pixels")
    place = 0
    if frame.frames == 1:
        dataset = load(frame.path, pixels=True)
    else:  # the functional groups of many frames take long to parse
        try:
            changed = frame.path.stat().st_mtime_ns
        except OSError as error:  # it vanished since its header was read
            raise VolumeError(_opening_problem(error)) from error
        dataset, place = _many_frames_header(frame.path, changed)
    if frame.frames == 1 and not any(k in dataset for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise VolumeError("its pixel data are missing")
    _refuse_unreadable(dataset)
    try:
        _refuse_larger_stream(frame, dataset, place)
        # The path lets pydicom read one frame of many from the disk.
        source = dataset if frame.frames == 1 else frame.path
        values = pixels.pixel_array(source, index=frame.index)
    except VolumeError:
        raise
    except Exception as error:
        raise VolumeError(_decoding_problem(error, dataset)) from error
    if values.shape != frame.stored_shape:
        raise VolumeError(f"its pixels decode to {values.shape}, expected {frame.stored_shape}")
    try:
        return _grey(values, dataset, frame.index, window)
    except Exception as error:
        raise VolumeError(f"its grey scale cannot be applied ({type(error).__name__})") from error


def _refuse_unreadable(dataset: Any) -> None:
    """Refuse a transfer syntax that cannot be decoded here, and say what would."""
    uid = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if uid is None or not uid.is_transfer_syntax:
        return  # pydicom assumes the plainest one and says so if the pixels do not fit
    try:
        decoder = require("pydicom.pixels").get_decoder(uid)
    except NotImplementedError:
        raise VolumeError(f"pydicom cannot decode its transfer syntax ({uid.name}); convert the file first") from None
    if decoder.is_available:
        return
    packages = [names for start, names in _DECODERS.items() if uid.startswith(start)]
    raise VolumeError(
        f"its transfer syntax ({uid.name}) needs a decoder: pip install {(packages or ['pylibjpeg[all]'])[-1]}"
    )


def _refuse_larger_stream(frame: DicomFrame, dataset: Any, place: int) -> None:
    """Refuse a compressed frame that announces another picture than the header does: a decoder would make that one."""
    uid = dataset.file_meta.TransferSyntaxUID
    if not uid.is_encapsulated:
        return
    if frame.frames == 1:
        data = encapsulated_frame(dataset.PixelData, 0, 1)
    else:
        with frame.path.open("rb") as file:
            file.seek(place + 12)  # tag, VR and length
            data = encapsulated_frame(file, frame.index, frame.frames)
    rows, columns = frame.stored_shape
    if len(data) > 16 * rows * columns + (1 << 20):
        raise VolumeError(f"its compressed pixels take {len(data)} bytes, more than a {rows} x {columns} picture can")
    if not uid.startswith(_JPEG):
        return  # run lengths, which pydicom decodes by the header
    shape = codestream_shape(data)
    if shape is None:
        raise VolumeError("truncated or damaged pixel data")
    if shape != (rows, columns, 1):
        found, expected = (" x ".join(map(str, s)) for s in (shape, (rows, columns, 1)))
        raise VolumeError(f"its compressed pixels are a picture of {found}, its header says {expected}")


def _decoding_problem(error: Exception, dataset: Any) -> str:
    """Return why pixels could not be decoded, without quoting anything from the file."""
    if isinstance(error, OSError) and error.errno is not None:
        return _opening_problem(error)
    text = str(error).lower()
    if "all available plugins" in text:
        syntax = dataset.file_meta.TransferSyntaxUID
        plugins = ", ".join(require("pydicom.pixels").get_decoder(syntax).available_plugins)
        return f"its pixel data ({syntax.name}) are damaged, or of a kind that {plugins} cannot decode"
    if isinstance(error, MemoryError):
        return "too large for the memory at hand"
    if "transfer syntax" in text and "no" in text:
        return "no transfer syntax in its header, so its pixels cannot be decoded"
    if any(word in text for word in ("expected", "length", "bytes", "end of", "truncat", "frame")):
        return "truncated or damaged pixel data"
    if isinstance(error, AttributeError) or "missing" in text or "pixel data" in text:
        return "its pixel data or their description are missing"
    return f"damaged pixel data ({type(error).__name__})"


def _grey(stored: NDArray[Any], dataset: Any, index: int, window: str | tuple[float, float]) -> NDArray[np.uint8]:
    """Turn stored values into grey."""
    pydicom, pixels = require("pydicom"), require("pydicom.pixels")
    transform = _item(dataset, index, "PixelValueTransformationSequence")
    values = pixels.apply_modality_lut(stored, _with_encoding(transform, dataset))
    valid = _measured(stored, dataset)
    view = pydicom.Dataset()
    frame_view = _item(dataset, index, "FrameVOILUTSequence")
    if isinstance(window, tuple):
        view.WindowCenter, view.WindowWidth, view.VOILUTFunction = *window, "LINEAR_EXACT"
    elif window == "header":
        for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"):
            if frame_view.get(keyword) not in (None, "", []):
                setattr(view, keyword, frame_view.get(keyword))
    grey = _through_view(values, _with_encoding(view, dataset))
    if grey is None or (grey.min() == grey.max() and window == "header"):  # a window beside the image's values
        grey = percentile_grey(values, valid)
    if str(dataset.PhotometricInterpretation).strip() == "MONOCHROME1":
        grey = np.uint8(255) - grey
    if valid is not None:
        grey[~valid] = 0
    return grey


def _with_encoding(item: Any, dataset: Any) -> Any:
    """Give a sequence item the byte order of its file, which pydicom asks for to unpack a table."""
    if item is not dataset and not hasattr(item, "file_meta"):
        item.file_meta = getattr(dataset, "file_meta", None)
    return item


def _measured(stored: NDArray[Any], dataset: Any) -> NDArray[np.bool_] | None:
    """Return which pixels are no padding; None where all are measured."""
    padding = dataset.get("PixelPaddingValue")
    if padding is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(padding), int(padding if limit is None else limit)))
    valid = np.asarray((stored < low) | (stored > high))
    return None if valid.all() else valid


def _through_view(values: NDArray[Any], view: Any) -> NDArray[np.uint8] | None:
    """Apply a VOI LUT or a window; None where there is neither, or an impossible one."""
    pixels = require("pydicom.pixels")
    if view.get("VOILUTSequence"):
        bits = int(view.VOILUTSequence[0].LUTDescriptor[2])
        if not np.issubdtype(values.dtype, np.integer):
            values = np.rint(values).astype(np.int64)
        return scaled_grey(pixels.apply_voi(values, view), 0, 2**bits - 1)
    if view.get("WindowCenter") is None or view.get("WindowWidth") is None:
        return None
    # The output range of a window is that of the stored values; 8 unsigned bits make it grey.
    view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = "MONOCHROME2", 8, 0
    try:
        return np.asarray(np.clip(np.rint(pixels.apply_windowing(values, view)), 0, 255), np.uint8)
    except ValueError:  # a width of zero, or a function that the standard does not know
        return None
