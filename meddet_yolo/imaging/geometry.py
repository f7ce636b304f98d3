"""Where a slice lies in the patient, and how it is shown.

Three coordinate systems: *picture* pixels (x to the right, y down, what a detector sees), *stored* pixels (column and
row of the file's matrix) and *patient* millimetres (DICOM's LPS: x to the patient's left, y to the back, z to the
head). Pixel coordinates count edges, as YOLO boxes and DICOM's SCOORD do: the first pixel spans 0 to 1, and its centre,
which DICOM's ImagePositionPatient gives, is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["SliceGeometry", "oriented", "picture", "plane_of"]

Array = NDArray[np.float64]

# What runs to the right and down in a picture shown by radiological convention (LPS): sagittal with the head up and the
# front at the viewer's left, axial with the front up and coronal with the head up, both with the patient's right at the
# viewer's left.
_SHOWN = {
    "sagittal": np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]),
    "coronal": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]),
    "axial": np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
}
_PLANES = ("sagittal", "coronal", "axial")  # by the axis of LPS that their normal is nearest to
_LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))  # positive and negative end of each axis of LPS
SQUARE_WITHIN = 0.01  # pixels whose sides differ by less than this share are shown as they are


@dataclass(frozen=True)
class SliceGeometry:
    """The way from a picture's pixels to the file's and to the patient.

    Args:
        shape: (height, width) of the picture in pixels.
        stored: (3, 3) homogeneous matrix from picture (x, y, 1) to stored (column, row, 1).
        patient: (3, 3) matrix from stored (column, row, 1) to patient (x, y, z) in mm; None where it is not known.
        spacing: Size of a picture's pixel as (height, width) in mm; None where the file does not say.

    Examples:
        >>> oriented((4, 6), spacing=(2.0, 2.0)).box_size_mm([0, 0, 3, 2])
        (6.0, 4.0)
    """

    shape: tuple[int, int]
    stored: Array
    patient: Array | None = None
    spacing: tuple[float, float] | None = None

    @property
    def plane(self) -> str | None:
        """Return "sagittal", "coronal" or "axial", whichever is nearest; None where the orientation is unknown."""
        return None if self.patient is None else plane_of(self.patient[:, 0], self.patient[:, 1])

    @property
    def edges(self) -> dict[str, str] | None:
        """Return the patient's side at each edge of the picture: L, R, A (front), P (back), H (head), F (feet).

        Oblique slices get the nearest one.
        """
        if self.patient is None:
            return None
        right, down = (self.patient @ self.stored)[:, :2].T
        ends = {}
        for direction, (minus, plus) in ((right, ("left", "right")), (down, ("top", "bottom"))):
            axis = int(np.argmax(np.abs(direction)))
            positive, negative = _LETTERS[axis]
            ends[plus], ends[minus] = (positive, negative) if direction[axis] > 0 else (negative, positive)
        return ends

    def to_stored(self, points: ArrayLike) -> Array:
        """Map picture points (N, 2) as (x, y) to stored points (N, 2) as (column, row)."""
        return np.asarray(points, float).reshape(-1, 2) @ self.stored[:2, :2].T + self.stored[:2, 2]

    def from_stored(self, points: ArrayLike) -> Array:
        """Map stored points (N, 2) as (column, row) to picture points (N, 2) as (x, y)."""
        inverse = np.linalg.inv(self.stored)
        return np.asarray(points, float).reshape(-1, 2) @ inverse[:2, :2].T + inverse[:2, 2]

    def to_patient(self, points: ArrayLike) -> Array:
        """Map picture points (N, 2) to the patient (N, 3), LPS in mm.

        Raises:
            ValueError: If the file does not say where the slice lies.
        """
        if self.patient is None:
            raise ValueError("the file does not say where its slice lies in the patient (no position or orientation)")
        stored = self.to_stored(points)
        return stored @ self.patient[:, :2].T + self.patient[:, 2]

    def box_to_stored(self, box: ArrayLike) -> tuple[float, float, float, float]:
        """Map a picture box (x1, y1, x2, y2) to the stored matrix (column1, row1, column2, row2)."""
        return _bounds(self.to_stored(np.asarray(box, float).reshape(2, 2)))

    def box_from_stored(self, box: ArrayLike) -> tuple[float, float, float, float]:
        """Map a stored box (column1, row1, column2, row2) to the picture (x1, y1, x2, y2)."""
        return _bounds(self.from_stored(np.asarray(box, float).reshape(2, 2)))

    def box_to_patient(self, box: ArrayLike) -> Array:
        """Map a picture box to its corners in the patient (4, 3): LPS in mm, clockwise from the picture's top left."""
        x1, y1, x2, y2 = np.asarray(box, float).ravel()
        return self.to_patient([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])

    def box_size_mm(self, box: ArrayLike) -> tuple[float, float] | None:
        """Return a picture box's (width, height) in mm; None where the spacing is unknown."""
        if self.spacing is None:
            return None
        x1, y1, x2, y2 = np.asarray(box, float).ravel()
        return float(abs(x2 - x1) * self.spacing[1]), float(abs(y2 - y1) * self.spacing[0])


def _bounds(points: Array) -> tuple[float, float, float, float]:
    """Return the box (x1, y1, x2, y2) around points (N, 2)."""
    (x1, y1), (x2, y2) = points.min(0), points.max(0)
    return float(x1), float(y1), float(x2), float(y2)


def plane_of(columns: ArrayLike, rows: ArrayLike) -> str:
    """Return the plane that a slice is nearest to.

    Args:
        columns: Direction (3,) in LPS in which the column index grows, of any length.
        rows: Direction (3,) in which the row index grows.

    Examples:
        >>> plane_of([0, 1, 0], [0, 0, -1])
        'sagittal'
        >>> plane_of([0, 0, 1], [1 + 1e-9, 1, 0])  # as near to the coronal plane
        'sagittal'
    """
    normal = np.abs(np.cross(np.asarray(columns, float), np.asarray(rows, float)))
    return _PLANES[int(np.argmax(normal > normal.max() * (1 - 1e-6)))]  # the first of those that rounding cannot tell


def oriented(
    stored_shape: tuple[int, int],
    *,
    patient: ArrayLike | None = None,
    spacing: tuple[float, float] | None = None,
) -> SliceGeometry:
    """Decide how a stored slice is shown: turned to the radiological convention, with square pixels.

    Oblique slices are not interpolated, so that a picture keeps the scanner's pixels; of the eight ways to lay the
    matrix down the nearest to the convention is taken. Where the pixel's sides differ by more than 1 %, the picture is
    stretched along the coarser one, because a detector learns shapes of square pixels (our own decision).

    Args:
        stored_shape: (rows, columns) of the file's matrix.
        patient: (3, 3) matrix from stored (column, row, 1) to LPS in mm; None shows the matrix as it is stored.
        spacing: (between rows, between columns) in mm where `patient` is not known but the spacing is.

    Examples:
        >>> feet_first = [[0, 0, 0], [1, 0, -10], [0, 1, 0]]  # the row index grows towards the head
        >>> geometry = oriented((20, 10), patient=feet_first)
        >>> geometry.edges["top"], geometry.to_stored([[0, 0]]).tolist()
        ('H', [[0.0, 20.0]])
    """
    rows, columns = stored_shape
    matrix = None if patient is None else np.asarray(patient, float)
    turn = np.eye(2)
    if matrix is not None:
        steps = matrix[:, :2] / np.linalg.norm(matrix[:, :2], axis=0)
        shown = _SHOWN[plane_of(*steps.T)]
        turns = [
            np.array([[sx, 0], [0, sy]]) if straight else np.array([[0, sy], [sx, 0]])
            for straight in (True, False)
            for sx in (1.0, -1.0)
            for sy in (1.0, -1.0)
        ]  # columns: stored direction of picture x and y
        turn = max(turns, key=lambda t: float(np.sum((steps @ t).T * shown)))
        spacing = (float(np.linalg.norm(matrix[:, 1])), float(np.linalg.norm(matrix[:, 0])))
    straight = turn[0, 0] != 0
    height, width = (rows, columns) if straight else (columns, rows)
    stretch = np.ones(2)  # of picture x and y
    if spacing is not None:
        sides = np.array(spacing[::-1] if straight else spacing)  # of a picture's pixel: along x, along y
        if abs(sides[0] / sides[1] - 1) > SQUARE_WITHIN:
            stretch = np.array([max(1, round(s)) for s in np.array([width, height]) * sides / sides.min()])
            stretch = stretch / (width, height)
            width, height = round(width * stretch[0]), round(height * stretch[1])
        spacing = (float(sides[1] / stretch[1]), float(sides[0] / stretch[0]))
    stored = np.eye(3)
    stored[:2, :2] = turn / stretch
    # A flipped direction starts at the far edge of the matrix.
    stored[:2, 2] = np.where(turn.sum(axis=1) < 0, (columns, rows), 0)
    return SliceGeometry((height, width), stored, matrix, spacing)


def picture(array: NDArray[np.uint8], geometry: SliceGeometry) -> NDArray[np.uint8]:
    """Return a stored slice (rows, columns) as the picture (height, width) that `geometry` describes."""
    import cv2

    step = geometry.stored[:2, :2]
    if step[0, 0] == 0:
        array = array.T
    along_x, along_y = step.sum(axis=0)
    array = array[:: -1 if along_y < 0 else 1, :: -1 if along_x < 0 else 1]
    height, width = geometry.shape
    if array.shape != (height, width):
        return np.asarray(cv2.resize(np.ascontiguousarray(array), (width, height), interpolation=cv2.INTER_LINEAR))
    return np.ascontiguousarray(array)
