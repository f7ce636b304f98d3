"""Annotations and pictures made to break `convert`, or to smuggle a patient's data through it."""

from __future__ import annotations

import csv
import errno
import json
import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from meddet_yolo.data.convert import convert
from meddet_yolo.data.convert.formats import read_source
from meddet_yolo.data.convert.masks import mask_boxes
from meddet_yolo.data.convert.yolo import load_yaml
from meddet_yolo.data.labels import label_problem
from meddet_yolo.files import alone, write_whole
from tests.hostile.made import chunk, png

SECRET = b"Jane Doe, born 1970-01-01"


def pictures(folder: Path, names: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.random.default_rng(number).integers(0, 255, (32, 40), np.uint8))
    return folder


def table(folder: Path, names: tuple[str, ...], file: str = "boxes.csv") -> Path:
    with (folder / file).open("w", newline="") as rows:
        writer = csv.writer(rows)
        writer.writerow(("image", "x0", "y0", "x1", "y1", "class", "patient"))
        writer.writerows((name, 1, 2, 11, 12, "disc", name) for name in names)
    return folder / file


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "webp"])
def test_bytes_behind_a_picture_and_between_its_parts_stay_behind(kind: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", (f"a.{kind}", f"b.{kind}"))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes() + SECRET)
    content = (folder / f"a.{kind}").read_bytes()
    if kind == "png":
        hidden = chunk(b"juNk", SECRET) + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(SECRET))
        (folder / "a.png").write_bytes(content[:33] + hidden + content[33:])
    if kind == "jpg":  # in a table that no scan uses, which is what every decoder skips
        used = b"\xff\xfe" + (len(SECRET) + 2).to_bytes(2, "big") + SECRET
        (folder / "a.jpg").write_bytes(content[:2] + used + content[2:])
    out = tmp_path / "out"
    convert(table(folder, (f"a.{kind}", f"b.{kind}")), out, val=1)
    made = sorted(out.rglob("images/*/*"))
    assert [path.suffix for path in made] == [".png", ".png"]
    for path in made:
        content = path.read_bytes()
        assert SECRET not in content
        assert content.endswith(chunk(b"IEND", b""))
        assert {content[i : i + 4] for i in _chunks(content)} == {b"IHDR", b"IDAT", b"IEND"}
        with Image.open(folder / f"{path.stem}.{kind}") as original:
            assert np.array_equal(np.asarray(original.convert("L")), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))


def _chunks(content: bytes) -> list[int]:
    """Return where the names of a PNG's chunks stand."""
    found, at = [], 8
    while at < len(content):
        found.append(at + 4)
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    return found


def test_a_picture_that_announces_gigabytes_is_left_out(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", ("a.png", "b.png"))
    png(folder / "bomb.png", 12_000, 12_000, bytes(1 << 20))
    result = convert(table(folder, ("a.png", "b.png", "bomb.png")), tmp_path / "out", val=1)
    assert ["144000000 pixels, more than max_pixels=33554432" in problem for problem in result.problems] == [True]
    with pytest.raises(ValueError, match="1280 pixels, more than max_pixels=1279"):
        convert(folder / "boxes.csv", tmp_path / "none", max_pixels=1279)


@pytest.mark.parametrize("link", ["images/train/a.png", "labels/train/a.txt", "data.yaml", "patients.csv", "report.md"])
def test_a_link_in_the_target_is_replaced_and_not_followed(link: str, tmp_path: Path) -> None:
    folder, out = pictures(tmp_path / "in"), tmp_path / "out"
    boxes = table(folder, ("a.png", "b.png"))
    convert(boxes, out, val=1)
    link = link if (out / link).exists() else link.replace("train", "val")
    (out / link).unlink()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (out / link).symlink_to(victim)
    convert(boxes, out, val=1)
    assert victim.read_text() == "mine"
    assert not (out / link).is_symlink()
    assert (out / link).stat().st_size > 4


def test_a_folder_in_the_target_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    folder, out = pictures(tmp_path / "in"), tmp_path / "out"
    convert(table(folder, ("a.png", "b.png")), out, val=1)
    (tmp_path / "elsewhere").mkdir()
    (out / "images").rename(tmp_path / "old")
    (out / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="is a link to another folder"):
        convert(folder / "boxes.csv", out, val=1)
    assert not [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()]


def test_two_conversions_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    folder, out = pictures(tmp_path / "in"), tmp_path / "out"
    boxes = table(folder, ("a.png", "b.png"))
    convert(boxes, out, val=1)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with alone(out / ".convert.lock", ""):
            entered.set()
            leave.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    entered.wait(30)
    try:
        with pytest.raises(BlockingIOError, match=f"another process is writing to out={out}"):
            convert(boxes, out, val=1)
    finally:
        leave.set()
        other.join()
    convert(boxes, out, val=1)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("meddet_yolo.files.os.replace", full)
    with pytest.raises(OSError, match=r"a\.txt cannot be written: the disk at /\S* is full \(\d+\.\d\d GB free\)"):
        write_whole(tmp_path / "a.txt", "after")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "before")]


DEEP = 3000
BAD: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    "deep JSON": (
        "coco",
        lambda f: b'{"images": [], "annotations": ' + b"[" * 99_999 + b"]" * 99_999 + b"}",
        "no COCO",
    ),
    "a list for an id": (
        "coco",
        lambda f: json.dumps({"images": [], "annotations": [], "categories": [{"id": [], "name": 1}]}).encode(),
        "no COCO",
    ),
    "deep YAML": ("yolo", lambda f: b"train: " + b"[" * DEEP + b"]" * DEEP, "no valid YAML"),
    "mixed keys": ("yolo", lambda f: b"train: .\nval: .\nnames: {0: a, x: b}", "the keys are 0, x"),
    "a gap": ("yolo", lambda f: b"train: .\nval: .\nnames: {0: a, 2: b}", "the keys are 0, 2"),
    "laughs": (
        "yolo",
        lambda f: b"\n".join(
            [b"train: .", b"val: .", b"a0: &a0 [x, x]"]
            + [b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 30)]
            + [b"names: *a29"]
        ),
        "names are not as expected",
    ),
    "a number for names": ("yolo", lambda f: b"train: .\nval: .\nnames: 5", "names are not as expected"),
    "a number for a folder": (
        "yolo",
        lambda f: b"train: 5\nval: .\nnames: [a]",
        "train: expected the name of a folder",
    ),
    "a long folder": ("yolo", lambda f: b"train: %s\nval: .\nnames: [a]" % (b"x" * 5000), "is no name of a folder"),
    "a long path": ("yolo", lambda f: b"path: %s\ntrain: .\nval: .\nnames: [a]" % (b"x" * 5000), "is no name of a fol"),
    "a date that is none": ("yolo", lambda f: b"train: 2024-13-77\nval: .\nnames: [a]", "no valid YAML"),
    "a NUL": ("yolo", lambda f: b'train: "a\\0b"\nval: .\nnames: [a]', "is no name of a folder"),
    "a huge cell": (
        "csv",
        lambda f: b"image,x0,y0,x1,y1\na.png,1,2,3," + b"9" * 200_000,
        "field larger than field limit",
    ),
    "an endless quote": ("csv", lambda f: b'image,x0,y0,x1,y1\n"' + b"a" * 200_000, "field larger than field limit"),
}


@pytest.mark.parametrize("case", BAD)
def test_annotations_made_to_break_a_reader_are_refused_in_a_line(case: str, tmp_path: Path) -> None:
    kind, content, reason = BAD[case]
    folder = pictures(tmp_path)
    file = folder / {"coco": "a.json", "yolo": "a.yaml", "csv": "a.csv"}[kind]
    file.write_bytes(content(folder))
    start = time.process_time()
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        read_source(file, kind)
    with pytest.raises((ValueError, FileNotFoundError)):  # as one file of a folder
        read_source(folder)
    assert time.process_time() - start < 3


def test_names_that_no_file_has_are_left_out(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in")
    names = ("a.png", "b.png", "x" * 5000, "nul\0.png", "../" * 50 + "etc/passwd")
    boxes = table(folder, names)
    result = convert(boxes, tmp_path / "out", val=1)
    assert len(result.problems) == 3


def test_xml_that_declares_entities_in_any_encoding_is_left_out(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in")
    text = '<?xml version="1.0" encoding="{}"?><!DOCTYPE a [<!ENTITY b "bb">]><annotation><filename>a.png</filename>'
    text += "<object><name>&b;</name></object></annotation>"
    for number, encoding in enumerate(("utf-8", "utf-16", "utf-16-be")):
        (folder / f"{number}.xml").write_bytes(text.format(encoding).encode(encoding))
    (folder / "deep.xml").write_text("<annotation>" + "<a>" * 20_000 + "</a>" * 20_000 + "</annotation>")
    (folder / "odd.xml").write_text('<?xml version="1.0" encoding="none"?><annotation/>')
    for file in folder.glob("*.xml"):
        _, collection = read_source(file, "voc")
        assert not collection.items
        assert len(collection.problems) == 1


def test_a_picture_given_as_a_mask_is_refused_at_once() -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 16, (512, 512))
    start = time.process_time()
    with pytest.raises(ValueError, match="expected at most 1000: is it an image, no mask"):
        mask_boxes(noise)
    boxes, small = mask_boxes((noise > 60_000).astype(int), min_area=10)
    assert small > 1000
    assert all((b.xyxy[2] - b.xyxy[0]) * (b.xyxy[3] - b.xyxy[1]) >= 10 for b in boxes)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "row", ["inf 0.5 0.5 0.1 0.1", "nan 0.5 0.5 0.1 0.1", "-inf 0.5 0.5 0.1 0.1", "1e400 .5 .5 .1 .1"]
)
def test_a_class_that_is_no_number(row: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(row)
    problem = label_problem([tmp_path / "a.txt"], 2)
    assert problem is not None
    assert "is out of range, expected 0 to 1" in problem


def test_a_yaml_that_no_data_set_has_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\n" * 1_000_000)
    start = time.process_time()
    with pytest.raises(ValueError, match="is larger than 4194304 bytes"):
        load_yaml(path)
    assert time.process_time() - start < 1
