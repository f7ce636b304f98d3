"""Oracles: SciPy's Rice distribution, explicit Fourier transforms, MONAI's transforms."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from meddet_yolo.data.mri_noise import (
    NOISES,
    MRINoise,
    MRINoiseConfig,
    add_noise,
    bias_field,
    gibbs_ringing,
    image_generator,
    kspace_spikes,
    legendre_field,
    motion_ghosting,
    rician_noise,
    signal_level,
)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def scene():
    """A disc of tissue with a brighter and a darker part, on air."""
    y, x = np.mgrid[:96, :80]
    image = np.zeros((96, 80), np.float32)
    image[(y - 48) ** 2 + (x - 40) ** 2 < 35**2] = 100
    image[30:50, 30:40] = 180
    image[60:70, 35:60] = 40
    return image


images = hnp.arrays(
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.tuples(st.integers(1, 24), st.integers(1, 24)) | st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)),
    elements=st.integers(0, 255),
)


@settings(deadline=None, max_examples=150)
@given(images, st.sampled_from(sorted(NOISES)), st.floats(0, 0.99), st.integers(0, 2**32))
def test_every_noise_keeps_shape_type_and_range_and_is_seeded(image, noise, sigma, seed):
    before = image.copy()
    out = add_noise(image, noise, sigma, seed)
    assert out.shape == image.shape and out.dtype == image.dtype
    assert np.isfinite(out).all() and (out >= 0).all()
    np.testing.assert_array_equal(out, add_noise(image, noise, sigma, seed))
    np.testing.assert_array_equal(image, before)
    assert out is not image and not np.shares_memory(out, image)


@pytest.mark.parametrize("noise", NOISES)
def test_strength_is_relative_to_the_signal(noise, scene):
    out = add_noise(scene, noise, 0.2, 3)
    np.testing.assert_allclose(add_noise(7 * scene, noise, 0.2, 3), 7 * out, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("noise", NOISES)
def test_change_grows_with_strength_and_vanishes_with_it(noise, scene):
    change = [np.abs(add_noise(scene, noise, s, 3) - scene).mean() for s in (0, 1e-4, 0.1, 0.3, 0.6)]
    assert change[0] == 0
    if noise != "gibbs":  # which loses a line of k-space or keeps it
        assert change[1] < 0.02 * change[3]
    assert change[2] < change[3] < change[4]


@pytest.mark.parametrize("noise", NOISES)
def test_grey_in_three_channels_stays_grey(noise, scene):
    image = np.repeat(scene.astype(np.uint8)[..., None], 3, axis=2)
    out = add_noise(image, noise, 0.2, 5)
    np.testing.assert_array_equal(out[..., 0], add_noise(image[..., 0], noise, 0.2, 5))
    assert (out[..., :1] == out).all()
    one = add_noise(image[..., :1], noise, 0.2, 5)
    np.testing.assert_array_equal(one, out[..., :1])


def test_colours_get_the_same_noise_in_every_channel():
    image = np.stack([np.full((64, 64), v, np.float32) for v in (50, 100, 200)], axis=2)
    out = add_noise(image, "bias", 0.3, 1)
    np.testing.assert_allclose(out[..., 0] / 50, out[..., 2] / 200, rtol=1e-5)


# Rician ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 20.0, 100.0])
def test_rician_noise_is_rice_distributed(level):
    image = np.full((200, 200), 100, np.float32)
    image[:, :100] = level
    sigma = 0.3 * signal_level(image)
    found = rician_noise(image, 0.3, rng())[:, :100].ravel()
    rice = stats.rice(level / sigma, scale=sigma)
    assert found.mean() == pytest.approx(rice.mean(), abs=4 * rice.std() / 141)
    assert found.std() == pytest.approx(rice.std(), rel=0.03)
    assert stats.kstest(found, rice.cdf).pvalue > 1e-3


def test_rician_noise_agrees_with_monai(scene):
    monai = pytest.importorskip("monai.transforms")
    sigma = 0.15 * signal_level(scene)
    theirs = monai.RandRicianNoise(prob=1.0, std=sigma, sample_std=False).set_random_state(0)(scene[None])[0]
    ours = rician_noise(scene, 0.15, rng())
    for value in np.unique(scene):
        here = scene == value
        assert stats.ks_2samp(ours[here], np.asarray(theirs)[here]).pvalue > 1e-3


# Bias field -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_bias_field_reaches_its_strength_and_is_a_cubic(seed, sigma):
    image = np.full((60, 70), 100, np.float32)
    log = np.log(bias_field(image, sigma, rng(seed)) / 100).astype(np.float64)
    assert np.abs(log).max() == pytest.approx(np.log1p(sigma), rel=1e-4)
    y, x = np.mgrid[-1:1:60j, -1:1:70j]
    basis = np.stack([y**i * x**j for i in range(4) for j in range(4 - i)], axis=-1).reshape(-1, 10)
    residual = log.ravel() - basis @ np.linalg.lstsq(basis, log.ravel(), rcond=None)[0]
    assert np.abs(residual).max() < 1e-4
    assert np.abs(log.mean()) < 1e-4  # shading, not a brighter image


def test_bias_field_reaches_its_strength_in_tissue(scene):
    tissue = scene > 30
    for seed in range(5):
        log = np.log(bias_field(scene, 0.5, rng(seed))[tissue] / scene[tissue])
        assert np.abs(log).max() == pytest.approx(np.log(1.5), rel=1e-4)


def test_legendre_field_agrees_with_monai():
    monai = pytest.importorskip("monai.transforms")
    coefficients = np.zeros((4, 4))
    coefficients[np.tril_indices(4)] = rng().uniform(-1, 1, 10)
    theirs = monai.RandBiasField(prob=1.0)._generate_random_field((30, 40), 3, coefficients[np.tril_indices(4)])
    np.testing.assert_allclose(legendre_field((30, 40), coefficients), theirs, atol=1e-6)


# Gibbs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (31, 40), (17, 33)])
@pytest.mark.parametrize("sigma", [0.2, 0.5, 0.8])
def test_gibbs_ringing_is_a_truncated_fourier_sum(shape, sigma):
    image = rng().uniform(0, 100, shape).astype(np.float32)
    total = np.zeros(shape, complex)
    y, x = np.mgrid[: shape[0], : shape[1]]
    frequencies = [[k for k in range(-n // 2, n) if 2 * abs(k) <= (1 - sigma) * n + 1e-6] for n in shape]
    for v in frequencies[0]:
        for u in frequencies[1]:
            wave = np.exp(2j * np.pi * (v * y / shape[0] + u * x / shape[1]))
            total += (image * wave.conj()).mean() * wave
    np.testing.assert_allclose(gibbs_ringing(image, sigma), np.abs(total), atol=1e-3)


def test_gibbs_ringing_overshoots_an_edge_by_nine_percent():
    image = np.full((256, 256), 100, np.float32)
    image[:, 64:192] = 200
    out = gibbs_ringing(image, 0.75)
    assert (out.max() - 200) / 100 == pytest.approx(0.0895, abs=0.012)  # the Wilbraham-Gibbs constant


def test_gibbs_ringing_agrees_with_monai():
    """On a pattern along one axis, whose k-space is a line, their circle and our rectangle cut alike."""
    monai = pytest.importorskip("monai.transforms")
    profile = rng().uniform(50, 100, 129).astype(np.float32)
    image = np.repeat(profile[None], 129, axis=0)
    alpha = 0.55
    theirs = np.asarray(monai.GibbsNoise(alpha)(image[None])[0])
    np.testing.assert_allclose(gibbs_ringing(image, 1 - (1 - alpha) * 2**0.5), theirs, atol=0.02)


def test_gibbs_ringing_of_nothing_cut_is_the_image(scene):
    np.testing.assert_allclose(gibbs_ringing(scene, 0.0), scene, atol=1e-4)


# Ghosting and spikes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_ghosting_is_a_periodic_modulation_of_kspace_lines(scene, seed):
    draw = rng(seed)
    axis, phase = int(draw.integers(2)), draw.uniform(0, 2 * np.pi)
    n = scene.shape[axis]
    shift = round(draw.uniform(0.15, 0.45) * n)
    lines = np.arange(n)
    factor = 1 + 0.3 * (np.exp(1j * (phase - 2 * np.pi * lines * shift / n)) +
                        np.exp(-1j * (phase - 2 * np.pi * lines * shift / n)))  # fmt: skip
    kspace = np.fft.fft(scene, axis=axis) * (factor[:, None] if axis == 0 else factor)
    expected = np.abs(np.fft.ifft(kspace, axis=axis))
    np.testing.assert_allclose(motion_ghosting(scene, 0.3, rng(seed)), expected, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_spikes_are_single_points_of_kspace(seed):
    image = np.full((64, 48), 100, np.float32)  # bright enough for the magnitude to be the real part
    out = kspace_spikes(image, 0.02, rng(seed))
    kspace = np.abs(np.fft.fft2(out)) / out.size
    kspace[0, 0] = 0
    count = int(rng(seed).integers(1, 4))
    peaks = np.sort(kspace.ravel())[::-1]
    assert peaks[2 * count] < 0.1 * peaks[2 * count - 1]  # each spike and its mirror, nothing else
    assert out.std() == pytest.approx(0.02 * 100 / 2**0.5, rel=0.02)


def test_one_spike_makes_the_stripes_of_monai():
    monai = pytest.importorskip("monai.transforms")
    seed = next(s for s in range(50) if rng(s).integers(1, 4) == 1)
    image = np.full((64, 64), 100, np.float32)
    ours = kspace_spikes(image, 0.02, rng(seed)) - 100
    v, u = np.unravel_index(np.abs(np.fft.fftshift(np.fft.fft2(ours))).argmax(), image.shape)
    theirs = np.asarray(monai.KSpaceSpikeNoise((int(v), int(u)), float(np.log(2 * image.size)))(image[None])[0]) - 100
    assert theirs.std() == pytest.approx(ours.std(), rel=0.02)
    spectra = [np.abs(np.fft.fft2(stripes)) for stripes in (ours, theirs)]
    assert np.corrcoef(*(s.ravel() for s in spectra))[0, 1] > 0.99


# Signal level, seeds, errors ------------------------------------------------------------------------------------------


def test_signal_level_ignores_margins_and_single_bright_pixels(scene):
    level = signal_level(scene)
    assert level == 100
    spotted = scene.copy()
    spotted[0, 0] = 60000
    assert signal_level(np.pad(scene, 40)) == signal_level(spotted) == level
    assert signal_level(np.zeros((4, 4))) == 0.0 and signal_level(np.zeros((0, 4))) == 0.0


def test_generator_belongs_to_the_pixels_and_the_seed(scene):
    draws = [
        image_generator(i, s).integers(2**60) for i, s in ((scene, 0), (scene.copy(), 0), (scene, 1), (scene.T, 0))
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


@pytest.mark.parametrize(
    ("image", "noise", "sigma", "message"),
    [
        (np.zeros((4, 4)), "rice", 0.1, "noise must be one of rician"),
        (np.zeros((4, 4)), "rician", -0.1, "at least 0, got -0.1"),
        (np.zeros((4, 4)), "rician", float("nan"), "at least 0, got nan"),
        (np.zeros((4, 4)), "gibbs", 1.0, "below 1, got 1.0"),
        (np.zeros((4, 4)), "rician", "much", "got 'much'"),
        (np.zeros((2, 4, 4, 3)), "rician", 0.1, "(H, W, 3), got (2, 4, 4, 3)"),
        (-np.ones((4, 4)), "rician", 0.1, "smallest value of -1"),
        (np.array([[1.0, np.nan]]), "rician", 0.1, "finite values"),
        (np.array([[1.0, np.inf]]), "rician", 0.1, "finite values"),
    ],
)
def test_bad_arguments_are_named(image, noise, sigma, message):
    with pytest.raises(ValueError) as error:
        add_noise(image, noise, sigma)
    assert message in str(error.value)


# Augmentation ---------------------------------------------------------------------------------------------------------


def test_augmentation_adds_noise_to_its_share_of_images_with_every_kind(scene):
    image = np.repeat(scene.astype(np.uint8)[..., None], 3, axis=2)
    noise = MRINoise(MRINoiseConfig(mri_noise=0.5))
    random.seed(0)
    first = [noise(image) for _ in range(200)]
    random.seed(0)
    second = [noise(image) for _ in range(200)]
    changed = [(out != image).any() for out in first]
    assert 70 < sum(changed) < 130
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert MRINoise(MRINoiseConfig())(image) is image


def test_augmentation_uses_only_noises_with_a_strength(scene):
    off = dict.fromkeys(("mri_noise_bias", "mri_noise_gibbs", "mri_noise_ghosting", "mri_noise_spikes"), 0)
    noise = MRINoise(MRINoiseConfig(mri_noise=1, mri_noise_sigma=0.05, **off))
    image = np.full((64, 64, 3), 100, np.uint8)
    assert all(0 <= noise(image).std() < 6 for _ in range(20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mri_noise": 1.5}, "mri_noise must be a number of at least 0 and at most 1, got 1.5"),
        ({"mri_noise": True}, "got True"),
        ({"mri_noise_sigma": -1}, "mri_noise_sigma must be a number of at least 0, got -1"),
        ({"mri_noise_sigma": "lots"}, "got 'lots'"),
        ({"mri_noise_sigma": float("inf")}, "got inf"),
        ({"mri_noise_gibbs": 1}, "below 1, got 1"),
        ({k: 0 for k in MRINoiseConfig.keys()} | {"mri_noise": 0.5}, "all strengths are 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError) as error:
        MRINoiseConfig(**options)
    assert message in str(error.value)
