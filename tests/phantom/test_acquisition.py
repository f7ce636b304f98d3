"""The scanner's physics against what textbooks say about it."""

from dataclasses import replace

import numpy as np
import pytest

from meddet_yolo.phantom import acquisition
from meddet_yolo.phantom.acquisition import FINE, GRID, draw_protocol, scan, wrinkle
from meddet_yolo.phantom.drawing import Palette


@pytest.fixture
def protocol():
    plain = draw_protocol(np.random.default_rng(0), 0.5)
    return replace(plain, noise=0.0, ghost=0.0, window_filter=0.0, matrix=(256, 320), phase_vertical=True)


def test_noise_in_air_is_rayleigh_distributed(protocol):
    noisy = replace(protocol, noise=0.05)
    image = acquisition._acquire(np.zeros((GRID, GRID)), noisy, np.random.default_rng(1))
    assert image.mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.02)
    assert image.std() == pytest.approx(0.05 * np.sqrt(2 - np.pi / 2), rel=0.02)


def test_noise_on_strong_signal_is_gaussian(protocol):
    noisy = replace(protocol, noise=0.02)
    image = acquisition._acquire(np.ones((GRID, GRID)), noisy, np.random.default_rng(1))
    assert image.std() == pytest.approx(0.02, rel=0.03)
    assert image.mean() == pytest.approx(1.0, abs=0.002)


def test_truncation_rings_by_nine_percent_unless_filtered(protocol):
    edge = np.zeros((GRID, GRID))
    edge[GRID // 4 : -GRID // 4] = 1.0
    overshoot = [
        acquisition._acquire(edge, replace(protocol, window_filter=w), np.random.default_rng(1)).max() - 1.0
        for w in (0.0, 0.5, 1.0)
    ]
    assert overshoot[0] == pytest.approx(0.0895, abs=0.015)  # Gibbs
    assert overshoot[0] > 2 * overshoot[1] > 2 * overshoot[2]
    assert overshoot[2] < 0.01


@pytest.mark.parametrize("vertical", [True, False])
def test_ghosts_lie_along_the_phase_encoding_direction(protocol, vertical):
    spot = np.zeros((GRID, GRID))
    spot[200:248, 200:248] = 1.0
    ghosted = replace(protocol, ghost=0.3, ghost_period=4.0, phase_vertical=vertical)
    still = acquisition._acquire(spot, replace(ghosted, ghost=0.0), np.random.default_rng(1))
    moved = acquisition._acquire(spot, ghosted, np.random.default_rng(1))
    excess = np.abs(moved - still)
    centre, side = slice(228, 284), slice(0, 120)
    along, across = excess[side, centre].mean(), excess[centre, side].mean()
    assert along > 4 * across if vertical else across > 4 * along


def test_no_noise_no_change_of_place(protocol):
    """What is in one corner of the tissue map is in that corner of the image."""
    palette = Palette()
    bright = palette.add(1.0, grain=0.0, blotch=0.0)
    tissue = np.zeros((GRID * FINE, GRID * FINE), np.uint8)
    tissue[100:300, 500:800] = bright
    flat = replace(protocol, coil=(0.0, 0.0, 0.0, 0.0), saturation=1.0, chemical_shift=0)
    image = scan([tissue, tissue], palette, flat, np.random.default_rng(0), 512)
    seen = image > 127
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    scale = 512 / (GRID * FINE)
    np.testing.assert_allclose([rows[0], rows[-1] + 1], [100 * scale, 300 * scale], atol=1.5)
    np.testing.assert_allclose([columns[0], columns[-1] + 1], [500 * scale, 800 * scale], atol=1.5)


def test_only_fat_is_shifted(protocol):
    palette = Palette()
    water, fat = palette.add(1.0), palette.add(1.0, fat=1.0)
    shifted = replace(protocol, chemical_shift=4)
    for tissue, places in ((water, 0), (fat, 2)):
        cells = np.zeros((GRID * FINE, GRID * FINE), np.uint8)
        cells[:, 400:500] = tissue
        signal = acquisition._signal([cells], palette, shifted)
        assert np.flatnonzero(signal[0] > 0.5)[0] == 200 + places


def test_wrinkles_move_cells_by_less_than_a_few():
    side = GRID * FINE
    stripes = np.tile((np.arange(side) // 40 % 2).astype(np.uint8), (side, 1))
    (moved,) = wrinkle([stripes], np.random.default_rng(0))
    far = np.minimum(np.arange(side) % 40, 39 - np.arange(side) % 40) >= 8  # 8 cells from any edge: 2 mm
    assert (moved[:, far] == stripes[:, far]).mean() > 0.999
    assert (moved != stripes).mean() > 0.01


def test_a_palette_has_an_end():
    palette = Palette()
    for _ in range(255):
        palette.add(0.5)
    with pytest.raises(ValueError, match="256"):
        palette.add(0.5)
