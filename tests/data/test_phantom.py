import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.utils import check_det_dataset

from meddet_yolo.data.phantom import NAMES, generate_phantom


def _digests(data: Path) -> dict[str, str]:
    root = data.parent
    return {
        str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in root.rglob("*") if f.is_file()
    }


def _labels(data: Path) -> dict[str, np.ndarray]:
    """Labels by image stem, each of shape (N, 5)."""
    return {f.stem: np.loadtxt(f, ndmin=2) for f in sorted((data.parent / "labels").rglob("*.txt"))}


def test_same_arguments_give_the_same_files(tmp_path):
    first = generate_phantom(tmp_path / "a", patients=3, seed=5, imgsz=64)
    second = generate_phantom(tmp_path / "b", patients=3, seed=5, imgsz=64)
    other = generate_phantom(tmp_path / "c", patients=3, seed=6, imgsz=64)
    assert _digests(first) == _digests(second)
    assert _digests(first) != _digests(other)


def test_a_patient_looks_the_same_in_a_larger_study(tmp_path):
    few = generate_phantom(tmp_path / "few", patients=2, imgsz=64)
    many = generate_phantom(tmp_path / "many", patients=5, imgsz=64)
    by_stem = [{f.stem: f.read_bytes() for f in d.parent.rglob("*.png")} for d in (few, many)]
    assert by_stem[0].items() <= by_stem[1].items()


def test_ultralytics_accepts_the_data_set(tmp_path):
    data = generate_phantom(tmp_path / "d", patients=4, imgsz=64)
    checked = check_det_dataset(data, autodownload=False)
    assert checked["names"] == NAMES
    assert Path(checked["train"]) == tmp_path / "d" / "images" / "train"


def test_no_patient_is_in_both_splits(tmp_path):
    data = generate_phantom(tmp_path / "d", patients=7, imgsz=48, slices=2)
    patients = {s: {f.stem.split("_")[0] for f in (data.parent / "images" / s).iterdir()} for s in ("train", "val")}
    assert len(patients["train"]) == 5
    assert len(patients["val"]) == 2
    assert not patients["train"] & patients["val"]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), imgsz=st.integers(32, 200))
def test_boxes_lie_inside_the_image_and_follow_one_another(tmp_path_factory, seed, imgsz):
    data = generate_phantom(tmp_path_factory.mktemp("h"), patients=2, seed=seed, imgsz=imgsz, slices=1)
    for labels in _labels(data).values():
        centre, size = labels[:, 1:3], labels[:, 3:5]
        assert len(labels) >= 4
        assert (centre - size / 2 >= -1e-6).all()
        assert (centre + size / 2 <= 1 + 1e-6).all()
        assert (np.diff(centre[:, 1]) > 0.1).all()  # from head to foot, a disc's distance apart
    for file in data.parent.rglob("*.png"):
        image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        assert image.shape == (imgsz, imgsz)
        assert image.std() > 10


def test_classes_differ_as_described(tmp_path):
    """Herniated discs are darker than normal ones and reach further back than their own vertebra's height suggests."""
    data = generate_phantom(tmp_path / "d", patients=12, imgsz=160)
    grey: dict[int, list[float]] = {0: [], 1: []}
    width: dict[int, list[float]] = {0: [], 1: []}
    labels = _labels(data)
    for file in data.parent.rglob("*.png"):
        image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        for cls, x, y, w, _ in labels[file.stem]:
            grey[int(cls)].append(float(image[int(y * 160), int(x * 160)]))
            width[int(cls)].append(w)
    assert len(grey[0]) > 20
    assert len(grey[1]) > 20
    assert np.mean(grey[0]) < 0.8 * np.mean(grey[1])
    assert np.mean(width[0]) > np.mean(width[1])


@pytest.mark.parametrize(
    "arguments",
    [{"patients": 1}, {"patients": 2.0}, {"seed": -1}, {"imgsz": 16}, {"slices": 0}, {"val_fraction": 1.0}],
)
def test_arguments_out_of_range_are_named(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        generate_phantom(tmp_path / "d", **arguments)
    assert not (tmp_path / "d").exists()


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="name a new folder"):
        generate_phantom(tmp_path, patients=2, imgsz=48)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_result_is_replaced(tmp_path):
    generate_phantom(tmp_path, patients=4, imgsz=48)
    data = generate_phantom(tmp_path, patients=2, imgsz=48, slices=1)
    assert len(list(data.parent.rglob("*.png"))) == len(list(data.parent.rglob("*.txt"))) == 2
