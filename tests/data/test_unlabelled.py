"""Images without labels: what is found, what is left out and why, and that labels beside them are not read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset

from meddet_yolo.data.dataset import build_dataset
from meddet_yolo.data.unlabelled import UnlabelledDataset, find_source, gather
from tests.dicom_files import make_dicom

Data = dict[str, Any]


def picture(path: Path, seed: int, side: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """A data set of four patients with an image each: two for training, one each for validation and test."""
    folder = tmp_path / "d"
    rows = ["image,patient,split"]
    for seed, (split, name) in enumerate((("train", "a"), ("train", "b"), ("val", "c"), ("test", "d"))):
        picture(folder / "images" / split / f"{name}.png", seed)
        rows.append(f"images/{split}/{name}.png,p{name},{split}")
    (folder / "patients.csv").write_text("\n".join(rows))
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: {0: x}\n")
    return check_det_dataset(str(folder / "data.yaml"))


def names(files: list[str]) -> list[str]:
    return [Path(file).name for file in files]


def test_what_must_not_be_learnt_from_is_named_with_its_reason(data: Data, tmp_path: Path) -> None:
    root = Path(data["path"])
    for seed in (10, 11):
        picture(tmp_path / "more" / "deep" / f"new{seed}.png", seed)
    picture(tmp_path / "more" / "small.png", 12, side=6)
    pixels = cv2.imread(str(root / "images/val/c.png"))
    cv2.imwrite(str(tmp_path / "more" / "copy-of-c.bmp"), pixels)  # other bytes, the same pixels
    shutil.copy(root / "images/test/d.png", tmp_path / "more" / "d.png")
    shutil.copy(root / "images/train/a.png", tmp_path / "more" / "also-labelled.png")
    whole = picture(tmp_path / "more" / "cut.jpg", 13, side=64).read_bytes()
    (tmp_path / "more" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "more" / "text.png").write_text("no picture")

    found = gather(find_source(tmp_path / "more"), data)

    assert names(found.images) == ["also-labelled.png", "new10.png", "new11.png"]
    assert found.labelled == 1
    reasons = {item.path.name: item.reason for item in found.skipped}
    assert reasons["copy-of-c.bmp"] == "the same image is in val"
    assert reasons["d.png"] == "the same image is in test"
    assert "at least 10" in reasons["small.png"]
    assert all("cannot be read as an image" in reasons[name] for name in ("cut.jpg", "text.png"))
    assert len(reasons) == 5
    assert found.summary == (
        "3 images without labels; skipped 5: 3 cannot be read, 2 in val or test; 1 of the images are training images "
        "with labels too"
    )


def test_other_images_of_held_back_patients_are_left_out(data: Data, tmp_path: Path) -> None:
    root = Path(data["path"])
    picture(root / "images/rest/c2.png", 20)
    picture(root / "images/rest/e.png", 21)
    with (root / "patients.csv").open("a") as file:
        file.write("\nimages/rest/c2.png,pc,\nimages/rest/e.png,pe,\n")
    found = gather(find_source(root / "images/rest"), data)
    assert names(found.images) == ["e.png"]
    assert [(s.path.name, s.reason) for s in found.skipped] == [("c2.png", "is of a patient who is in val or test")]


def test_slices_of_volumes_are_read_unless_their_patient_is_held_back(data: Data, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16), np.uint8)
    make_dicom(Path(data["val"]) / "v.dcm", frames[0], bits=8, PatientID="held", PatientName="Doe^Jane")
    (Path(data["path"]) / "labels/val").mkdir(parents=True)
    make_dicom(tmp_path / "more" / "Doe.dcm", frames[1], bits=8, PatientID="held", PatientName="Doe^Jane")
    make_dicom(tmp_path / "more" / "new.dcm", frames[2:], bits=8, PatientID="new", PatientName="Roe^Richard")
    (tmp_path / "more" / "broken.dcm").write_text("no DICOM")
    found = gather(find_source(tmp_path / "more"), data)
    assert names(found.images) == [f"new_s00{i}.png" for i in range(3)]  # all, where training takes those with labels
    reasons = {item.path.name: item.reason for item in found.skipped}
    assert sorted(reasons.values()) == ["is of a patient who is in val or test", "not a DICOM file"]
    assert not any("Doe" in str(item) for item in found.skipped)


def test_slices_lie_apart_from_those_of_a_labelled_data_set(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, 16), np.uint8)
    make_dicom(tmp_path / "images/train/a.dcm", frames, bits=8)
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a_s001.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    picture(tmp_path / "images/val/b.png", 1)
    (tmp_path / "d.yaml").write_text("train: images/train\nval: images/val\nnames: {0: x}\nslices: labelled\n")
    data = check_det_dataset(str(tmp_path / "d.yaml"))
    labelled = build_dataset(get_cfg(overrides={"imgsz": 32}), data["train"], 1, data, mode="train")
    found = gather(find_source(tmp_path / "d.yaml"), data)
    assert (len(labelled), len(found.images), found.labelled) == (1, 3, 1)
    assert all(Path(file).is_file() for file in labelled.im_files)
    assert not {*labelled.im_files} & {*found.images}


def test_labels_beside_the_images_are_not_read(data: Data, tmp_path: Path) -> None:
    for seed in range(3):
        picture(tmp_path / "m/images" / f"{seed}.png", seed + 30)
        (tmp_path / "m/labels").mkdir(exist_ok=True)
        (tmp_path / "m/labels" / f"{seed}.txt").write_text("99 0.5 0.5 7 7\n")  # would be refused
    before = sorted(tmp_path.rglob("*"))
    found = gather(find_source(tmp_path / "m/images"), data)
    cfg = get_cfg(overrides={"imgsz": 32, "mosaic": 1.0})
    dataset = build_dataset(cfg, found.images, 2, data, mode="train", kind=UnlabelledDataset)
    batch = dataset.collate_fn([dataset[i] for i in range(len(dataset))])
    assert batch["img"].shape == (3, 3, 32, 32)
    assert len(batch["cls"]) == len(batch["bboxes"]) == 0
    assert sorted(tmp_path.rglob("*")) == before  # nor is a label cache written


def test_lists_and_yamls_name_images(data: Data, tmp_path: Path) -> None:
    for seed in range(3):
        picture(tmp_path / "m/images/train" / f"{seed}.png", seed + 30)
    (tmp_path / "m/list.txt").write_text("./images/train/2.png\n./images/train/none.png\n")
    (tmp_path / "m/all.yaml").write_text("train: images/train\nval: images/val\nnames: {0: x}\n")
    (tmp_path / "m/some.yaml").write_text("train: images/train\nunlabelled: [list.txt]\n")
    expected = {"list.txt": ["2.png"], "all.yaml": ["0.png", "1.png", "2.png"], "some.yaml": ["2.png"]}
    for name, images in expected.items():
        assert names(gather(find_source(tmp_path / "m" / name), data).images) == images


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("nowhere", None, FileNotFoundError, "is not there; name a folder, a .txt list"),
        ("a.png", "x", ValueError, "is neither; name a folder"),
        ("d.yaml", "names: {0: a}", ValueError, "names no images: expected `unlabelled:` or `train:`"),
        ("d.yaml", "unlabelled: {}", ValueError, "names no images"),
        ("d.yaml", "unlabelled: gone", FileNotFoundError, "unlabelled names .*gone, which is not there"),
        ("list.txt", "", FileNotFoundError, "holds no images"),
        ("empty", "", FileNotFoundError, "holds no images"),
        ("list.txt", "/none/a.png\n", ValueError, "none of its images can be used: /none/a.png"),
    ],
)
def test_what_holds_no_images_is_refused_in_a_line(
    name: str, content: str | None, error: type[Exception], message: str, data: Data, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message) as caught:
        gather(find_source(path), data)
    assert "\n" not in str(caught.value)
