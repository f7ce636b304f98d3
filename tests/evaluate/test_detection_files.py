"""Detections read from files of other programs and of our own."""

import json

import numpy as np
import pytest

from meddet_yolo.evaluate.detection_files import coco_results, read_detections
from meddet_yolo.evaluate.detections import Found, Truth, TruthSet, align, save_found

TRUTH = TruthSet(
    tuple(Truth(name, [], [], (20, 20)) for name in ("a.png", "7.png", "000012.png")), ("disc", "other"), "the data"
)
FOUND = [
    Found("a.png", [[1, 2, 4, 8], [0, 0, 5, 5]], [0, 1], [0.5, 0.25]),
    Found("7.png", [[1, 1, 2, 2]], [1], [0.75]),
    Found("000012.png", [[3, 3, 9, 9]], [0], [0.125]),
]


def _same(found: list[Found]) -> None:
    for ours, expected in zip(align(found, TRUTH), FOUND, strict=True):
        np.testing.assert_array_equal(ours.boxes, expected.boxes)
        np.testing.assert_array_equal(ours.classes, expected.classes)
        np.testing.assert_array_equal(ours.scores, expected.scores)


def _write(path, content) -> object:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("named", [True, False])
def test_coco_results_of_either_count_and_any_identity(tmp_path, first, named):
    rows = coco_results(FOUND)
    for row in rows:
        row["category_id"] += first
        if not named:
            del row["file_name"]
            row["image_id"] = int(row["image_id"]) if row["image_id"].isdecimal() else row["image_id"]
    _same(read_detections(_write(tmp_path / "r.json", rows), TRUTH))


def test_coco_results_that_may_count_either_way_are_asked_about(tmp_path):
    rows = [{"image_id": "a", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]
    three = TruthSet(TRUTH.images, ("a", "b", "c"))
    file = _write(tmp_path / "r.json", rows)
    with pytest.raises(ValueError, match="first_class=0 or 1"):
        read_detections(file, three)
    assert [read_detections(file, three, first_class=n)[0].classes.tolist() for n in (0, 1)] == [[1], [0]]


def test_what_ultralytics_saves_as_json_is_read(tmp_path):
    """Its validation counts classes from 1 and names images by number and by file."""
    rows = [{"image_id": 12, "file_name": "000012.png", "category_id": 2, "bbox": [3, 3, 6, 6], "score": 0.5}]
    found = align(read_detections(_write(tmp_path / "r.json", rows), TRUTH, first_class=1), TRUTH)
    assert [len(f) for f in found] == [0, 0, 1] and found[2].boxes.tolist() == [[3, 3, 9, 9]]


def test_what_predict_writes_for_slices(tmp_path):
    for number, f in enumerate(FOUND):
        boxes = [
            {"name": TRUTH.names[c], "class": c, "confidence": s, "box_px": b}
            for b, c, s in zip(f.boxes.tolist(), f.classes.tolist(), f.scores.tolist(), strict=True)
        ]
        _write(tmp_path / f"{number}.json", {"name": "x", "slices": [{"name": f.name, "boxes": boxes}]})
    _same(read_detections(tmp_path, TRUTH))


def test_what_the_runner_prints(tmp_path):
    lines = [
        {"image": f"somewhere/{f.name}", "boxes": [
            {"class": TRUTH.names[c], "class_id": 99, "confidence": s, "xyxy": b}
            for b, c, s in zip(f.boxes.tolist(), f.classes.tolist(), f.scores.tolist(), strict=True)
        ]}
        for f in FOUND
    ]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    _same(read_detections(tmp_path / "r.jsonl", TRUTH))


def test_saved_detections(tmp_path):
    _same(read_detections(save_found(tmp_path / "r.npz", FOUND), TRUTH))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "is no file of detections"),
        ([1, 2], "is no file of detections"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}], "lacks or misspells 'category_id'"),
        ([{"image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1], "score": 0.5}], "first_class=0 or 1"),
        ([{"image_id": "a", "category_id": n, "bbox": [0, 0, 1, 1], "score": 0.5} for n in (0, 5)], "has 2 classes"),
        ([{"image_id": "a", "category_id": 0, "bbox": [0, 0, 1, 1], "score": float("nan")}], "score nan"),
        (
            [{"image_id": "a", "category_id": 0, "bbox": [0, 0, 1], "score": 0.5}],
            "image a: .* is no box, expected four",
        ),
        ([{"image_id": "a", "category_id": 0, "bbox": "wide", "score": 0.5}], "image a: 'wide' is no box"),
        (
            [{"image_id": "a", "category_id": 0, "bbox": [0, 0, 1, 1], "score": "high"}],
            "image a: score 'high', expected",
        ),
        ([{"image": "a", "boxes": [{"class": "disc", "confidence": 1, "xyxy": [0, 1]}]}], "image a: .* is no box"),
        ([{"image": "a", "boxes": [{"class": "tumour", "confidence": 1, "xyxy": [0, 0, 1, 1]}]}], "class 'tumour'"),
    ],
)
def test_refuses_what_does_not_fit_in_one_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_detections(_write(tmp_path / "r.json", content), TRUTH)
    assert "\n" not in str(caught.value)


def test_refuses_no_file_no_json_and_an_empty_folder(tmp_path):
    (tmp_path / "r.json").write_text("{nothing")
    with pytest.raises(ValueError, match="no valid JSON"):
        read_detections(tmp_path / "r.json", TRUTH)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no JSON files"):
        read_detections(tmp_path / "empty", TRUTH)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_detections(tmp_path / "nowhere.json", TRUTH)
