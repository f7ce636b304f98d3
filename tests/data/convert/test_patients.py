"""Patients and splits of a conversion."""

import csv
from pathlib import Path

import cv2
import pytest
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset

from meddet_yolo import cli
from meddet_yolo.data.convert import convert
from meddet_yolo.data.dataset import build_dataset
from meddet_yolo.data.splits import LeakageError
from meddet_yolo.data.unlabelled import find_source, gather
from tests.data.convert._sources import BOXES, PATIENT, coco, corners, picture, spider_like


def test_unknown_patients_are_refused_for_a_new_split(images, tmp_path):
    corners(images.parent)
    with pytest.raises(ValueError, match=r"which images are of one patient is not known.*patient="):
        convert(images.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_given_split_that_leaks_names_the_patients(images, tmp_path, capsys):
    corners(images.parent)
    lines = (images.parent / "boxes.csv").read_text().splitlines()
    with_split = [
        f"{line},{'val' if line.startswith('p1_b') or line.startswith('p3') else 'train'}" for line in lines[1:]
    ]
    (images.parent / "boxes.csv").write_text("\n".join([f"{lines[0]},split", *with_split]))
    with pytest.raises(LeakageError, match=r"1 patient is in several parts of the split: p1 \(train, val\)"):
        convert(images.parent, tmp_path / "out", patient=PATIENT)
    assert not (tmp_path / "out").exists()
    result = convert(images.parent, tmp_path / "out", patient=PATIENT, split="new", val=0.4)
    assert result.audit.leaks == []
    assert cli.main(["convert", f"source={images.parent}", f"patient={PATIENT}", "check=True"]) == 1
    assert "found: 1 patient is in several parts of the split: p1" in capsys.readouterr().err


def test_a_given_split_is_kept(images, tmp_path):
    for name in BOXES:
        part = images / ("valid" if name.startswith("p5") else "train")
        part.mkdir(exist_ok=True)
        (images / f"{name}.png").rename(part / f"{name}.png")
    coco(images.parent)
    convert(images.parent, tmp_path / "out", patient=PATIENT)
    assert [p.stem for p in tmp_path.glob("out/images/val/*")] == ["p5_a"]


def test_validation_is_taken_from_the_training_patients_where_only_a_test_part_is_given(images, tmp_path):
    spider_like(images.parent)
    text = (images.parent / "boxes.csv").read_text().splitlines()
    marked = [f"{line},{'test' if line.startswith('p2') else 'train'}" for line in text[1:]]
    (images.parent / "boxes.csv").write_text("\n".join([f"{text[0]},set", *marked]))
    result = convert(images.parent, tmp_path / "out", val=1)
    assert {part: count["patients"] for part, count in result.audit.counts.items()} == {"train": 3, "val": 1, "test": 1}
    assert [p.stem for p in tmp_path.glob("out/images/test/*")] == ["p2_a"]


@pytest.mark.parametrize("part", ["val", "test"])
def test_what_has_no_training_part_can_be_evaluated_on(images, tmp_path, part):
    spider_like(images.parent)
    text = (images.parent / "boxes.csv").read_text().splitlines()
    (images.parent / "boxes.csv").write_text("\n".join([f"{text[0]},set", *(f"{line},{part}" for line in text[1:])]))
    result = convert(images.parent, tmp_path / "out")
    assert result.audit.counts.keys() == {part} and "no training part" in str(result)
    read = check_det_dataset(str(tmp_path / "out" / "data.yaml"))  # which refuses a file without train: and val:
    assert Path(read[part]).name == part
    assert "train: images/" in result.data.read_text() and "for evaluation alone" in result.data.read_text()
    anew = convert(images.parent, tmp_path / "anew", split="new", val=1)
    assert anew.audit.counts.keys() == {"train", "val"} and "evaluation" not in anew.data.read_text()


def test_patients_who_share_an_image_stay_together(images, tmp_path, capsys):
    cv2.imwrite(str(images / "p2_a.png"), picture("p1_b"))
    cv2.imwrite(str(images / "p3_a.png"), picture("p1_b"))
    spider_like(images.parent)
    for seed in range(6):
        result = convert(images.parent, tmp_path / "out", val=1, seed=seed)
        parts = {p.stem: p.parent.name for p in tmp_path.glob("out/images/*/*")}
        assert len({parts[name] for name in ("p1_a", "p1_b", "p2_a", "p3_a")}) == 1
        assert result.audit.leaks == [] and "the same image" in result.audit.duplicates
    text = (images.parent / "boxes.csv").read_text().splitlines()
    given = [f"{line},{'val' if line.startswith('p2') else 'train'}" for line in text[1:]]
    (images.parent / "boxes.csv").write_text("\n".join([f"{text[0]},split", *given]))
    assert cli.main(["convert", f"source={images.parent}", f"out={tmp_path / 'given'}"]) == 1
    assert "found: the same image in several parts: train/p1_b.png = val/p2_a.png" in capsys.readouterr().err


@pytest.mark.parametrize("patient", ["folder", "image", PATIENT, r"(?P<patient>p\d)_(?:[ab])"])
def test_patients_come_from_folders_files_or_patterns(patient, images, tmp_path):
    for name in BOXES:
        (images / name[:2]).mkdir(exist_ok=True)
        (images / f"{name}.png").rename(images / name[:2] / f"{name}.png")
    corners(images.parent)
    result = convert(images.parent, tmp_path / "out", patient=patient)
    found = sum(count["patients"] for count in result.audit.counts.values())
    assert found == (6 if patient == "image" else 5)


def test_patients_file_lets_a_later_check_find_leaks(images, tmp_path):
    spider_like(images.parent)
    out = tmp_path / "out"
    convert(images.parent, out, val=0.4, rename=True)
    assert all(p.stem.startswith("p000") for p in out.glob("images/*/*"))
    assert convert(out, check=True).audit.leaks == []
    with (out / "patients.csv").open() as file:
        found = list(csv.DictReader(file))
    twins = [row for row in found if sum(r["patient"] == row["patient"] for r in found) == 2]
    image = Path(twins[0]["image"])
    other = "val" if image.parts[1] == "train" else "train"
    for kind, suffix in (("images", ".png"), ("labels", ".txt")):
        path = out / kind / image.parts[1] / f"{image.stem}{suffix}"
        path.rename(out / kind / other / path.name)
    leaks = convert(out / "data.yaml", check=True).audit.leaks
    assert leaks and twins[0]["patient"] in leaks[0]


@pytest.mark.parametrize("column", ["Patient Name", "patient"])
def test_names_of_patients_are_never_shown(column, images, tmp_path):
    spider_like(images.parent)
    file = images.parent / "boxes.csv"
    lines = file.read_text().replace("image,patient", f"image,{column}").splitlines()
    file.write_text(
        "\n".join([f"{lines[0]},split", *(f"{x},{'val' if x[:4] == 'p1_b' else 'train'}" for x in lines[1:])])
    )
    with pytest.raises(LeakageError) as error:
        convert(images.parent, tmp_path / "out", patient=column)
    assert ("p1 (" in str(error.value)) == (column == "patient")


def lists(out: Path) -> dict[str, set[str]]:
    return {name: set((out / f"{name}.txt").read_text().split()) for name in ("labelled", "unlabelled")}


def test_labels_are_set_aside_by_patient(images, tmp_path):
    spider_like(images.parent)
    convert(images.parent, tmp_path / "all", val=1, seed=3)
    result = convert(images.parent, tmp_path / "some", val=1, seed=3, labelled=0.5)
    assert "labels set aside: 2 of 4 training patients keep theirs" in result.report.read_text()
    parts = lists(tmp_path / "some")
    written = {f"./images/train/{p.name}" for p in tmp_path.glob("some/images/train/*")}
    assert parts["labelled"] | parts["unlabelled"] == written and parts["labelled"] and parts["unlabelled"]
    patients = [{Path(line).stem.split("_")[0] for line in lines} for lines in parts.values()]
    assert not patients[0] & patients[1] and len(patients[0]) == 2
    with (tmp_path / "some/patients.csv").open() as ours, (tmp_path / "all/patients.csv").open() as theirs:
        assert list(csv.reader(ours)) == list(csv.reader(theirs))  # the split is that of all labels
    convert(images.parent, tmp_path / "again", val=1, seed=3, labelled=0.5)
    assert lists(tmp_path / "again") == parts
    convert(images.parent, tmp_path / "some", val=1, seed=3)  # and back
    assert sorted(p.name for p in (tmp_path / "some").glob("*.txt")) == []
    assert "train: images/train" in (tmp_path / "some/data.yaml").read_text()


def test_training_reads_what_is_set_aside_without_labels(images, tmp_path):
    spider_like(images.parent)
    data = check_det_dataset(str(convert(images.parent, tmp_path / "d", val=1, labelled=0.25).data))
    labelled = build_dataset(get_cfg(), data["train"], 2, data, mode="train")
    found = gather(find_source(tmp_path / "d/data.yaml"), data)
    assert not found.skipped and not found.labelled
    names = [{Path(file).name for file in files} for files in (labelled.im_files, found.images)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {p.name for p in tmp_path.glob("d/images/train/*")}
    assert any(len(label["cls"]) for label in labelled.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labelled": 0}, "labelled=0: expected a share of the training patients"),
        ({"labelled": 2}, "labelled=2: expected a share"),
        ({"labelled": "some"}, "labelled='some': expected a share"),
        ({"labelled": 0.5, "val": 4}, "1 patient cannot be split into"),
    ],
)
def test_labels_that_cannot_be_set_aside(options, message, images, tmp_path):
    spider_like(images.parent)
    with pytest.raises(ValueError, match=message):
        convert(images.parent, tmp_path / "out", **{"val": 1, **options})
    assert not (tmp_path / "out").exists()
