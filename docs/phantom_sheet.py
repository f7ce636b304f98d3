"""Draw docs/phantom.png: eight patients of the phantom, and six discs from normal to severe.

python docs/phantom_sheet.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from meddet_yolo.phantom import PRESETS
from meddet_yolo.phantom.anatomy import Disc
from meddet_yolo.phantom.study import Study

TILE, COLUMNS = 224, 4
CLOSE, CLOSE_COLUMNS, MILLIMETRES = 149, 6, 38.0
KINDS = {
    "normal": lambda d: d.grade == 0 and d.degeneration < 0.2,
    "normal, worn": lambda d: d.grade == 0 and d.degeneration > 0.5 and d.bulge > 0.5,
    "subtle": lambda d: d.grade == 1,
    "moderate": lambda d: d.grade == 2 and not d.extrusion,
    "severe": lambda d: d.grade == 3 and not d.extrusion,
    "extrusion": lambda d: d.grade == 3 and d.extrusion,
}


def study() -> Study:
    """Return the default data set."""
    preset = PRESETS["paper"]
    return Study(preset.patients, 0, preset.imgsz, 2, 0.5, 0.125, 0.2, preset.fov)


def overview(number: int) -> np.ndarray:
    """Return one patient's first image, small."""
    image = study().patient(number).image(0, 512).image
    return cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_AREA)


def close_up(name: str, first: int) -> np.ndarray:
    """Return a disc of a kind with its box and name, from the first patient from `first` on who has one."""
    for number in range(first, 900):
        patient = study().patient(number)
        discs: list[Disc] = [d for d in patient.anatomy.discs[1:5] if KINDS[name](d)]
        if not discs or patient.protocol.noise > 0.03:
            continue
        which = patient.anatomy.discs.index(discs[0])
        scanned = patient.image(0, 512)
        x1, y1, x2, y2 = 512 * scanned.boxes[which]
        half = 0.5 * MILLIMETRES * 512 / patient.protocol.fov
        centre = np.array([x2 - 0.15 * half, 0.5 * (y1 + y2)])
        zoom = CLOSE / (2 * half)
        shift = np.array([[zoom, 0.0, CLOSE / 2 - zoom * centre[0]], [0.0, zoom, CLOSE / 2 - zoom * centre[1]]])
        part = cv2.warpAffine(scanned.image, shift, (CLOSE, CLOSE), flags=cv2.INTER_CUBIC)
        for (x, y), (dx, dy) in (((x1, y1), (1, 1)), ((x2, y1), (-1, 1)), ((x1, y2), (1, -1)), ((x2, y2), (-1, -1))):
            at = shift @ (x, y, 1.0)  # corners only: the disc stays visible
            corner = np.array([[at[0] + 8 * dx, at[1]], at, [at[0], at[1] + 8 * dy]])
            cv2.polylines(part, [np.round(corner).astype(np.int32)], False, 255, 1)
        cv2.rectangle(part, (0, CLOSE - 17), (CLOSE, CLOSE), 0, -1)
        cv2.putText(part, name, (5, CLOSE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1, cv2.LINE_AA)
        return part
    raise ValueError(f"no patient has a disc of the kind {name!r}")


def main() -> None:
    """Draw the sheet."""
    tiles = [overview(number) for number in range(8)]
    rows = [np.hstack(tiles[at : at + COLUMNS]) for at in range(0, len(tiles), COLUMNS)]
    closer = np.hstack([close_up(name, 20 + 7 * number) for number, name in enumerate(KINDS)])
    closer = cv2.copyMakeBorder(closer, 0, 0, 0, COLUMNS * TILE - closer.shape[1], cv2.BORDER_CONSTANT)
    cv2.imwrite(
        str(Path(__file__).with_name("phantom.png")), np.vstack([*rows, closer]), [cv2.IMWRITE_PNG_COMPRESSION, 9]
    )


if __name__ == "__main__":
    main()
