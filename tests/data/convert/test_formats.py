"""Conversions: the same boxes from every format, and bad files of each."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meddet_yolo.data.convert import convert
from tests.data.convert._sources import (
    BOXES,
    EXPECTED,
    PATIENT,
    coco,
    corners,
    fractions,
    headless,
    masks,
    sizes,
    spider_like,
    voc,
    written,
)


@pytest.mark.parametrize(
    "make", [coco, voc, corners, spider_like, sizes, fractions, headless], ids=lambda f: f.__name__
)
def test_every_format_gives_the_same_boxes(make, images, tmp_path):
    make(images.parent)
    out = tmp_path / "out"
    result = convert(images.parent, out, patient=None if make is spider_like else PATIENT, val=0.4)
    assert written(out) == EXPECTED
    assert result.problems == []
    assert result.audit.counts["train"]["patients"] == 3 and result.audit.counts["val"]["patients"] == 2
    for copy in out.glob("images/*/*.png"):
        assert copy.read_bytes() == (images / copy.name).read_bytes()
    parts = {p.stem: p.parent.name for p in out.glob("images/*/*")}
    assert parts["p1_a"] == parts["p1_b"]


def test_masks_give_boxes_with_class_by_label(images, tmp_path):
    masks(images.parent)
    convert(images.parent, tmp_path / "out", patient=PATIENT, classes="[disc,hernia]")
    assert written(tmp_path / "out") == EXPECTED


def test_ultralytics_reads_what_is_written(images, tmp_path):
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    corners(images.parent)
    result = convert(images.parent, tmp_path / "out", patient=PATIENT, val=0.4)
    data = check_det_dataset(str(result.data))
    read = sum(len(label["cls"]) for part in ("train", "val") for label in YOLODataset(data[part], data=data).labels)
    assert data["names"] == {0: "disc", 1: "hernia"} and read == sum(map(len, BOXES.values()))


def test_real_csv_gives_the_labels_that_ship_with_it(spider, tmp_path):
    result = convert(spider.parent, tmp_path, format="csv", classes="normal_disc,degenerated_disc,herniated_disc")
    assert result.problems == []
    assert [result.audit.counts[p]["patients"] for p in ("train", "val")] == [72, 16]
    assert list(result.audit.counts["train"]["boxes"].values()) == [865, 1226, 102]
    for expected in (spider.parent / "labels_3class" / "val").glob("*.txt"):
        theirs, ours = (
            np.array(sorted([float(v) for v in line.split()] for line in file.read_text().splitlines()))
            for file in (expected, tmp_path / "labels" / "val" / expected.name)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_bad_rows_and_images_are_named_and_the_rest_goes_on(images, tmp_path):
    lines = [
        "image,img_w,img_h,xmin,ymin,xmax,ymax,class",
        "p1_a.png,80,60,10,20,30,40,disc",
        "p1_a.png,80,60,70,50,95,58,disc",  # reaches out: clipped
        "p1_a.png,80,60,90,20,95,40,disc",  # outside
        "p1_a.png,80,60,30,20,10,40,disc",  # corners the wrong way round
        "p1_a.png,80,60,ten,20,30,40,disc",
        "p1_a.png,80,60,10,20,30,40,",
        "p2_a.png,81,60,10,20,30,40,disc",  # another size
        "p3_a.png,80,60,10,20,30,40,disc",  # truncated
        "nowhere.png,80,60,10,20,30,40,disc",
        "p5_a.png,80,60,10,20,30,40,hernia",
        "p4_a.png,,,,,,,",
    ]
    (images.parent / "boxes.csv").write_text("\n".join(lines))
    whole = (images / "p3_a.png").read_bytes()
    (images / "p3_a.png").write_bytes(whole[: len(whole) // 2])
    result = convert(images.parent, tmp_path / "out", patient="image")
    found = written(tmp_path / "out")
    assert set(found) == {"p1_a", "p4_a", "p5_a"}
    assert found["p1_a"] == [("disc", (10.0, 20.0, 30.0, 40.0)), ("disc", (70.0, 50.0, 80.0, 58.0))]
    assert result.audit.suspicious["box out of the image"] == ["p1_a.png: 1 clipped"]
    for part in (
        "at 90, 20, 95, 40 has no area in the image, 80x60",
        "at 30, 20, 10, 40 has no area",
        "row 6: xmin='ten'",
        "row 7: no class",
        "p2_a.png: is 80 x 60 pixels, but its annotation is for 81 x 60",
        "p3_a.png: cannot be read as an image",
        "image nowhere.png is not there",
    ):
        assert any(part in problem for problem in result.problems), part
    assert len(result.problems) == 7


def test_bad_coco_and_voc_are_named(images, tmp_path):
    coco(images.parent)
    file = images.parent / "boxes.json"
    data = json.loads(file.read_text())
    data["annotations"][0]["category_id"] = 99
    data["annotations"][1]["bbox"] = [1, 2, 3]
    data["annotations"][2]["iscrowd"] = 1
    data["annotations"][3].pop("bbox")
    data["annotations"][3]["segmentation"] = [[5, 5, 25, 5, 25, 20]]
    data["annotations"].append({"id": 900, "image_id": 77, "category_id": 7, "bbox": [1, 1, 5, 5]})
    file.write_text(json.dumps(data))
    result = convert(images.parent, tmp_path / "coco", patient=PATIENT)
    assert written(tmp_path / "coco")["p2_a"][0] == ("disc", (5.0, 5.0, 25.0, 20.0))
    assert len(result.problems) == 3 and any("crowd" in note for note in result.audit.notes)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is no COCO JSON"):
        convert(file, tmp_path / "x", patient=PATIENT)
    file.unlink()

    voc(images.parent)
    folder = images.parent / "Annotations"
    (folder / "p1_a.xml").write_text("<annotation><filename>p1_a.png</filename>")
    (folder / "p2_a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    (folder / "p3_a.xml").write_text((folder / "p3_a.xml").read_text().replace("<xmin>9</xmin>", ""))
    result = convert(images.parent, tmp_path / "voc", patient=PATIENT)
    assert set(written(tmp_path / "voc")) == {"p1_b", "p4_a", "p5_a"}
    assert len(result.problems) == 3 and any("entities" in p for p in result.problems)


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_broken_json_ends_in_anything_but_a_reason(data, images):
    """One value anywhere in a COCO file replaced by another."""
    coco(images.parent)
    file = images.parent / "boxes.json"
    content = json.loads(file.read_text())
    junk = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=4)
    junk = junk | st.lists(junk, max_size=4) | st.dictionaries(st.sampled_from(["id", "name", "x"]), junk, max_size=2)
    node = content
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.integers(0, 4)) == 0:
            node[key] = data.draw(junk)
            break
        node = node[key]
    file.write_text(json.dumps(content))
    try:
        result = convert(file, check=True, patient="image")
    except (ValueError, FileNotFoundError) as error:
        assert str(error)
    else:
        assert sum(part["images"] for part in result.audit.counts.values()) <= len(BOXES)


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(data=st.data(), make=st.sampled_from([corners, sizes, fractions, voc]))
def test_no_broken_text_ends_in_anything_but_a_reason(data, make, images):
    """A piece of a CSV or XML file replaced by another."""
    for old in (*images.parent.glob("*.csv"), *images.parent.glob("Annotations/*")):
        old.unlink()
    if (images.parent / "Annotations").exists():
        (images.parent / "Annotations").rmdir()
    make(images.parent)
    file = next(iter((*images.parent.glob("*.csv"), *images.parent.glob("Annotations/p1_a.xml"))))
    text = file.read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    junk = st.text("0123456789.,;-e<>/&!\"'nai\n\t ", max_size=6) | st.sampled_from(["inf", "nan", "1e999", "é", "\0"])
    file.write_text(text[:start] + data.draw(junk) + text[end:])
    try:
        result = convert(images.parent, check=True, patient="image", format="voc" if make is voc else "csv")
    except (ValueError, FileNotFoundError) as error:
        assert str(error)
    else:
        assert sum(part["images"] for part in result.audit.counts.values()) <= len(BOXES)
