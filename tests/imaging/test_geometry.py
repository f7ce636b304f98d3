from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from meddet_yolo.imaging.geometry import SliceGeometry, oriented, picture

Matrix = NDArray[np.float64]


@st.composite
def patient_matrices(draw: st.DrawFn) -> tuple[Matrix, tuple[float, float]]:
    """Any orientation, spacing and position: a random rotation of the axes, by quaternion."""
    q = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda v: np.linalg.norm(v) > 0.1)))
    w, x, y, z = q / np.linalg.norm(q)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    spacing = draw(st.tuples(*[st.floats(0.2, 5.0)] * 2))
    origin = np.array(draw(st.tuples(*[st.floats(-500, 500)] * 3)))
    return np.stack([rotation[:, 0] * spacing[1], rotation[:, 1] * spacing[0], origin], axis=1), spacing


shapes = st.tuples(st.integers(2, 30), st.integers(2, 30))
boxes = st.tuples(*[st.floats(0, 30)] * 4)


@given(patient_matrices(), shapes)
def test_a_picture_shows_each_place_where_its_geometry_says(
    made: tuple[Matrix, tuple[float, float]], shape: tuple[int, int]
) -> None:
    matrix, _ = made
    geometry = oriented(shape, patient=matrix)
    columns, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    # One picture of each stored index, eightfold, so that every picture pixel tells where it came from.
    shown = [picture(np.asarray(8 * (index - 0.5), np.uint8), geometry) / 8 + 0.5 for index in (columns, rows)]
    height, width = geometry.shape
    assert shown[0].shape == (height, width)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    stored = geometry.to_stored(np.stack([x.ravel(), y.ravel()], axis=1))
    inside = ((stored > 0.5) & (stored < np.array(shape[::-1]) - 0.5)).all(axis=1)  # beyond, interpolation repeats
    np.testing.assert_allclose(np.stack([s.ravel() for s in shown], axis=1)[inside], stored[inside], atol=0.2)


@given(patient_matrices(), shapes)
def test_pictures_lie_as_near_to_the_convention_as_quarter_turns_allow(
    made: tuple[Matrix, tuple[float, float]], shape: tuple[int, int]
) -> None:
    geometry = oriented(shape, patient=made[0])
    right, down = (geometry.patient @ geometry.stored)[:, :2].T  # type: ignore[operator]
    right, down = right / np.linalg.norm(right), down / np.linalg.norm(down)
    axis_right, axis_down = {
        "sagittal": ((0, 1, 0), (0, 0, -1)),
        "coronal": ((1, 0, 0), (0, 0, -1)),
        "axial": ((1, 0, 0), (0, 1, 0)),
    }[geometry.plane or ""]
    score = right @ axis_right + down @ axis_down
    others = [
        (down, right),
        (-right, down),
        (right, -down),
        (-right, -down),
        (-down, right),
        (down, -right),
        (-down, -right),
    ]
    assert all(score >= a @ np.array(axis_right) + b @ np.array(axis_down) - 1e-9 for a, b in others)


@given(patient_matrices(), shapes, boxes)
def test_boxes_return_from_the_patient_and_from_the_file(
    made: tuple[Matrix, tuple[float, float]], shape: tuple[int, int], box: tuple[float, ...]
) -> None:
    geometry = oriented(shape, patient=made[0])
    x1, x2, y1, y2 = *sorted(box[:2]), *sorted(box[2:])
    corners = geometry.box_to_patient((x1, y1, x2, y2))
    offsets, axes = np.asarray(corners) - made[0][:, 2], made[0][:, :2]
    back = geometry.from_stored(np.linalg.lstsq(axes, offsets.T, rcond=None)[0].T)
    np.testing.assert_allclose(back, [[x1, y1], [x2, y1], [x2, y2], [x1, y2]], atol=1e-6)
    np.testing.assert_allclose(
        geometry.box_from_stored(geometry.box_to_stored((x1, y1, x2, y2))), (x1, y1, x2, y2), atol=1e-6
    )
    size = geometry.box_size_mm((x1, y1, x2, y2))
    assert size is not None
    np.testing.assert_allclose(
        size, [np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[3] - corners[0])], atol=1e-6
    )


@given(patient_matrices(), shapes)
def test_pixels_come_out_square(made: tuple[Matrix, tuple[float, float]], shape: tuple[int, int]) -> None:
    geometry = oriented(shape, patient=made[0])
    assert geometry.spacing is not None
    height, width = geometry.spacing
    # Within 1 %, or half a pixel of the rounded size.
    assert abs(width / height - 1) <= 0.01 + 0.5 / min(geometry.shape)
    assert min(geometry.spacing) <= min(made[1]) * (1 + 0.5 / min(shape)) + 1e-9  # the finer side is kept


def test_a_slice_without_a_place_is_shown_as_stored() -> None:
    geometry = oriented((4, 6))
    assert geometry.shape == (4, 6)
    assert (geometry.plane, geometry.edges, geometry.spacing) == (None, None, None)
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(picture(array, geometry), array)
    assert geometry.box_size_mm([0, 0, 1, 1]) is None
    with pytest.raises(ValueError, match="does not say where"):
        geometry.to_patient([[0, 0]])


def test_wide_pixels_are_stretched_to_the_finer_side() -> None:
    geometry = oriented((10, 10), spacing=(3.0, 1.0))  # 3 mm between rows
    assert geometry.shape == (30, 10)
    assert geometry.spacing == pytest.approx((1.0, 1.0))
    assert geometry.to_stored([[10, 30]]).tolist() == [[10, 10]]


def test_no_boxes_map_to_no_points() -> None:
    geometry = SliceGeometry((4, 4), np.eye(3), np.eye(3), (1.0, 1.0))
    assert geometry.to_patient(np.zeros((0, 2))).shape == (0, 3)
