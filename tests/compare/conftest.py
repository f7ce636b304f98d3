from pathlib import Path

import pytest


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A data set of 6 patients with 2 images each, the patient in the name of the file; images are never opened."""
    for part, patients in (("train", range(4)), ("val", range(4, 6))):
        (tmp_path / "d" / "images" / part).mkdir(parents=True)
        (tmp_path / "d" / "labels" / part).mkdir(parents=True)
        for p in patients:
            for i in range(2):
                (tmp_path / "d" / "images" / part / f"p{p}_{i}.png").touch()
                (tmp_path / "d" / "labels" / part / f"p{p}_{i}.txt").write_text(f"{p % 2} 0.5 0.5 0.2 0.2\n")
    data = tmp_path / "d" / "data.yaml"
    data.write_text("train: images/train\nval: images/val\nnames: {0: a, 1: b}\n")
    return data
