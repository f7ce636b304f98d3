"""Random images with labelled and found boxes."""

from __future__ import annotations

import numpy as np

from meddet_yolo.evaluate.detections import Found, Truth


def scenes(seed: int, images: int, classes: int, extra: int = 6, grid: float = 0.25, distinct: bool = True):
    """Random images; coordinates on a grid, so that boxes as x, y, w, h are the same boxes exactly."""
    generator = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = generator.integers(0, 300, (count, 2))
        return np.hstack([corner, corner + generator.choice([4, 12, 28, 32, 60, 96, 120], (count, 2))]).astype(float)

    found, truth = [], []
    for number in range(images):
        there = boxes(generator.poisson(2.5))
        cls = generator.integers(0, classes, len(there))
        shifted = there + np.round(generator.normal(0, 3, there.shape) / grid) * grid
        shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2])
        kept = np.repeat(np.arange(len(there)), generator.integers(0, 3, len(there)))
        more = boxes(generator.integers(0, extra + 1))
        guess = np.concatenate([cls[kept], generator.integers(0, classes, len(more))])
        score = generator.random(len(guess)) if distinct else generator.integers(0, 5, len(guess)) / 4
        truth.append(Truth(str(number), there, cls, (400, 400), patient=str(number // 2)))
        found.append(Found(str(number), np.vstack([shifted[kept], more]), guess, score))
    return found, truth
