"""Reading DICOM images with pydicom: one frame at a time, to 8-bit grey.

What is read of a header stands in `dicom_header`, whose public names are this module's too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.imaging.compressed import codestream_shape, encapsulated_frame
from meddet_yolo.imaging.dicom_header import (
    DicomFrame,
    DicomReference,
    frame_item,
    is_dicom,
    load,
    many_frames_header,
    opening_problem,
    read_header,
    require,
)
from meddet_yolo.imaging.grey import percentile_grey, scaled_grey
from meddet_yolo.imaging.limits import VolumeError
from meddet_yolo.imaging.privacy import silent

__all__ = ["DicomFrame", "DicomReference", "VolumeError", "is_dicom", "load", "read_frame", "read_header", "require"]

_JPEG = "1.2.840.10008.1.2.4."  # all its variants
# Decoders by the beginning of the transfer syntax UID; the last that fits counts.
_DECODERS = {
    "1.2.840.10008.1.2.4.5": "pylibjpeg pylibjpeg-libjpeg",  # JPEG
    "1.2.840.10008.1.2.4.70": "pylibjpeg pylibjpeg-libjpeg",  # JPEG lossless
    "1.2.840.10008.1.2.4.8": "pylibjpeg pylibjpeg-libjpeg",  # JPEG-LS
    "1.2.840.10008.1.2.4.9": "pylibjpeg pylibjpeg-openjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.20": "pylibjpeg pylibjpeg-openjpeg",  # high-throughput JPEG 2000
}


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
            raise VolumeError(opening_problem(error)) from error
        dataset, place = many_frames_header(frame.path, changed)
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
        return opening_problem(error)
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
    transform = frame_item(dataset, index, "PixelValueTransformationSequence")
    values = pixels.apply_modality_lut(stored, _with_encoding(transform, dataset))
    valid = _measured(stored, dataset)
    view = pydicom.Dataset()
    frame_view = frame_item(dataset, index, "FrameVOILUTSequence")
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
