"""A small data set with two detectors' boxes, and the evaluation's folder made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meddet_yolo.evaluate.detection_files import coco_results
from meddet_yolo.evaluate.detections import Found
from meddet_yolo.evaluate.evaluation import evaluate
from meddet_yolo.evaluate.ground_truth import truth_of
from meddet_yolo.evaluate.results import Evaluation

IMAGES, SIZE = 12, (48, 64)
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of twelve noisy pictures of six patients; a class name and a file name that ask for trouble."""
    folder = tmp_path_factory.mktemp("page") / "spine"
    generator = np.random.default_rng(0)
    rows = ["image,patient,scanner"]
    for number in range(IMAGES):
        name = f"doe{number // 2}_jane & <b>{number}" if number < 4 else f"im{number}"
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, SIZE, np.uint8)).save(folder / "images" / f"{name}.png")
        count = 0 if number % 5 == 4 else 2
        lines = [f"{c} {x:.3f} 0.5 0.2 0.3" for c, x in enumerate(generator.uniform(0.2, 0.8, count))]
        (folder / "labels" / f"{name}.txt").write_text("\n".join(lines))
        rows.append(f"{name}.png,Doe{number // 2}^Jane,{'A' if number < 6 else '<i>B'}")
    (folder / "patients.csv").write_text("\n".join(rows) + "\n")
    content = {"train": "images", "val": "images", "names": ["disc", HOSTILE]}
    (folder / "data.yaml").write_text(json.dumps(content))  # JSON is YAML
    return folder / "data.yaml"


def detections(data: Path, name: str, noise: float, missed: float) -> Path:
    """Write detections near the labels, some left out, with false alarms."""
    generator = np.random.default_rng(len(name))
    found = []
    for truth in truth_of(data).images:
        keep = generator.random(len(truth)) >= missed
        near = truth.boxes[keep] + generator.normal(0, noise, (int(keep.sum()), 1))
        boxes = np.vstack([near, [[1.0, 1, 9, 9], [30, 2, 40, 12]]])
        classes = np.append(truth.classes[keep], [0, 1])
        scores = np.append(generator.uniform(0.3, 1, len(near)), generator.uniform(0, 0.7, 2)).round(3)
        found.append(Found(truth.name, boxes, classes, scores))
    file = data.parent / f"{name}.json"
    file.write_text(json.dumps(coco_results(found)))
    return file


@pytest.fixture(scope="session")
def judged(small: Path) -> Evaluation:
    """Two detectors judged on the small set; `out` holds the page."""
    files = [detections(small, "good", 0.5, 0.1), detections(small, "poorer", 3, 0.4)]
    return evaluate(
        files, small, out=small.parent.parent / "out", rounds=30, table=small.parent / "patients.csv",
        subgroups="scanner", threshold="f1",
    )  # fmt: skip
