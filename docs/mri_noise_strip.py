"""Draw docs/mri-noise.png: the five noises at rising strength on a slice of the phantom.

python docs/mri_noise_strip.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np

from meddet_yolo.data.mri_noise import NOISES, add_noise
from meddet_yolo.phantom import generate_phantom

TILE, GAP, HEAD = 136, 4, 18
STRENGTHS = {
    "rician": (0.05, 0.1, 0.2),
    "bias": (0.2, 0.5, 1.0),
    "gibbs": (0.5, 0.7, 0.8),
    "ghosting": (0.05, 0.1, 0.2),
    "spikes": (0.05, 0.1, 0.2),
}


def main() -> None:
    """Draw one row a noise, the clean slice first."""
    with tempfile.TemporaryDirectory() as folder:
        data = generate_phantom(Path(folder) / "phantom", patients=2, imgsz=256)
        image = cv2.imread(str(sorted(data.parent.glob("images/train/*"))[0]), cv2.IMREAD_GRAYSCALE)
    columns = 1 + len(STRENGTHS["rician"])
    sheet = np.full((len(NOISES) * (TILE + HEAD + GAP), columns * (TILE + GAP) - GAP), 255, np.uint8)
    for row, noise in enumerate(NOISES):
        for column, sigma in enumerate((0.0, *STRENGTHS[noise])):
            shown = cv2.resize(add_noise(image, noise, sigma, 4), (TILE, TILE), interpolation=cv2.INTER_AREA)
            x, y = column * (TILE + GAP), row * (TILE + HEAD + GAP)
            cv2.putText(sheet, f"{noise} {sigma:g}", (x, y + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 30, 1, cv2.LINE_AA)
            sheet[y + HEAD : y + HEAD + TILE, x : x + TILE] = shown
    cv2.imwrite(str(Path(__file__).with_name("mri-noise.png")), sheet, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
