"""What does MRI noise cost in a data loader, beside MONAI's transforms and Ultralytics' own augmentation?

Every noise on a grey slice of 512 x 512 in three channels of 8 bits, as a data loader holds it; MONAI's transforms on
the same slice, made from one channel to float32 and back; and what Ultralytics does to one training image (mosaic,
affine, HSV, flip). In turn, so that a drifting machine hits all alike.

    python benchmarks/mri_noise_speed.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from nmode2_timing import CLOCKS, header, interleave, ratio, summary, write

from meddet_yolo.data.mri_noise import NOISES, add_noise
from meddet_yolo.phantom import generate_phantom

STOCK = "Ultralytics' augmentation"


def monai_calls(image: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return MONAI's transforms, as a data loader of Ultralytics would call them."""
    from monai.transforms import GibbsNoise, KSpaceSpikeNoise, RandBiasField, RandRicianNoise

    transforms: dict[str, Any] = {
        "rician": RandRicianNoise(prob=1.0, std=10.0, sample_std=False),
        "bias": RandBiasField(prob=1.0, coeff_range=(-0.3, 0.3)),
        "gibbs": GibbsNoise(0.6),
        "spikes": KSpaceSpikeNoise((200, 220), 14.0),
    }

    def call(transform: Any) -> Callable[[], object]:
        def run() -> np.ndarray:
            out = np.asarray(transform(image[None, ..., 0].astype(np.float32)))
            return np.repeat(np.clip(np.rint(out[0]), 0, 255).astype(np.uint8)[..., None], 3, axis=2)

        return run

    return {f"{name}, MONAI": call(transform) for name, transform in transforms.items()}


def stock_call(data: Path, imgsz: int) -> Callable[[], object]:
    """Return one training sample of Ultralytics, its images decoded before."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    checked = check_det_dataset(str(data))
    dataset = build_yolo_dataset(
        get_cfg(overrides={"imgsz": imgsz, "cache": "ram"}), checked["train"], 8, checked, mode="train"
    )
    return lambda: dataset[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = generate_phantom(Path(folder) / "phantom", patients=4, imgsz=args.imgsz)
        image = cv2.imread(str(sorted(data.parent.glob("images/train/*"))[0]))
        calls: dict[str, Callable[[], object]] = {STOCK: stock_call(data, args.imgsz)}
        for noise in NOISES:
            calls[noise] = lambda noise=noise: add_noise(image, noise, 0.2, 0)  # type: ignore[misc]  # its default has a type
        try:
            calls |= monai_calls(image)
        except ImportError:
            print("MONAI is not installed: measured without it", file=sys.stderr)
        times = interleave(calls, args.rounds, args.clock)
    rows = [
        {"step": name, **summary(values), "share of the augmentation": ratio(values, times[STOCK])}
        for name, values in times.items()
    ]
    head = header(("numpy", "opencv-python", "ultralytics", "monai"), 1, args.clock)
    write("mri_noise_speed", "Cost of MRI noise in a data loader", head, {f"one image of {args.imgsz} px": rows})


if __name__ == "__main__":
    main()
