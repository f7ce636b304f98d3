"""What a conversion writes, takes up again, and refuses."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from meddet_yolo import cli
from meddet_yolo.data.convert import convert
from tests.data.convert._sources import (
    PATIENT,
    coco,
    content,
    corners,
    picture,
    sizes,
    spider_like,
)


def test_running_again_gives_the_same_and_replaces_what_is_stale(images, tmp_path):
    spider_like(images.parent)
    out = tmp_path / "out"
    convert(images.parent, out, val=0.4)
    first = content(out)
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("images/*/*")}
    (out / "mine.txt").write_text("mine")
    convert(images.parent, out, val=0.4)
    assert content(out) == {**first, "mine.txt": b"mine"}
    assert stamps == {p: p.stat().st_mtime_ns for p in out.glob("images/*/*")}
    convert(images.parent, out, val=0.4, rename=True)
    assert all(p.stem.startswith("p0") and "_00" in p.stem for p in out.glob("*/*/*.*"))
    assert (out / "mine.txt").exists()


def test_an_interrupted_conversion_is_taken_up_again(images, tmp_path, monkeypatch):
    from meddet_yolo.data.convert import write

    spider_like(images.parent)
    whole = convert(images.parent, tmp_path / "whole", val=0.4).data.parent
    original, done = write.read_picture, []

    def stop(item, max_pixels):
        done.append(item)
        if len(done) > 3:
            raise KeyboardInterrupt
        return original(item, max_pixels)

    monkeypatch.setattr(write, "read_picture", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(images.parent, tmp_path / "out", val=0.4)
    assert not (tmp_path / "out" / "data.yaml").exists()
    assert json.loads((tmp_path / "out" / "convert.json").read_text())["complete"] is False
    monkeypatch.undo()
    convert(images.parent, tmp_path / "out", val=0.4)
    assert content(tmp_path / "out") == content(whole)


def test_foreign_folders_are_never_touched(images, tmp_path):
    spider_like(images.parent)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="was not written by"):
        convert(images.parent, out)
    assert content(out) == {"thesis.tex": b"precious"}
    with pytest.raises(ValueError, match="within each other"):
        convert(images.parent, images.parent / "out")
    with pytest.raises(ValueError, match="within each other"):
        convert(images.parent, tmp_path)


def test_metadata_of_pictures_stays_behind(images, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("PatientName", "Geheim^Gustav")
    Image.fromarray(picture("p2_a")).save(images / "p2_a.png", pnginfo=info)
    exif = Image.Exif()
    exif[0x010E] = "Geheim^Gustav"
    Image.fromarray(picture("p3_a")).save(images / "p3_a.jpg", exif=exif)
    (images / "p3_a.png").unlink()
    Image.fromarray(picture("p5_a").astype(np.uint16) * 200).save(images / "p5_a.png")
    sizes(images.parent)
    out = tmp_path / "out"
    assert convert(images.parent, out, patient=PATIENT).problems == []
    assert not any(b"Geheim" in c for c in content(out).values())
    files = {p.stem: p for p in out.glob("images/*/*")}
    np.testing.assert_array_equal(cv2.imread(str(files["p2_a"]), cv2.IMREAD_UNCHANGED), picture("p2_a"))
    assert files["p3_a"].suffix == ".png"
    deep = cv2.imread(str(files["p5_a"]), cv2.IMREAD_UNCHANGED)
    assert deep.dtype == np.uint8 and np.corrcoef(deep.ravel(), picture("p5_a").ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "kitti"}, "format='kitti' is unknown: expected auto, coco, voc, csv, masks, yolo"),
        ({"format": "coco"}, "holds no annotations of format=coco"),
        ({"split": "random"}, "split='random' is unknown"),
        ({"val": 0}, "must leave patients"),
        ({"val": 0.6, "test": 0.5}, "must leave patients"),
        ({"val": 1.5}, "val=1.5: expected a share"),
        ({"val": 5}, "val=5 and test=0 leave none of 5 patients"),
        ({"seed": -1}, "seed=-1"),
        ({"patient": "ward"}, "no column 'ward' among"),
        ({"patient": "p(\\d+"}, "is no regular expression"),
        ({"patient": "^x(.)"}, "does not match pictures/p1_a.png"),
        ({"classes": "[disc,tumour]"}, "no tumour in the source, which has disc, hernia"),
        ({"label": "grade"}, "no column 'grade'"),
        ({"images": "elsewhere"}, "no images in elsewhere"),
        ({"out": None}, "out= is missing"),
    ],
)
def test_bad_arguments_are_refused(options, message, images, tmp_path):
    spider_like(images.parent)
    arguments = {"out": tmp_path / "out", **options}
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        convert(images.parent, **arguments)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_ambiguous_and_missing_sources_are_refused(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no annotations"):
        convert(images.parent, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    corners(images.parent)
    coco(images.parent)
    with pytest.raises(ValueError, match="several formats: add format=coco or format=csv"):
        convert(images.parent, tmp_path / "out")


def test_check_finds_what_is_wrong_with_a_yolo_data_set(tiny_data, tmp_path, capsys):
    assert cli.main(["convert", f"source={tiny_data}", "check=True", r"patient=(p\d+)_"]) == 0
    assert "herniation" in capsys.readouterr().out
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_data.parent, broken)
    images = sorted((broken / "images" / "train").glob("*.png"))
    shutil.copy(images[0], broken / "images" / "val" / "twin.png")
    label = broken / "labels" / "train" / f"{images[1].stem}.txt"
    label.write_text("7 0.5 0.5 0.1 0.1\n")
    assert cli.main(["convert", f"source={broken / 'data.yaml'}", "check=True", f"out={tmp_path / 'report'}"]) == 1
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "class 7 is out of range" in str(report["left_out"])
    assert "the same image in several parts" in report["leaks"][0] and "twin.png" in report["leaks"][0]
