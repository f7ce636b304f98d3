from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddet_yolo.phantom.anatomy import draw_anatomy
from meddet_yolo.phantom.shapes import Column, body_outline, bulge_shape, ellipse, smooth_closed


def _column(seed: int) -> Column:
    return Column(draw_anatomy(np.random.default_rng(seed), 0.5))


def _area(outline: np.ndarray) -> float:
    x, y = outline.T
    return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


@given(seed=st.integers(0, 2**32))
def test_bodies_and_discs_follow_one_another_without_gap(seed):
    column = _column(seed)
    assert column.bodies.shape == (11, 2)
    assert column.discs.shape == (10, 2)
    np.testing.assert_allclose(column.bodies[:-1, 1], column.discs[:, 0])
    np.testing.assert_allclose(column.bodies[1:, 0], column.discs[:, 1])
    assert 80 < column.discs[5].mean() < 125  # from C2/3 to C7/T1


@given(seed=st.integers(0, 2**32), s=st.floats(-100, 200), d=st.floats(-60, 60))
def test_coordinates_keep_distances(seed, s, d):
    """A step along the column is as long as it says; a step across it is square to it and exact."""
    column = _column(seed)
    a, b, along = column.points(np.array([[s, 0.0], [s, d], [s + 0.01, 0.0]]))
    assert np.hypot(*(b - a)) == pytest.approx(abs(d), abs=1e-9)
    assert np.hypot(*(along - a)) == pytest.approx(0.01, rel=0.01)
    assert abs(np.dot(b - a, along - a)) <= 0.02 * max(abs(d), 1e-9) * 0.01


def test_a_disc_bulges_as_far_as_it_says():
    anatomy = draw_anatomy(np.random.default_rng(2), 0.5)
    discs = [replace(d, bulge=0.0) for d in anatomy.discs]
    discs[3] = replace(discs[3], bulge=3.0, reach=8.0, wander=0.0, lateral=1.0, spread=6.0)
    column = Column(replace(anatomy, discs=tuple(discs)))
    s = np.arange(-50.0, 200.0, 0.1)
    at_middle = column.bulge(s, np.full_like(s, 1.0))
    assert at_middle.max() == pytest.approx(3.0, rel=0.01)
    assert np.flatnonzero(at_middle).size * 0.1 == pytest.approx(8.0, abs=0.3)
    assert s[at_middle.argmax()] == pytest.approx(column.discs[3].mean(), abs=0.2)
    aside = column.bulge(s, np.full_like(s, 7.0))
    assert aside.max() == pytest.approx(3.0 * np.exp(-0.5), rel=0.01)


def test_curves_go_through_their_control_points():
    rng = np.random.default_rng(0)
    controls = [rng.normal(0, 10, (n, 2)) for n in (9, 4, 13)]
    curves = smooth_closed(controls, 4)
    assert smooth_closed([]) == []
    for points, curve in zip(controls, curves, strict=True):
        assert curve.shape == (4 * len(points), 2)
        np.testing.assert_allclose(curve[::4], points, atol=1e-12)
    circle = np.stack([np.cos(angle := np.linspace(0, 2 * np.pi, 16, endpoint=False)), np.sin(angle)], 1)
    np.testing.assert_allclose(np.hypot(*smooth_closed([circle])[0].T), 1.0, atol=0.002)


def test_outlines_have_their_sizes():
    assert _area(ellipse(0, 0, 3, 5, 0.4, points=400)) == pytest.approx(np.pi * 15, rel=0.001)
    (body,) = smooth_closed([body_outline(13.0, 16.0, waist=0.5, lip=0.0)])
    assert np.ptp(body, axis=0) == pytest.approx([13.0, 16.0], abs=0.6)
    assert 0.85 < _area(body) / (13.0 * 16.0) < 1.0
    assert np.ptp(body_outline(13.0, 16.0, 0.5, 0.0, grow=1.0), axis=0) == pytest.approx([15.0, 18.0], abs=0.8)
    assert bulge_shape(np.array([0.0, 1.0, 1.5])) == pytest.approx([1.0, 0.0, 0.0])
