import json

import cv2
import numpy as np
import pytest

from meddet_yolo.data.audit import Entry, audit
from meddet_yolo.data.duplicates import exact_duplicates, fingerprint, near_duplicates


def picture(seed, size=96):
    """A smooth random picture, of the kind that compresses as photographs do."""
    noise = np.random.default_rng(seed).uniform(0, 255, (size, size)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def entry(name, seed=None, *, split="train", patient=None, boxes=((0, 10, 10, 30, 30),), clipped=0):
    seed = sum(map(ord, name)) if seed is None else seed
    return Entry(name, split, patient or name, (96, 96), list(boxes), clipped, fingerprint(picture(seed)))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE),
        lambda x: cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda x: cv2.convertScaleAbs(x, alpha=0.7, beta=20),
        lambda x: (255 * (x / 255) ** 0.7).astype(np.uint8),
    ],
    ids=["jpeg", "smaller", "contrast", "gamma"],
)
def test_changed_copies_are_near_duplicates_and_others_are_not(change):
    pictures = [picture(seed) for seed in range(12)]
    prints = [fingerprint(p) for p in (*pictures, *map(change, pictures))]
    assert not exact_duplicates(prints)
    assert {pair[:2] for pair in near_duplicates(prints)} == {(i, i + 12) for i in range(12)}


def test_the_same_pixels_are_duplicates_in_grey_and_in_colour():
    prints = [fingerprint(p) for p in (picture(0), picture(1), cv2.cvtColor(picture(0), cv2.COLOR_GRAY2BGR))]
    assert exact_duplicates(prints) == [[0, 2]]
    assert near_duplicates(prints) == []


def test_blank_images_are_duplicates_but_never_near_ones():
    prints = [fingerprint(np.full((40, 40), v, np.uint8)) for v in (0, 0, 90)]
    assert exact_duplicates(prints) == [[0, 1]]
    assert near_duplicates(prints) == []
    assert near_duplicates(prints[:1]) == []


def test_real_images_of_different_patients_are_no_near_duplicates(spider):
    files = sorted((spider.parent / "images" / "val").iterdir())
    prints = [fingerprint(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)) for file in files]
    patients = [file.name.split("_")[0] for file in files]
    assert all(patients[a] == patients[b] for a, b, _ in near_duplicates(prints))


@pytest.mark.parametrize(
    ("kind", "boxes"),
    [
        ("tiny box", [(0, 10, 10, 13, 30)]),
        ("elongated box", [(0, 10, 10, 90, 19)]),
        ("huge box", [(0, 0, 0, 80, 80)]),
        ("object labelled twice", [(0, 10, 10, 30, 30), (0, 10, 10, 30, 31)]),
        ("object with two classes", [(0, 10, 10, 30, 30), (1, 10, 10, 30, 31)]),
    ],
)
def test_suspicious_labels_are_flagged(kind, boxes):
    fine = entry("fine.png", boxes=[(0, 10, 10, 30, 30), (1, 40, 40, 60, 60), (1, 25, 25, 45, 45)])
    found = audit([fine, entry("odd.png", boxes=boxes)], ["a", "b"]).suspicious
    assert list(found) == [kind]
    assert len(found[kind]) == 1 and found[kind][0].startswith("odd.png: ")


def test_clipped_unused_and_missing_labels_are_flagged():
    entries = [entry("a.png", clipped=2), entry("b.png", boxes=()), entry("c.png", boxes=(), split="val")]
    found = audit(entries, ["a", "b"]).suspicious
    assert found["box out of the image"] == ["a.png: 2 clipped"]
    assert found["unused class"] == ["a: no box in val", "b: no box anywhere"]
    assert found["image without boxes"] == ["b.png", "c.png"]


def test_the_same_image_in_two_parts_is_a_leak_and_a_lookalike_is_told():
    entries = [entry("a.png", 1), entry("b.png", 1, split="val"), entry("c.png", 2), entry("d.png", 2, split="train")]
    report = audit(entries, ["a"])
    assert report.leaks == ["the same image in several parts: train/a.png = val/b.png"]
    assert report.duplicates["the same image"] == ["train/a.png = val/b.png", "train/c.png = train/d.png"]
    near = Entry("e.png", "val", "e", (96, 96), [], 0, fingerprint(cv2.convertScaleAbs(picture(2), alpha=0.8)))
    found = audit([entry("c.png", 2), near], ["a"]).duplicates
    assert list(found) == ["images that look the same, across parts"]


def test_report_counts_and_is_written(tmp_path):
    entries = [
        entry("a_1.png", patient="p1", boxes=[(0, 10, 10, 30, 20), (1, 50, 50, 60, 70)]),
        entry("a_2.png", patient="p1", boxes=[]),
        entry("b.png", split="val", patient="p2", boxes=[(0, 10, 10, 40, 20)]),
    ]
    report = audit(entries, ["disc", "x|y"], notes=["a note"], left_out=["c.png: damaged"])
    assert report.counts["train"] == {
        "images": 2,
        "patients": 1,
        "images_without_boxes": 1,
        "boxes": {"disc": 1, "x|y": 1},
    }
    assert report.boxes["disc"]["width"]["median"] == 25
    assert report.boxes["disc"]["area_share"]["median"] == pytest.approx(250 / 96**2, abs=1e-5)
    report.write(tmp_path, "A title")
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_dict()
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# A title\n") and "| train | 2 | 1 | 1 | 1 | 1 |" in text
    assert "x\\|y" in text and "a\\_1.png" not in text and "c.png: damaged" in text


def test_unknown_patients_are_a_question_mark_and_long_lists_are_cut():
    entries = [entry(f"{i}.png", i, boxes=[(0, 1, 1, 3, 3)]) for i in range(30)]
    for one in entries:
        one.patient = None
    report = audit(entries, ["a"])
    assert report.counts["train"]["patients"] is None
    assert "?" in report.as_text().splitlines()[1]
    assert "and 10 more" in report.as_markdown("x")
