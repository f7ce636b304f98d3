"""Reading NIfTI volumes with nibabel: their sagittal slices, with their place in the patient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.imaging.dicom_header import require
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

__all__ = ["NiftiVolume", "is_nifti", "read_nifti"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_HEADER_1, _HEADER_2 = 348, 540  # bytes
_MAX_OFFSET = 1 << 24  # where voxels begin at the latest; in between are extensions, which are not read
_GZIP = 1032  # the best that the method can do
_BLOCK = 1 << 20  # voxels
_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's axes point right, forward and up


@dataclass(frozen=True)
class NiftiVolume:
    """A volume's header.

    Args:
        path: The file.
        shape: Number of voxels along the file's axes i, j, k.
        affine: (4, 4) matrix from voxel centres (i, j, k, 1) to LPS in mm.
        axis: The file's axis that runs across the patient, along which sagittal slices are counted.
        located: Whether the file itself says how the volume lies in the patient.
        offset: Where in the file, decompressed, the voxels begin.
        stored: Their type in the file.
        kept: Their type in memory: as stored where that is small and not scaled, else float32.
        slope: What stored values are multiplied by; None where they are values already.
        intercept: What is added then.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    axis: int
    located: bool
    offset: int
    stored: np.dtype[Any]
    kept: np.dtype[Any]
    slope: float | None = None
    intercept: float = 0.0

    @property
    def stored_shape(self) -> tuple[int, int]:
        """(rows, columns) of a slice as `voxels[axis]` gives it: the two other axes in the file's order."""
        rows, columns = (self.shape[a] for a in range(3) if a != self.axis)
        return rows, columns

    def patient_matrix(self, index: int) -> NDArray[np.float64]:
        """Return the (3, 3) matrix from (column, row, 1) of a slice, counted from its corner, to LPS in mm."""
        row_axis, column_axis = (a for a in range(3) if a != self.axis)
        step_x, step_y = self.affine[:3, column_axis], self.affine[:3, row_axis]
        centre = self.affine[:3, self.axis] * index + self.affine[:3, 3]
        return np.stack([step_x, step_y, centre - (step_x + step_y) / 2], axis=1)

    def voxels(self) -> NDArray[Any]:
        """Decode the volume, of type `kept`, scaled as its header says, the axis across the patient first.

        Raises:
            VolumeError: If the file is truncated or holds values that are no finite numbers.
        """
        nibabel = require("nibabel")
        try:
            with nibabel.openers.ImageOpener(self.path) as file, np.errstate(over="ignore"):
                values, bad = self._read(file, nibabel.volumeutils.apply_read_scaling)
        except VolumeError:
            raise
        except FileNotFoundError as error:
            raise VolumeError("no such file, or it cannot be opened") from error
        except MemoryError as error:
            raise VolumeError(f"too large for the memory at hand: {self.shape}") from error
        except Exception as error:  # nibabel, zlib and numpy each have their own for a damaged file
            raise VolumeError(f"truncated or damaged voxel data ({type(error).__name__})") from error
        if bad:
            raise VolumeError(f"{bad} of {values.size} voxels are NaN or infinite")
        return np.moveaxis(values, self.axis, 0)

    def _read(self, file: Any, scale: Callable[..., Any]) -> tuple[NDArray[Any], int]:
        """Read the voxels in blocks, no more than there should be; return them and how many are not finite."""
        count, bad = math.prod(self.shape), 0
        values = np.empty(count, self.kept)
        file.seek(self.offset)
        for start in range(0, count, _BLOCK):
            wanted = min(_BLOCK, count - start) * self.stored.itemsize
            content = file.read(wanted)
            if len(content) < wanted:
                raise VolumeError("truncated or damaged voxel data (they end before the last slice)")
            block = np.frombuffer(content, self.stored)
            if self.slope is not None:
                block = scale(block, np.float32(self.slope), np.float32(self.intercept))
            values[start : start + len(block)] = block
            if values.dtype.kind == "f":
                bad += int(np.count_nonzero(~np.isfinite(values[start : start + len(block)])))
        file.read(1)  # at the end of a compressed file its checksum is compared
        return values.reshape(self.shape, order="F"), bad


def is_nifti(path: Path) -> bool:
    """Return whether a file's name is that of a NIfTI volume."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_nifti(path: str | Path, max_pixels: int = MAX_PIXELS) -> NiftiVolume:
    """Read a volume's header.

    Args:
        path: A `.nii` or `.nii.gz` file of three dimensions; further ones of size 1 are dropped.
        max_pixels: The most pixels that a picture may have; the volume may take `limits.BYTES_PER_PIXEL` times as many
            bytes in memory.

    Raises:
        VolumeError: If the file is damaged, is no grey volume, has more dimensions, or describes itself impossibly (see
            `limits`).
        ImportError: If nibabel is missing.
    """
    path = Path(path)
    nibabel = require("nibabel")
    try:
        refuse_device(path)
        with nibabel.openers.ImageOpener(path) as file:
            block = file.read(_HEADER_2)
        header = _header(nibabel, block, check=True)
        shape, affine, stored = (
            header.get_data_shape(),
            np.array(header.get_best_affine(), float),
            header.get_data_dtype(),
        )
        located = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
        offset, (slope, intercept) = float(header["vox_offset"]), header.get_slope_inter()
        zooms = np.array(_header(nibabel, block, check=False)["pixdim"][1:4], float)  # a check puts 1 for a size of 0
        size = path.stat().st_size * (_GZIP if path.suffix.lower() == ".gz" else 1)
    except VolumeError:
        raise
    except FileNotFoundError as error:
        raise VolumeError("no such file, or it cannot be opened") from error
    except Exception as error:
        raise VolumeError(f"no NIfTI file, or its header is damaged ({type(error).__name__})") from error
    shape = [int(length) for length in shape]
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        sizes = " x ".join(map(str, shape))
        raise VolumeError(f"has {len(shape)} dimensions ({sizes}), expected the 3 of a single volume")
    if stored.fields is not None or stored.kind not in "iuf":
        raise VolumeError(f"holds {'colours' if stored.fields else stored.name}, expected grey values")
    count = math.prod(shape)
    least = int(header["sizeof_hdr"])
    if not least <= offset <= _MAX_OFFSET:
        raise VolumeError(f"its voxels begin at byte {offset:g}, expected {least} to {_MAX_OFFSET}")
    if offset + count * stored.itemsize > size:
        sizes = " x ".join(map(str, shape))
        raise VolumeError(f"truncated or damaged: {sizes} voxels of {stored.itemsize} bytes do not fit into the file")
    plain = slope is None or (slope, intercept) == (1, 0)
    kept = stored.newbyteorder("=") if plain and stored.kind in "iu" and stored.itemsize <= 2 else np.dtype(np.float32)
    check_bytes(count * kept.itemsize, max_pixels, f"is a volume of {' x '.join(map(str, shape))} voxels, which take")
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    shown = "voxel size is {} mm".format(" x ".join(f"{z:g}" for z in zooms))
    check_distances([*sides, *abs(zooms)], shown)
    check_place(affine[:3, 3])
    if abs(np.linalg.det(affine[:3, :3] / sides)) < 0.05:
        raise VolumeError("its orientation matrix is singular: two axes point the same way")
    affine[:3] = _LPS @ affine[:3]
    across = int(np.argmax(np.abs(affine[0, :3] / sides)))
    check_slices(shape[across], count)
    rows, columns = (a for a in range(3) if a != across)
    check_picture(shape[rows], shape[columns], (float(sides[rows]), float(sides[columns])), max_pixels)
    scaling = (None, 0.0) if plain else (float(slope), float(intercept))
    return NiftiVolume(
        path, (shape[0], shape[1], shape[2]), affine, across, located, int(offset), stored, kept, *scaling
    )


def _header(nibabel: Any, block: bytes, *, check: bool) -> Any:
    """Return the header at the beginning of a file, of NIfTI-1 or NIfTI-2; extensions behind it are not read."""
    second = _HEADER_2 in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    if second:
        return nibabel.Nifti2Header(block, check=check)
    return nibabel.Nifti1Header(block[:_HEADER_1], check=check)
