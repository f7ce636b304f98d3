"""Reading NIfTI volumes with nibabel: their sagittal slices, with their place in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddet_yolo.imaging.dicom import VolumeError, require

__all__ = ["NiftiVolume", "is_nifti", "read_nifti"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
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
    """

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    axis: int
    located: bool

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

    def voxels(self) -> NDArray[np.float32]:
        """Decode the volume, scaled as its header says, the axis across the patient first.

        Raises:
            VolumeError: If the file is truncated or holds values that are no finite numbers.
        """
        nibabel = require("nibabel")
        try:
            values = nibabel.load(self.path).get_fdata(dtype=np.float32, caching="unchanged")
        except FileNotFoundError as error:
            raise VolumeError("no such file, or it cannot be opened") from error
        except MemoryError as error:
            raise VolumeError(f"too large for the memory at hand: {self.shape}") from error
        except Exception as error:  # nibabel, zlib and numpy each have their own for a damaged file
            raise VolumeError(f"truncated or damaged voxel data ({type(error).__name__})") from error
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise VolumeError(f"{bad} of {values.size} voxels are NaN or infinite")
        return np.moveaxis(values.reshape(self.shape), self.axis, 0)


def is_nifti(path: Path) -> bool:
    """Return whether a file's name is that of a NIfTI volume."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_nifti(path: str | Path) -> NiftiVolume:
    """Read a volume's header.

    Args:
        path: A `.nii` or `.nii.gz` file of three dimensions; further ones of size 1 are dropped.

    Raises:
        VolumeError: If the file is damaged, is no grey volume, or has more dimensions.
        ImportError: If nibabel is missing.
    """
    path = Path(path)
    nibabel = require("nibabel")
    try:
        image: Any = nibabel.load(path)
        shape, affine, dtype = image.shape, np.array(image.affine, float), image.get_data_dtype()
        located = bool(image.header["sform_code"] > 0 or image.header["qform_code"] > 0)
        with nibabel.openers.ImageOpener(path) as file:  # loading would put 1 for a size of 0
            zooms = np.array(type(image.header).from_fileobj(file, check=False)["pixdim"][1:4], float)
    except FileNotFoundError as error:
        raise VolumeError("no such file, or it cannot be opened") from error
    except Exception as error:
        raise VolumeError(f"no NIfTI file, or its header is damaged ({type(error).__name__})") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        sizes = " x ".join(map(str, shape))
        raise VolumeError(f"has {len(shape)} dimensions ({sizes}), expected the 3 of a single volume")
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise VolumeError(f"holds {'colours' if dtype.fields else dtype.name}, expected grey values")
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and np.isfinite(zooms).all() and min(*sides, *abs(zooms)) > 0):
        raise VolumeError(f"voxel size is {' x '.join(f'{z:g}' for z in zooms)} mm, expected positive distances")
    if abs(np.linalg.det(affine[:3, :3] / sides)) < 0.05:
        raise VolumeError("its orientation matrix is singular: two axes point the same way")
    affine[:3] = _LPS @ affine[:3]
    across = int(np.argmax(np.abs(affine[0, :3] / sides)))
    return NiftiVolume(path, (int(shape[0]), int(shape[1]), int(shape[2])), affine, across, located)
