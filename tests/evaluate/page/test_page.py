"""What is written: one file, escaped, small, without identity; the same numbers; pictures on request."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from meddet_yolo.evaluate.detections import Found, Truth, TruthSet, align, save_found
from meddet_yolo.evaluate.evaluation import evaluate
from meddet_yolo.evaluate.ground_truth import truth_of
from meddet_yolo.evaluate.page.gallery import Case, gallery
from meddet_yolo.evaluate.page.page import write_page
from meddet_yolo.evaluate.page.public import public_names, scrubber
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.evaluate.results import Evaluation

from .conftest import HOSTILE, detections


def text_of(judged: Evaluation) -> str:
    assert judged.out is not None
    return (judged.out / "report.html").read_text(encoding="utf-8")


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_what_comes_from_data_is_escaped(judged):
    html = text_of(judged)
    assert HOSTILE not in html and "<i>B" not in html and "<script>window.hacked" not in html
    assert data_of(html)["names"] == ["disc", HOSTILE]
    assert html.count("<script") == 2 and html.count("</script>") == 2


def test_no_patient_and_no_folder_is_told(judged, small):
    for file in ("report.html", "README.md"):
        text = (judged.out / file).read_text(encoding="utf-8")
        assert "jane" not in text.lower() and "doe" not in re.sub(r"base64,[^\"]*", "", text).lower()
        assert str(small.parent) not in text and str(small.parent.parent) not in text
    names = {p["name"] for p in data_of(text_of(judged))["pictures"]}
    assert "im5" in names and sum(n.startswith("image-") for n in names) == 4


def test_private_leaves_the_pictures_out(small):
    out = small.parent.parent / "private"
    evaluate(detections(small, "good", 0.5, 0.1), small, out=out, rounds=5, private=True, measures="operating_point")
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in html.replace("img-src data:", "") and "pictures" not in data_of(html)
    assert "Pictures are left out" in html


def test_readme_is_a_model_card(judged):
    text = (judged.out / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---\n")[1])
    first = judged.models[0]
    assert metadata["pipeline_tag"] == "object-detection" and metadata["library_name"] == "ultralytics"
    (index,) = metadata["model-index"]
    (result,) = index["results"]
    assert index["name"] == first.name and result["dataset"] == {"type": "spine", "name": "spine", "split": "val"}
    told = {m["type"]: m["value"] for m in result["metrics"]}
    assert told["FROC"] == pytest.approx(first.scores["FROC"].value, abs=1e-6)
    assert "centre_mm" not in told  # undefined here, and NaN is no metric
    assert "no medical device" in text and "<script>" not in text and first.name in text


def test_a_checkpoints_recipe_and_hash_are_told(tiny_data, tiny_teachers, tmp_path):
    evaluate(tiny_teachers[0], tiny_data, out=tmp_path, rounds=5, imgsz=64, measures="froc", workers=0)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(tiny_teachers[0].read_bytes()).hexdigest() in text
    assert "| imgsz | 64 |" in text and "| model | yolov8.yaml |" in text and str(tiny_data.parent) not in text


def test_sixty_pictures_of_noise_stay_under_8_mb(tmp_path):
    generator = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    found = []
    for number in range(60):
        name = f"{number:02d}.png"
        pixels = generator.integers(0, 256, (512, 512, 3), np.uint8) if number < 3 else None
        target = tmp_path / "images" / name
        if pixels is not None:
            Image.fromarray(pixels).save(target)
        else:
            target.hardlink_to(tmp_path / "images" / "00.png")
        (tmp_path / "labels" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2")
        corner = generator.uniform(0, 400, (100, 2))
        found.append(Found(name, np.hstack([corner, corner + 60]), np.zeros(100, int), generator.uniform(0, 0.6, 100)))
    (tmp_path / "d.yaml").write_text("train: images\nval: images\nnames: [disc]\n")
    files = [save_found(tmp_path / f"{n}.npz", found) for n in "ab"]
    result = evaluate(files, tmp_path / "d.yaml", out=tmp_path / "out", rounds=2, measures="operating_point")
    truth = truth_of(tmp_path / "d.yaml")
    pools = [Pool(align(found, truth), truth.images)] * 2
    html = write_page(result, truth, pools, tmp_path / "out", pictures=180).read_text()  # 60 cases of each kind
    pictures = data_of(html)["pictures"]
    assert len(html) < 8e6 and len(pictures) == 60 and all(p["source"] for p in pictures)


def test_an_image_that_cannot_be_read_has_its_boxes_without_a_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    truth = Truth("a.png", [[0, 0, 9, 9]], [0], (64, 64), path=tmp_path / "a.png")
    pool = Pool([Found("a.png", [[0, 0, 9, 9]], [0], [0.7])], [truth])
    made = gallery([pool], [Case(0, "random", None)], np.array([0.5, 0.8]), str, hit="iou", iou=0.5)
    assert made["pictures"] == [
        {"name": "0", "width": 64, "height": 64, "truth": [[0.0, 0.0, 9.0, 9.0, 0, 1]],
         "found": [[[0.0, 0.0, 9.0, 9.0, 0, 1, 0.7, 1]]], "source": ""}
    ]  # fmt: skip


def test_short_numbers_of_patients_are_no_identity_but_names_are():
    images = [
        Truth(n, [], [], (8, 8), p) for n, p in (("p128_t2.png", "128"), ("MR-4711.png", "4711"), ("x.png", None))
    ]
    names = public_names(TruthSet(tuple(images), ("disc",)))
    assert (names[0], names[2]) == ("p128_t2", "x") and names[1].startswith("image-")


def test_paths_are_cut_to_their_last_part():
    scrub = scrubber({"/data/My Study/d.yaml": "d"})
    assert (
        scrub("/data/My Study/d.yaml: a note on /home/doe/x.png, and C:\\doe\\y.png") == "d: a note on x.png, and y.png"
    )
    assert scrub("images/patients and AUROC/image stay") == "images/patients and AUROC/image stay"


def test_patients_unknown_is_said(tmp_path, small):
    (tmp_path / "d.yaml").write_text(
        f"train: {small.parent / 'images'}\nval: {small.parent / 'images'}\nnames: [a, b]\n"
    )
    file: Path = detections(small, "good", 0.5, 0.1)
    evaluate(file, tmp_path / "d.yaml", out=tmp_path / "out", rounds=5, measures=["operating_point"])
    html = (tmp_path / "out" / "report.html").read_text()
    assert "too narrow" in html and "unknown patients" in html


def test_intervals_of_fewer_patients_than_were_tried_are_called_a_rough_guide():
    from types import SimpleNamespace

    from meddet_yolo.evaluate.page.words import about_intervals

    settings = {"rounds": 10, "seed": 0, "level": 0.95}
    few, enough = (about_intervals(SimpleNamespace(settings=settings, patients=n)) for n in (9, 10))  # type: ignore[arg-type]
    assert few.endswith("with 9 they are a rough guide.") and "rough guide" not in enough
