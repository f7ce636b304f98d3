"""Hostile files of a few bytes, made as they are needed."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.dicom_files import make_dicom


def nifti1(
    path: Path,
    shape: tuple[int, ...] = (4, 5, 6),
    *,
    zooms: tuple[float, float, float] = (1.0, 1.0, 1.0),
    offset: float = 352.0,
    place: float = 0.0,
    voxels: bytes | None = None,
) -> Path:
    """Write a NIfTI-1 file of unsigned bytes, whatever its header says."""
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<hh", header, 70, 2, 8)  # unsigned bytes
    struct.pack_into("<8f", header, 76, 1.0, *zooms, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, offset)
    struct.pack_into("<f", header, 112, 1.0)
    struct.pack_into("<hh", header, 252, 0, 1)  # an sform
    for row in range(3):
        values = [zooms[row] if column == row else 0.0 for column in range(3)]
        struct.pack_into("<4f", header, 280 + 16 * row, *values, place)
    header[344:348] = b"n+1\0"
    data = (np.arange(np.prod(shape)) % 251).astype(np.uint8).tobytes() if voxels is None else voxels
    content = bytes(header) + bytes(4) + data
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def nifti2(path: Path, shape: tuple[int, ...], *, offset: int = 544, voxels: bytes = bytes(960)) -> Path:
    """Write a NIfTI-2 file of unsigned bytes, whatever its header says."""
    header = bytearray(540)
    struct.pack_into("<i8s", header, 0, 540, b"n+2\0\r\n\032\n")
    struct.pack_into("<hh", header, 12, 2, 8)
    struct.pack_into("<8q", header, 16, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<8d", header, 104, *[1.0] * 8)
    struct.pack_into("<q", header, 168, offset)
    struct.pack_into("<d", header, 176, 1.0)
    path.write_bytes(bytes(header) + bytes(4) + voxels)
    return path


def deflated_dicom(path: Path, zeros: int) -> Path:
    """Write a deflated DICOM file with a private element of so many zeros behind an ordinary image."""
    import pydicom

    plain = make_dicom(path, np.arange(16, dtype=np.uint16).reshape(4, 4))
    dataset = pydicom.dcmread(plain)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = DicomBytesIO()
    head.is_little_endian, head.is_implicit_VR = True, False
    head.write(bytes(128) + b"DICM")
    pydicom.filewriter.write_file_meta_info(head, dataset.file_meta)
    body = DicomBytesIO()
    body.is_little_endian, body.is_implicit_VR = True, False
    write_dataset(body, dataset)
    body.write(struct.pack("<HH2sHI", 0x7FE1, 0x1001, b"OB", 0, zeros))
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [head.getvalue(), packer.compress(body.getvalue())]
    step = bytes(1 << 20)
    parts += [packer.compress(step) for _ in range(zeros // len(step))]
    path.write_bytes(b"".join([*parts, packer.flush()]))
    return path


def png(path: Path, width: int, height: int, rows: bytes = b"", more: bytes = b"") -> Path:
    """Write a grey PNG whose header may claim any size, with chunks `more` before its end."""
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(content + chunk(b"IDAT", zlib.compress(rows)) + more + chunk(b"IEND", b""))
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
