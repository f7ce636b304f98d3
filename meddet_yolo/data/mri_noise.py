"""Noise and artefacts of MRI on magnitude images: Rician noise, bias field, Gibbs ringing, ghosting, k-space spikes.

MONAI has transforms for four of the five. These here are NumPy functions on images as a data loader holds them, because
a strength must mean the same for every image: MONAI's Rician noise is relative to the standard deviation of the image,
background included; its Gibbs noise leaves the image alone below a strength that depends on the aspect ratio, and its
spikes are given as the logarithm of a raw Fourier coefficient. MONAI has no ghosting. The tests use it as the oracle
where both do the same.

All strengths are relative to `signal_level`. The definitions of the strengths, and how random details are drawn, are
our own decisions; the physics is that of Gudbjartsson & Patz, Magn. Reson. Med. 34 (1995) 910 (Rician noise), Van
Leemput et al., IEEE TMI 18 (1999) 885 (polynomial bias field) and Zhuo & Gullapalli, RadioGraphics 26 (2006) 275 (the
artefacts).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

__all__ = [
    "NOISES",
    "MRINoise",
    "MRINoiseConfig",
    "add_noise",
    "bias_field",
    "check_noise",
    "gibbs_ringing",
    "image_generator",
    "kspace_spikes",
    "motion_ghosting",
    "rician_noise",
    "signal_level",
]

_BACKGROUND = 0.1  # share of the brightest tissue below which a pixel is air
_DEGREE = 3  # of the bias field's polynomial
_SHIFT = (0.15, 0.45)  # distance of a ghost, as a share of the image's side
_FREQUENCY = (0.04, 0.4)  # radius of a spike in k-space, in cycles per pixel


def signal_level(image: np.ndarray) -> float:
    """Return the median brightness of tissue, the unit of all strengths.

    Tissue are the pixels above a tenth of the 99.9th percentile, so that neither air and black margins nor a few very
    bright pixels count.

    Args:
        image: Magnitude image of any shape, values at least 0.

    Returns:
        The level in the image's own units; 0 for an image without signal.

    Examples:
        >>> image = np.zeros((64, 64), np.uint8)
        >>> image[16:48, 16:48] = 120
        >>> signal_level(image), signal_level(np.pad(image, 64))
        (120.0, 120.0)
    """
    tissue = image[_tissue(image)]
    return _quantile(tissue, 0.5) if tissue.size else 0.0


def _quantile(values: np.ndarray, share: float) -> float:
    """Return the value below which a share of the values lies; many times faster than NumPy's, which interpolates."""
    rank = int(share * (values.size - 1))
    return float(np.partition(values.ravel(), rank)[rank])


def _tissue(image: np.ndarray) -> np.ndarray:
    """Return which pixels are tissue."""
    if image.size == 0:
        return np.zeros(image.shape, bool)
    bright = _quantile(image, 0.999) or float(image.max())
    return np.asarray(image > _BACKGROUND * bright)


def _magnitude(real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    """Return the magnitude; OpenCV's is twice as fast, but its last bit depends on where an array lies in memory."""
    return np.asarray(np.sqrt(real * real + imaginary * imaginary))


# One plane, float32 in, float32 out -----------------------------------------------------------------------------------


def rician_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add Rician noise, that of a magnitude image whose real and imaginary parts carry Gaussian noise.

    Args:
        image: Image of shape (H, W), values at least 0.
        sigma: Standard deviation of the Gaussian noise relative to `signal_level`, at least 0. The signal-to-noise
            ratio in median tissue is 1 / sigma.
        rng: Source of the noise.

    Returns:
        Image of shape (H, W), float32.
    """
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(sigma * signal_level(image))
    return _magnitude(image + noise[0], noise[1])


def bias_field(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Multiply by the smooth shading of an uneven coil sensitivity, the exponential of a polynomial of degree 3.

    Args:
        image: Image of shape (H, W), values at least 0.
        sigma: Greatest relative change of the brightness of tissue, at least 0: the field lies in
            [1 / (1 + sigma), 1 + sigma] and reaches one of the two.
        rng: Source of the polynomial's coefficients.

    Returns:
        Image of shape (H, W), float32.
    """
    coefficients = rng.uniform(-1, 1, (_DEGREE + 1, _DEGREE + 1))
    rows, columns = np.indices(coefficients.shape)
    coefficients[rows + columns > _DEGREE] = 0
    coefficients[0, 0] = 0  # a factor for the whole image is no shading
    field = legendre_field(image.shape, coefficients)
    tissue = _tissue(image)
    if not tissue.any():
        return image
    field -= field[tissue].mean()
    field = np.clip(field / (np.abs(field[tissue]).max() or 1.0), -1, 1)
    return image * np.exp(field * math.log1p(sigma)).astype(np.float32)


def legendre_field(shape: tuple[int, ...], coefficients: np.ndarray) -> np.ndarray:
    """Return the sum of products of Legendre polynomials over the image.

    Args:
        shape: (H, W).
        coefficients: Of P_i(y) P_j(x) at [i, j], x and y being -1 at one edge and 1 at the other.

    Returns:
        Field of shape (H, W), float64.
    """
    y, x = (np.linspace(-1, 1, n) for n in shape)
    degree_y, degree_x = (n - 1 for n in coefficients.shape)
    legendre = np.polynomial.legendre
    return np.asarray(legendre.legvander(y, degree_y) @ coefficients @ legendre.legvander(x, degree_x).T)


def gibbs_ringing(image: np.ndarray, sigma: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Cut the outer part of k-space off, as a smaller acquisition matrix with zero-filling does.

    Args:
        image: Image of shape (H, W), values at least 0.
        sigma: Share of the spatial frequencies lost along each axis, in [0, 1): 0.5 is half the acquisition matrix.
        rng: Not used: there is nothing random in it.

    Returns:
        Magnitude image of shape (H, W), float32.
    """
    kspace = np.fft.rfft2(image)
    limit = (1 - sigma) / 2 + 1e-9  # cycles per pixel; the Nyquist frequency is 0.5
    kspace[np.abs(np.fft.fftfreq(image.shape[0])) > limit] = 0
    kspace[:, np.fft.rfftfreq(image.shape[1]) > limit] = 0
    return np.abs(np.fft.irfft2(kspace, s=image.shape)).astype(np.float32)


def motion_ghosting(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add the ghosts of periodic motion: displaced copies of the image along the phase-encoding axis.

    A signal that changes periodically while k-space is filled multiplies its lines k by
    1 + 2 sigma cos(2 pi d k + phase), which by the shift theorem adds one copy on either side at distance d.

    Args:
        image: Image of shape (H, W), values at least 0.
        sigma: Amplitude of each ghost relative to the image it is a copy of, at least 0.
        rng: Source of axis, distance (15 to 45 % of the side) and phase.

    Returns:
        Magnitude image of shape (H, W), float32.
    """
    axis, phase = int(rng.integers(2)), rng.uniform(0, 2 * math.pi)
    shift = max(1, round(rng.uniform(*_SHIFT) * image.shape[axis]))
    forward, backward = np.roll(image, shift, axis), np.roll(image, -shift, axis)
    real = image + np.float32(sigma * math.cos(phase)) * (forward + backward)
    return _magnitude(real, np.float32(sigma * math.sin(phase)) * (forward - backward))


def kspace_spikes(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add the stripes of one to three spikes, single points of k-space hit by a discharge ("herringbone").

    Args:
        image: Image of shape (H, W), values at least 0.
        sigma: Amplitude of the stripes relative to `signal_level`, at least 0; several spikes share it, so that their
            root mean square is that of one.
        rng: Source of the spikes' number, positions and phases.

    Returns:
        Magnitude image of shape (H, W), float32.
    """
    count = int(rng.integers(1, 4))
    y, x = (np.arange(n) for n in image.shape)
    stripes = np.zeros(image.shape, np.complex64)
    for _ in range(count):
        radius, angle, phase = rng.uniform(*_FREQUENCY), rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
        # whole numbers of cycles: a point of k-space, not between two
        v, u = (round(radius * f(angle) * n) / n for f, n in ((math.sin, len(y)), (math.cos, len(x))))
        stripes += np.exp(2j * math.pi * v * y + 1j * phase).astype(np.complex64)[:, None] * np.exp(
            2j * math.pi * u * x
        ).astype(np.complex64)
    return np.abs(image + np.float32(sigma * signal_level(image) / math.sqrt(count)) * stripes).astype(np.float32)


NOISES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "rician": rician_noise,
    "bias": bias_field,
    "gibbs": gibbs_ringing,
    "ghosting": motion_ghosting,
    "spikes": kspace_spikes,
}


# Images ---------------------------------------------------------------------------------------------------------------


def add_noise(image: np.ndarray, noise: str, sigma: float, rng: np.random.Generator | int = 0) -> np.ndarray:
    """Return an image with noise of one kind.

    Args:
        image: Magnitude image of shape (H, W), (H, W, 1) or (H, W, 3), integer or float, values at least 0. Three
            channels are a grey image (all get the same) or colours (each with the same noise).
        noise: `rician`, `bias`, `gibbs`, `ghosting` or `spikes`.
        sigma: Strength, at least 0, in the unit that the function of that noise documents; 0 changes nothing.
        rng: Generator, or the seed of one.

    Returns:
        A new image of the same shape and type. Integers are rounded and clipped to the range of their type, so that
        pixels that were white stay white; floats are not clipped.

    Raises:
        ValueError: Unknown noise, a strength out of range, or an image of another shape, with a negative value or with
            one that is not finite.

    Examples:
        >>> image = np.full((128, 128), 100, np.uint8)
        >>> noisy = add_noise(image, "rician", 0.1, 0)
        >>> noisy.dtype, round(float(noisy.std()))
        (dtype('uint8'), 10)
    """
    check_noise(noise, sigma)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"expected an image of shape (H, W), (H, W, 1) or (H, W, 3), got {image.shape}")
    low = float(image.min(initial=0)) if image.size else 0.0
    if not math.isfinite(low) or low < 0 or (image.dtype.kind == "f" and not np.isfinite(image).all()):
        raise ValueError(
            f"MRI noise needs a magnitude image: finite values of at least 0, got a smallest value of {low:g}; "
            "scale the image first"
        )
    if sigma == 0 or image.size == 0:
        return image.copy()
    generator = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
    function = NOISES[noise]
    if image.ndim == 2:
        out = function(image.astype(np.float32), sigma, generator)
    elif all(np.array_equal(image[..., 0], image[..., channel]) for channel in range(1, image.shape[2])):
        plane = function(image[..., 0].astype(np.float32), sigma, generator)
        return np.repeat(_as_type(plane, image.dtype)[..., None], image.shape[2], axis=2)
    else:
        state = generator.bit_generator.state
        planes = []
        for channel in range(image.shape[2]):
            generator.bit_generator.state = state
            planes.append(function(image[..., channel].astype(np.float32), sigma, generator))
        out = np.stack(planes, axis=2)
    return _as_type(out, image.dtype)


def check_noise(noise: str, sigma: float) -> None:
    """Check a noise's name and strength.

    Raises:
        ValueError: Unknown noise, or a strength out of its range.
    """
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
    number = isinstance(sigma, (int, float, np.floating, np.integer)) and not isinstance(sigma, bool)
    if not number or not math.isfinite(sigma) or sigma < 0 or (noise == "gibbs" and sigma >= 1):
        bound = " and below 1" if noise == "gibbs" else ""
        raise ValueError(f"the strength of {noise} noise must be a number of at least 0{bound}, got {sigma!r}")


def _as_type(image: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return a float image as another type, rounded and clipped where that is one of integers."""
    if dtype.kind in "iu":
        limit = np.iinfo(dtype).max
        return np.clip(np.rint(image), 0, limit).astype(dtype)
    return image.astype(dtype)


def image_generator(image: np.ndarray, seed: int = 0) -> np.random.Generator:
    """Return the generator that belongs to an image's pixels, whatever its name and place in a data set.

    Examples:
        >>> image = np.eye(3, dtype=np.uint8)
        >>> a, b = image_generator(image), image_generator(image.copy())
        >>> bool(a.integers(1000) == b.integers(1000))
        True
    """
    digest = hashlib.blake2b(
        np.ascontiguousarray(image).tobytes(), digest_size=8, person=str(image.shape)[:16].encode()
    )
    return np.random.default_rng([seed, int.from_bytes(digest.digest(), "little")])


# Augmentation ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MRINoiseConfig:
    """Options of MRI noise as an augmentation in training, arguments of `train`.

    Each image gets noise with probability `mri_noise`: one of the kinds whose largest strength is above 0, with a
    strength drawn evenly between 0 and that.

    Attributes:
        mri_noise: Probability that an image gets MRI noise, in [0, 1]; 0 switches it off.
        mri_noise_sigma: Largest sigma of Rician noise relative to the signal level, at least 0.
        mri_noise_bias: Largest relative change of brightness by a bias field, at least 0.
        mri_noise_gibbs: Largest share of k-space cut off along each axis (Gibbs ringing), in [0, 1).
        mri_noise_ghosting: Largest amplitude of motion ghosts relative to the image, at least 0.
        mri_noise_spikes: Largest amplitude of the stripes of k-space spikes relative to the signal level, at least 0.

    Raises:
        ValueError: A value is no number or out of range.

    Examples:
        >>> MRINoiseConfig(mri_noise=0.5, mri_noise_sigma=0.2).strengths()["rician"]
        0.2
    """

    mri_noise: float = 0.0
    mri_noise_sigma: float = 0.1
    mri_noise_bias: float = 0.5
    mri_noise_gibbs: float = 0.5
    mri_noise_ghosting: float = 0.2
    mri_noise_spikes: float = 0.1

    def __post_init__(self) -> None:
        """Bring every value to a float and check it."""
        for name, value in asdict(self).items():
            try:
                number = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError):
                number = math.nan
            high = 1.0 if name in ("mri_noise", "mri_noise_gibbs") else math.inf
            if not 0 <= number <= high or math.isinf(number) or (name == "mri_noise_gibbs" and number == 1):
                most = {"mri_noise": " and at most 1", "mri_noise_gibbs": " and below 1"}.get(name, "")
                raise ValueError(f"{name} must be a number of at least 0{most}, got {value!r}")
            object.__setattr__(self, name, number)
        if self.mri_noise and not any(self.strengths().values()):
            raise ValueError(f"mri_noise={self.mri_noise:g} has no noise to choose from: all strengths are 0")

    @classmethod
    def keys(cls) -> frozenset[str]:
        """Return the names of all options."""
        return frozenset(f.name for f in fields(cls))

    @classmethod
    def defaults(cls) -> dict[str, float]:
        """Return every option with its default."""
        return cls().to_dict()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> MRINoiseConfig:
        """Build from a mapping that may hold other things too."""
        return cls(**{key: options[key] for key in cls.keys() if key in options})

    def to_dict(self) -> dict[str, float]:
        """Return the options as plain types."""
        return asdict(self)

    def strengths(self) -> dict[str, float]:
        """Return the largest strength of each kind of noise."""
        return {
            "rician": self.mri_noise_sigma,
            "bias": self.mri_noise_bias,
            "gibbs": self.mri_noise_gibbs,
            "ghosting": self.mri_noise_ghosting,
            "spikes": self.mri_noise_spikes,
        }


class MRINoise:
    """Add MRI noise to some of the images of a training set.

    Randomness comes from Python's `random`, which Ultralytics seeds in every worker of the data loader.

    Args:
        config: Probability and strengths.

    Examples:
        >>> noise = MRINoise(MRINoiseConfig(mri_noise=1.0))
        >>> noise(np.full((32, 32, 3), 90, np.uint8)).shape
        (32, 32, 3)
    """

    def __init__(self, config: MRINoiseConfig) -> None:
        self.config = config
        self._choices = [(name, most) for name, most in config.strengths().items() if most > 0]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the image of shape (H, W, 1) or (H, W, 3), or a new one with noise."""
        if random.random() >= self.config.mri_noise:
            return image
        noise, most = random.choice(self._choices)
        return add_noise(image, noise, random.uniform(0, most), random.getrandbits(63))
