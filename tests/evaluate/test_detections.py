"""Detections: checked where they are made, aligned with images by name, saved and read."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meddet_yolo.evaluate.detections import Found, Truth, TruthSet, align, load_found, save_found
from meddet_yolo.evaluate.ground_truth import read_column, truth_of

NONE = np.zeros(0)


@pytest.mark.parametrize(
    ("boxes", "classes", "scores", "message"),
    [
        ([[0, 0, 1, 1]], [0], [np.nan], "score nan, expected a number in"),
        ([[0, 0, 1, 1]], [0], [1.5], "score 1.5, expected a number in"),
        ([[0, 0, 1, 1]], [0], [0.5, 0.6], "1 boxes but scores of shape"),
        ([[0, 0, 1, np.inf]], [0], [0.5], "no finite number"),
        ([[2, 0, 1, 1]], [0], [0.5], "ends before it begins"),
        ([[0, 0, 1, 1]], [-1], [0.5], "class -1 is no index"),
        ([[0, 0, 1, 1]], [0, 1], [0.5], "expected one a box"),
        ([[0, 0, 1]], [0], [0.5], r"expected \(N, 4\)"),
    ],
)
def test_refuses_what_is_no_detection(boxes, classes, scores, message):
    with pytest.raises(ValueError, match=message):
        Found("a.png", boxes, classes, scores)


def test_takes_a_rounded_score_for_one():
    assert Found("a", [[0, 0, 1, 1]], [0], [1 + 5e-7]).scores.tolist() == [1.0]


def test_takes_no_boxes():
    found = Found("a", [], [], [])
    assert found.boxes.shape == (0, 4) and found.classes.dtype == np.int64 and len(found.above(0.5)) == 0


def _set(*names: str) -> TruthSet:
    return TruthSet(tuple(Truth(n, NONE, NONE, (8, 8)) for n in names), ("disc", "other"))


def _one(name: str, cls: int = 0) -> Found:
    return Found(name, [[0, 0, 1, 1]], [cls], [0.5])


@pytest.mark.parametrize("name", ["x/b.png", "elsewhere/b.png", "b.png", "b", "c\\b.jpg"])
def test_aligns_by_path_then_name_then_stem(name):
    assert [len(f) for f in align([_one(name)], _set("x/a.png", "x/b.png"))] == [0, 1]


def test_does_not_guess_between_images_of_one_name():
    assert [len(f) for f in align([_one("y/a.png")], _set("x/a.png", "y/a.png"))] == [0, 1]
    with pytest.raises(ValueError, match=r"lacks, for example a\.png"):
        align([_one("a.png")], _set("x/a.png", "y/a.png"))


def test_refuses_detections_of_other_images_classes_and_twice():
    with pytest.raises(ValueError, match=r"detections of 1 images that the ground truth lacks, for example z\.png"):
        align([_one("z.png"), _one("a.png")], _set("a.png"))
    with pytest.raises(ValueError, match=r"class 2 in image a\.png.*same class list"):
        align([_one("a.png", 2)], _set("a.png"))
    with pytest.raises(ValueError, match=r"two entries for image a\.png"):
        align([_one("a.png"), _one("a")], _set("a.png"))


def test_a_set_names_each_image_once_and_each_class():
    with pytest.raises(ValueError, match="two images called a"):
        _set("a", "a")
    with pytest.raises(ValueError, match="has no images"):
        _set()
    with pytest.raises(ValueError, match="class 1, expected 0 to 0"):
        TruthSet((Truth("a", [[0, 0, 1, 1]], [1], (8, 8)),), ("disc",))


def test_patients_are_known_only_if_all_are():
    images = [Truth(n, NONE, NONE, (8, 8), p) for n, p in (("a", "1"), ("b", None))]
    assert TruthSet(tuple(images), ("disc",)).patients is None
    assert TruthSet(tuple(images[:1]), ("disc",)).patients == ["1"]


def test_saved_detections_come_back_exactly(tmp_path):
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 90, (5, 2))
    found = [
        Found("ä/1.png", np.hstack([corner, corner + 7]), [0, 1, 0, 2, 1], generator.random(5)),
        Found("2.png", [], [], []),
    ]
    back = load_found(save_found(tmp_path / "f.npz", found))
    assert [f.name for f in back] == ["ä/1.png", "2.png"]
    for a, b in zip(found, back, strict=True):
        for field in ("boxes", "classes", "scores"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no file of detections"):
        load_found(tmp_path / "bad.npz")
    assert load_found(save_found(tmp_path / "empty.npz", [])) == []


# ground truth ---------------------------------------------------------------------------------------------------------


def _data_set(folder: Path, labels: dict[str, str], size: tuple[int, int] = (40, 20)) -> Path:
    for name, text in labels.items():
        image, label = folder / "images" / "val" / name, folder / "labels" / "val" / name
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(image)
        if text is not None:
            label.with_suffix(".txt").write_text(text)
    data = folder / "data.yaml"
    data.write_text("train: images/val\nval: images/val\nnames: [disc, other]\n")
    return data


def test_reads_labels_as_ultralytics_does(tmp_path):
    from ultralytics.cfg import get_cfg
    from ultralytics.data.utils import check_det_dataset

    from meddet_yolo.data.dataset import build_dataset

    data = _data_set(
        tmp_path,
        {
            "a.png": "1 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5\n0 0.95 0.5 0.2 0.3\n",
            "b.png": "0 0.1 0.1 0.6 0.2 0.4 0.9\n",
            "c.png": "",
            "d.png": None,
        },
    )
    truth = truth_of(data)
    assert [i.name for i in truth.images] == ["a.png", "b.png", "c.png", "d.png"]
    assert truth.names == ("disc", "other") and truth.images[0].size == (20, 40)
    stock = build_dataset(get_cfg(), str(tmp_path / "images/val"), 1, check_det_dataset(str(data)), mode="val")
    for image, label in zip(truth.images, stock.labels, strict=True):
        cx, cy, w, h = (label["bboxes"] * [40, 20, 40, 20]).T
        theirs = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
        theirs = np.clip(theirs, 0, [40, 20, 40, 20])
        rows = sorted(np.column_stack([image.classes, image.boxes]).round(4).tolist())
        assert rows == sorted(np.column_stack([label["cls"].reshape(-1), theirs]).round(4).tolist())
    assert len(truth.images[0]) == 2
    assert truth.patients is None and "patients are unknown" in truth.notes[0]


def test_a_turned_photograph_has_the_size_it_is_shown_in(tmp_path):
    data = _data_set(tmp_path, {"a.jpg": ""})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "images/val/a.jpg", exif=exif)
    assert truth_of(data).images[0].size == (40, 20)


def test_refuses_a_bad_label_or_image_in_one_line(tmp_path):
    data = _data_set(tmp_path, {"a.png": "2 0.5 0.5 0.1 0.1"})
    with pytest.raises(ValueError, match="row 1: class 2 is out of range"):
        truth_of(data)
    (tmp_path / "labels/val/a.txt").write_text("")
    (tmp_path / "images/val/a.png").write_bytes(b"none")
    with pytest.raises(ValueError, match="cannot be read: no image, or damaged"):
        truth_of(data)
    with pytest.raises(FileNotFoundError):
        truth_of(data, "test")


def test_patients_come_from_the_conversion_from_boxes_or_from_a_named_column(tmp_path):
    data = _data_set(tmp_path, {"a.png": "", "b.png": ""})
    (tmp_path / "val_boxes.csv").write_text("image,patient,x0\na.png,7,1\na.png,7,2\nb.png,8,1\n")
    (tmp_path / "other_boxes.csv").write_text("lorem,ipsum\n1,2\n")
    assert truth_of(data).patients == ["7", "8"]
    (tmp_path / "patients.csv").write_text("image,patient,split\nimages/val/a.png,p1,val\nimages/val/b.png,p1,val\n")
    assert truth_of(data).patients == ["p1", "p1"]
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("filename", "subject"), ("a.png", "s1"), ("b.png", "")])
    truth = truth_of(data, patients=tmp_path / "mine.csv", patient_column="subject")
    assert truth.patients is None and truth.notes == ("the patient of 1 of 2 images is unknown, for example of b.png",)
    with pytest.raises(ValueError, match="has no column 'scanner'; it has filename, subject"):
        read_column(tmp_path / "mine.csv", "scanner")
    (tmp_path / "mine.csv").write_text("image,sex\na.png,f\na.png,m\n")
    with pytest.raises(ValueError, match=r"a\.png has the sex 'f' and 'm'"):
        read_column(tmp_path / "mine.csv", "sex")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_column(tmp_path / "nowhere.csv", "sex")


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    data = _data_set(tmp_path, {"x/a.png": "", "y/a.png": "", "b.png": ""})
    assert [i.name for i in truth_of(data).images] == ["b.png", "x/a.png", "y/a.png"]


def test_real_data_has_its_patients(spider):
    truth = truth_of(spider)
    assert len(truth) == 43 and truth.patients is not None and len(set(truth.patients)) > 5
    assert truth.notes == () and all(len(image) for image in truth.images)


def test_slices_of_dicom_files_have_their_spacing(tmp_path):
    from tests.dicom_files import make_dicom

    data = _data_set(tmp_path, {"plain.png": "0 0.5 0.5 0.5 0.5"})
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 900, (32, 32)).astype(np.uint16)
    make_dicom(tmp_path / "images/val/knee.dcm", pixels, spacing=(0.5, 0.5))
    make_dicom(tmp_path / "images/val/old.dcm", pixels[::-1].copy(), spacing=None, orientation=None)
    for name in ("knee", "old"):
        (tmp_path / "labels/val" / f"{name}.txt").write_text("1 0.5 0.5 0.25 0.5")
    images = {image.path.stem.split("_")[0]: image for image in truth_of(data).images}
    assert len(images) == 3 and images["plain"].spacing is None
    (known,) = [image for image in images.values() if image.spacing is not None]
    assert known.spacing == (0.5, 0.5) and known.size == (32, 32)
    assert known.boxes.tolist() == [[12, 8, 20, 24]] and known.classes.tolist() == [1]
