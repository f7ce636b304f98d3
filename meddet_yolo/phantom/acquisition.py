"""From a tissue map to the image a scanner would give.

Two neighbouring tissue maps become signal (partial volume through the slice and in the plane), fat is shifted against
water, textures and the coil's sensitivity are applied; then k-space is sampled on the patient's matrix, disturbed by
motion and noise, and transformed back: Gibbs ringing and Rician noise come from there by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from meddet_yolo.phantom.drawing import Palette

GRID = 448  # cells along a side of the signal before it is sampled
FINE = 2  # cells of the tissue map for one of these
_RECON = 512  # side of the image that is reconstructed, before it is scaled to the size asked for


@dataclass(frozen=True)
class Protocol:
    """How one patient is scanned."""

    fov: float  # field of view in millimetres
    matrix: tuple[int, int]  # samples along the phase-encoding and the read-out direction
    phase_vertical: bool  # phase encoding runs from head to foot; otherwise from front to back
    window_filter: float  # 0 no apodisation, more ringing; 1 a full Hamming window
    noise: float  # standard deviation in each channel, relative to cerebrospinal fluid
    ghost: float  # strength of ghosts by motion
    ghost_period: float  # of the motion, in phase-encoding steps
    coil: tuple[float, ...]  # shading: depth of fall-off to the front, tilt, two waves
    saturation: float  # signal that a saturation band leaves in front of the throat, 1 none
    chemical_shift: int  # of fat against water, in cells of the tissue map
    crest: float  # quantile of the image that is taken for the brightest tissues
    white: float  # signal shown as white, relative to the brightest tissues
    centre: float  # the first slice's distance from the mid-sagittal plane, in millimetres
    gap: float  # from one slice to the next
    thickness: float
    slope: float  # obliquity: millimetres to the side per millimetre down the column
    turn: float  # rotation of the slice in its plane, radians
    aim: tuple[float, ...]  # the image's centre, as (s, d) from the middle of the discs C2/3 to C7/T1


def draw_protocol(rng: np.random.Generator, difficulty: float, fov: tuple[float, float] = (185.0, 250.0)) -> Protocol:
    """Draw how a patient is scanned; noise and artefacts grow with `difficulty` (0 to 1)."""
    view = float(rng.uniform(*fov))
    stray = min(6.0, 2.0 + 0.06 * (view - 140.0))  # close views leave little room beside the discs
    read = int(rng.choice([240, 256, 288, 320, 352, 400]))
    phase = int(2 * round(0.5 * read * rng.uniform(0.65, 0.92)))
    strength = 0.35 + 1.3 * difficulty
    return Protocol(
        fov=view,
        matrix=(phase, read),
        phase_vertical=bool(rng.random() < 0.65),
        window_filter=float(rng.uniform(0.1, 0.8)),
        noise=float(strength * min(0.010 + rng.gamma(1.5, 0.011), 0.07)),
        ghost=float(strength * rng.gamma(1.2, 0.035)),
        ghost_period=float(rng.uniform(3.0, 14.0)),
        coil=tuple(float(v) for v in (rng.uniform(0.35, 1.3), *rng.uniform(-0.18, 0.18, 3))),
        saturation=float(rng.uniform(0.12, 0.5) if rng.random() < 0.35 else 1.0),
        chemical_shift=int(rng.integers(-3, 4)),
        crest=float(rng.uniform(0.95, 0.98)),
        white=float(rng.uniform(0.75, 1.2)),
        centre=float(rng.uniform(-1.2, 1.2)),
        gap=float(rng.uniform(1.8, 2.8)),
        thickness=float(rng.uniform(2.5, 5.0)),
        slope=float(rng.uniform(-0.015, 0.015)),
        turn=float(rng.normal(0.0, 0.04)),
        aim=tuple(float(v) for v in stray * np.clip(rng.standard_normal(2), -2.0, 2.0)),
    )


def scan(
    maps: list[np.ndarray], palette: Palette, protocol: Protocol, rng: np.random.Generator, imgsz: int
) -> np.ndarray:
    """Return the image of a slice.

    Args:
        maps: Tissue maps of shape (GRID * FINE, GRID * FINE) through the slice's thickness, first to last.
        palette: What their numbers mean.
        protocol: How the patient is scanned.
        rng: Source of texture and noise.
        imgsz: Side of the image in pixels.

    Returns:
        Image of shape (imgsz, imgsz), uint8.
    """
    signal = _signal(maps, palette, protocol)
    signal *= _texture(maps[0], palette, rng)
    signal *= _shading(protocol, rng)
    image = _acquire(signal, protocol, rng)
    if imgsz != _RECON:
        way = cv2.INTER_AREA if imgsz < _RECON else cv2.INTER_CUBIC
        image = cv2.resize(image, (imgsz, imgsz), interpolation=way)
    white = protocol.white * float(np.quantile(image[:: max(imgsz // 128, 1), :: max(imgsz // 128, 1)], protocol.crest))
    return np.clip(np.round(image * (255.0 / white)), 0, 255).astype(np.uint8)


def wrinkle(maps: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Move the cells of tissue maps by a fraction of a millimetre, smoothly: no tissue has a border drawn by ruler."""
    side = GRID * FINE
    moved = np.empty((side, side, 2), np.int16)
    places = np.arange(side) + 0.5  # conversion to whole numbers cuts off
    narrow = side // 14
    for axis, place in enumerate((places[None], places[:, None])):
        wide = cv2.resize(
            rng.standard_normal((side // 60, side // 60)), (narrow, narrow), interpolation=cv2.INTER_CUBIC
        )
        shift = np.add(1.1 * wide, 0.8 * rng.standard_normal((narrow, narrow)))
        shift = cv2.resize(shift, (side // 4, side // 4), interpolation=cv2.INTER_CUBIC)
        moved[..., axis] = cv2.resize(shift, (side, side), interpolation=cv2.INTER_LINEAR) + place
    nowhere = np.empty(0)  # the second map is for fractions
    return [cv2.remap(m, moved, nowhere, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE) for m in maps]


def _signal(maps: list[np.ndarray], palette: Palette, protocol: Protocol) -> np.ndarray:
    """Average signal over the slice's thickness and the cells, with fat shifted along the read-out direction."""
    signal, share = (palette.table(values) for values in (palette.signal, palette.fat))
    # In steps of 1/4096, of which float32 holds any sum below exactly: the same bytes on every processor.
    fat, water = (np.round(4096 * part).astype(np.float32) / 4096 for part in (signal * share, signal * (1 - share)))
    axis = 1 if protocol.phase_vertical else 0
    total = np.zeros((GRID, GRID), np.float32)
    for tissue in maps:
        for table, seen in ((water, tissue), (fat, np.roll(tissue, protocol.chemical_shift, axis))):
            total += cv2.resize(cv2.LUT(seen, table), (GRID, GRID), interpolation=cv2.INTER_AREA)
    return total.astype(float) / len(maps)


def _noise_field(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return smooth noise with standard deviation about 1 and `rows` times `columns` humps, shape (GRID, GRID)."""
    coarse = rng.standard_normal((rows, columns))
    return 1.35 * cv2.resize(coarse, (GRID, GRID), interpolation=cv2.INTER_CUBIC)


def _slanted(field: np.ndarray) -> np.ndarray:
    """Lean a field like the muscles of the nape."""
    lean = np.array([[1.0, 0.18, -0.09 * GRID], [0.0, 1.0, 0.0]])
    return cv2.warpAffine(field, lean, (GRID, GRID), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _texture(tissue: np.ndarray, palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """Return the factor by which texture changes the signal."""
    seen = np.ascontiguousarray(tissue[::FINE, ::FINE])
    out = np.ones((GRID, GRID))
    for strengths, field in (
        (palette.grain, _noise_field(rng, GRID // 3, GRID // 3)),
        (palette.blotch, _noise_field(rng, GRID // 11, GRID // 11)),
        (palette.fibre, _slanted(_noise_field(rng, GRID // 26, GRID // 4))),
    ):
        out += cv2.LUT(seen, palette.table(strengths)) * field
    return np.maximum(out, 0.0)


def _shading(protocol: Protocol, rng: np.random.Generator) -> np.ndarray:
    """Return the coil's sensitivity: strong near the neck's rear, falling off to the front."""
    x = np.linspace(-1.0, 1.0, GRID)[None]
    y = np.linspace(-1.0, 1.0, GRID)[:, None]
    fall, tilt, wave_x, wave_y = protocol.coil
    fall = fall + 0.05 * rng.standard_normal()
    shade = np.exp(-0.42 * fall * (0.55 - x)) * np.exp(-0.30 * fall * y**2) * (1 + tilt * y)
    shade = shade * (1 + wave_x * np.sin(2.2 * x + 0.7) + wave_y * np.sin(2.6 * y - 0.4))
    if protocol.saturation < 1.0:
        edge = 1.0 / (1.0 + np.exp(-(x + 0.42 + 0.12 * y) / 0.05))
        shade = shade * (protocol.saturation + (1 - protocol.saturation) * edge)
    return shade


def _acquire(signal: np.ndarray, protocol: Protocol, rng: np.random.Generator) -> np.ndarray:
    """Sample k-space on the matrix, disturb it and reconstruct the magnitude image, shape (512, 512).

    Frequencies stay in the FFT's own order: from 0 up, then the negative ones.
    """
    phase, read = protocol.matrix
    rows, columns = (phase, read) if protocol.phase_vertical else (read, phase)
    k = np.fft.fft(signal, axis=1, norm="forward")[:, _low(columns, GRID)]
    k = np.fft.fft(k, axis=0, norm="forward")[_low(rows, GRID)]
    if protocol.ghost:
        steps = np.fft.ifftshift(np.arange(phase))
        beat = np.exp(1j * protocol.ghost * np.sin(2 * np.pi * steps / protocol.ghost_period + rng.uniform(0, 6.28)))
        beat = beat * (1 + 0.5 * protocol.ghost * rng.standard_normal(phase))
        k *= beat[:, None] if protocol.phase_vertical else beat[None]
    # White noise in the image has the same strength at every sample of k-space.
    noise = rng.standard_normal((2, rows, columns)) * (protocol.noise / np.sqrt(rows * columns))
    k.real += noise[0]
    k.imag += noise[1]
    taper = 0.46 * protocol.window_filter
    for axis, count in enumerate((rows, columns)):
        window = 1 - taper + taper * np.cos(2 * np.pi * np.fft.fftfreq(count))
        k *= window[:, None] if axis == 0 else window[None]
    tall = np.zeros((_RECON, columns), complex)
    tall[_low(rows, _RECON)] = k
    full = np.zeros((_RECON, _RECON), complex)
    full[:, _low(columns, _RECON)] = np.fft.ifft(tall, axis=0, norm="forward")
    return np.abs(np.fft.ifft(full, axis=1, norm="forward"))


def _low(count: int, size: int) -> np.ndarray:
    """Return where the `count` lowest frequencies, an even number, stand among `size`."""
    return np.concatenate([np.arange(count // 2), np.arange(size - count // 2, size)])
