"""Conversions from every format; the tests of patients and splits, of what is written, and of what is refused."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from meddet_yolo import cli
from meddet_yolo.data.convert import convert
from meddet_yolo.data.splits import LeakageError

SIZE = (80, 60)  # width, height
BOXES = {
    "p1_a": [("disc", (10, 20, 30, 40)), ("hernia", (40, 10, 60, 30))],
    "p1_b": [("disc", (12, 22, 30, 40))],
    "p2_a": [("disc", (5, 5, 25, 20)), ("hernia", (30, 30, 50, 50))],
    "p3_a": [("hernia", (8, 8, 20, 20))],
    "p4_a": [],
    "p5_a": [("disc", (50, 10, 79, 50)), ("hernia", (1, 1, 30, 30))],
}
PATIENT = r"(p\d+)_"


def picture(name):
    noise = np.random.default_rng(list(map(ord, name))).uniform(0, 255, SIZE[::-1]).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "source" / "pictures"
    folder.mkdir(parents=True)
    for name in BOXES:
        cv2.imwrite(str(folder / f"{name}.png"), picture(name))
    return folder


def rows(header, make):
    lines = [header]
    for name, boxes in BOXES.items():
        lines += [make(name, label, *box) for label, box in boxes] or [f"{name}.png" + "," * (header.count(","))]
    return "\n".join(lines) + "\n"


def coco(folder):
    names = ["disc", "hernia"]
    images = [{"id": i, "file_name": f"{n}.png", "width": 80, "height": 60} for i, n in enumerate(BOXES)]
    annotations = [
        {"id": 100 * i + j, "image_id": i, "category_id": 7 + names.index(label),
         "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i, boxes in enumerate(BOXES.values())
        for j, (label, (x0, y0, x1, y1)) in enumerate(boxes)
    ]  # fmt: skip
    categories = [{"id": 7 + i, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))


def voc(folder):
    (folder / "Annotations").mkdir()
    for name, boxes in BOXES.items():
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in boxes
        )
        text = f"<annotation><filename>{name}.png</filename><size><width>80</width><height>60</height></size>{objects}"
        (folder / "Annotations" / f"{name}.xml").write_text(f"{text}</annotation>")


def masks(folder):
    (folder / "masks").mkdir()
    for name, boxes in BOXES.items():
        mask = np.zeros(SIZE[::-1], np.uint8)
        for label, (x0, y0, x1, y1) in boxes:
            mask[y0:y1, x0:x1] = 1 + ["disc", "hernia"].index(label)
        cv2.imwrite(str(folder / "masks" / f"{name}_mask.png"), mask)


def corners(folder):
    header = "filename,width,height,class,xmin,ymin,xmax,ymax"
    text = rows(header, lambda n, c, *b: f"{n}.png,80,60,{c},{','.join(map(str, b))}")
    (folder / "boxes.csv").write_text(text)


def spider_like(folder):
    text = rows("image,patient,class,x0,y0,x1,y1", lambda n, c, *b: f"{n}.png,{n[:2]},{c},{','.join(map(str, b))}")
    lines = text.splitlines()
    lines = [f"{line.split(',')[0]},{line[:2]},,,,," if ",,," in line else line for line in lines]
    (folder / "boxes.csv").write_text("\n".join(lines))


def sizes(folder):
    def make(name, label, x0, y0, x1, y1):
        return f"{name};{x0};{y0};{x1 - x0};{y1 - y0};{label}"

    (folder / "boxes.csv").write_text(rows("Image ID;x;y;Width;Height;Label", make).replace(",", ";"))


def fractions(folder):
    def make(name, label, x0, y0, x1, y1):
        return f"{name}.png,{label},{(x0 + x1) / 160},{(y0 + y1) / 120},{(x1 - x0) / 80},{(y1 - y0) / 60}"

    (folder / "boxes.csv").write_text(rows("image,label,x_center,y_center,width,height", make))


def headless(folder):
    text = rows("", lambda n, c, *b: f"sub/{n}.png,{','.join(map(str, b))},{c}")
    (folder / "boxes.csv").write_text("\n".join(x for x in text.splitlines() if x) + "\np4_a.png,,,,,\n")


def written(out):
    """Return every image's boxes in pixels by class name, as the labels of a data set say."""
    import yaml

    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    found = {}
    for label in out.glob("labels/*/*.txt"):
        values = [[float(v) for v in line.split()] for line in label.read_text().splitlines()]
        found[label.stem] = sorted(
            (names[int(c)], (80 * (x - w / 2), 60 * (y - h / 2), 80 * (x + w / 2), 60 * (y + h / 2)))
            for c, x, y, w, h in values
        )
        found[label.stem] = [(name, tuple(round(v, 3) for v in box)) for name, box in found[label.stem]]
    return found


EXPECTED = {name: sorted((c, tuple(map(float, b))) for c, b in boxes) for name, boxes in BOXES.items()}


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


# Masks and volumes ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(*[st.integers(0, 5)] * 2, st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)), max_size=9)
)
def test_components_of_masks_are_those_of_scipy(cells):
    from scipy import ndimage

    from meddet_yolo.data.convert.masks import mask_boxes

    mask = np.zeros((48, 48), int)
    for row, column, height, width, label in cells:
        mask[8 * row : 8 * row + height, 8 * column : 8 * column + width] = label
    expected = []
    for label in (1, 2, 3):
        found, _ = ndimage.label(mask == label, np.ones((3, 3)))
        for number, (ys, xs) in enumerate(ndimage.find_objects(found), start=1):
            if (found == number).sum() >= 4:
                expected.append((str(label), (xs.start, ys.start, xs.stop, ys.stop)))
    boxes, small = mask_boxes(mask, min_area=4)
    assert sorted((b.name, b.xyxy) for b in boxes) == sorted(expected)
    assert len(mask_boxes(mask, min_area=1)[0]) == len(boxes) + small


def test_labels_that_number_objects_are_one_box_each(images, tmp_path):
    (images.parent / "masks").mkdir()
    for name in BOXES:
        mask = np.zeros(SIZE[::-1], np.uint8)
        mask[5:10, 5:10] = mask[20:30, 30:40] = 201
        mask[40:50, 40:60] = 9
        cv2.imwrite(str(images.parent / "masks" / f"{name}.png"), mask)
    out = tmp_path / "out"
    result = convert(images.parent, out, patient=PATIENT, classes="{201: disc}", instances=True)
    assert set(map(tuple, written(out).values())) == {(("disc", (5.0, 5.0, 40.0, 30.0)),)}
    assert any("labels that classes= does not name left out: 9" in note for note in result.audit.notes)


def test_bad_masks_are_named_and_the_rest_goes_on(images, tmp_path, capsys):
    masks(images.parent)
    folder = images.parent / "masks"
    cv2.imwrite(str(folder / "p2_a_mask.png"), np.ones((60, 81), np.uint8))
    colour = np.zeros((60, 80, 3), np.uint8)
    colour[:30, :, 1] = 200
    cv2.imwrite(str(folder / "p3_a_mask.png"), colour)
    (folder / "p4_a_mask.png").write_bytes(b"\x89PNG no")
    (folder / "p5_a_mask.png").unlink()
    cv2.imwrite(str(folder / "p9_a_mask.png"), np.ones((60, 80), np.uint8))
    out = tmp_path / "out"
    arguments = ["convert", f"source={images.parent}", f"out={out}", "patient=image", "classes=[disc,hernia]"]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert "left out, the rest is done" in printed.err and f"data={out}" in printed.out
    assert set(written(out)) == {"p1_a", "p1_b"}
    reasons = json.loads((out / "report.json").read_text())["left_out"]
    for file, reason in {
        "p2_a": "is 80 x 60 pixels, but its annotation is for 81 x 60",
        "p3_a_mask": "is in colour",
        "p4_a_mask": "cannot be read",
        "p5_a": "no mask of that name",
        "p9_a_mask": "mask without an image",
    }.items():
        assert any(file in line and reason in line for line in reasons), (file, reasons)


@pytest.fixture
def volumes(tmp_path):
    """Two volumes of 6 sagittal slices of 20 x 30 voxels, one per subject, with masks; axes are those of RAS."""
    nibabel = pytest.importorskip("nibabel")
    folder = tmp_path / "source"
    for seed, subject, affine in ((0, "sub-01", np.diag([3.0, 1, 1, 1])), (1, "sub-02", np.diag([-3.0, 1, 1, 1]))):
        (folder / subject).mkdir(parents=True)
        image = np.random.default_rng(seed).integers(100, 900, (6, 20, 30)).astype(np.int16)
        labels = np.zeros(image.shape, np.uint8)
        labels[2, 4:9, 10:13] = 1
        labels[3, 4:9, 10:14] = 2
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / subject / f"{subject}_T2w.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / subject / f"{subject}_T2w_seg.nii.gz")
    return folder


def test_nifti_masks_give_boxes_on_upright_slices(volumes, tmp_path):
    out = tmp_path / "out"
    result = convert(volumes, out, val=0.5)
    assert result.problems == []
    labels = sorted(out.glob("labels/*/*.txt"))
    assert len(labels) == 4 and [f.stem for f in labels if "sub-01" in f.name] == ["sub-01_T2w_s002", "sub-01_T2w_s003"]
    for label in labels:
        picture = cv2.imread(str(label).replace("labels", "images").replace(".txt", ".png"), cv2.IMREAD_GRAYSCALE)
        assert picture.shape == (30, 20)  # head up, face left
        (cls, x, y, w, h), *more = ([float(v) for v in line.split()] for line in label.read_text().splitlines())
        assert not more and cls == int(label.stem.endswith("3"))
        height = 4 if cls else 3
        # j = 4..8 from the back is 5 columns up to 20 - 4 from the left; k = 10.. from the feet ends 10 from the bottom
        box = [20 * (x - w / 2), 30 * (y - h / 2), 20 * (x + w / 2), 30 * (y + h / 2)]
        np.testing.assert_allclose(box, [11, 20 - height, 16, 20], atol=1e-3)


def test_nifti_masks_of_another_shape_or_place_are_named(volumes, tmp_path):
    import nibabel

    mask = volumes / "sub-01" / "sub-01_T2w_seg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 20, 29), np.uint8), np.diag([3.0, 1, 1, 1])), mask)
    assert "shape 6 x 20 x 29 differs from its image's 6 x 20 x 30" in str(
        convert(volumes, check=True, patient="folder").problems
    )
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 20, 30), np.uint8), np.diag([1.0, 3, 1, 1])), mask)
    assert "lies elsewhere" in str(convert(volumes, check=True, patient="folder").problems)


def test_dicom_is_converted_without_its_patient(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    folder = tmp_path / "source"
    folder.mkdir()
    lines = ["image,xmin,ymin,xmax,ymax,class"]
    for number in range(4):
        dataset = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm"))
        dataset.PixelData = np.roll(dataset.pixel_array, 9 * number, axis=0).tobytes()
        dataset.PatientName, dataset.PatientID = f"Geheim^Gustav{number}", f"ID-{number}-4711"
        dataset.save_as(folder / f"{'geheim' if number == 0 else 'IM'}{number}.dcm")
        lines.append(f"{'geheim' if number == 0 else 'IM'}{number}.dcm,10,20,30,40,disc")
    (folder / "boxes.csv").write_text("\n".join(lines))
    out = tmp_path / "out"
    result = convert(folder, out, val=0.25)
    assert result.problems == [] and result.audit.counts["val"]["patients"] == 1
    for path in out.rglob("*"):
        assert "geheim" not in path.name.lower() and "4711" not in path.name
        if path.is_file():
            content = path.read_bytes().lower()
            assert b"geheim" not in content and b"4711" not in content
    assert {Image.open(p).size for p in out.glob("images/*/*.png")} == {(64, 64)}


# Patients and splits --------------------------------------------------------------------------------------------------


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


# What is written and refused ------------------------------------------------------------------------------------------


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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


def test_check_reads_labelled_slices_of_volumes(volumes, tmp_path):
    root = tmp_path / "set"
    for part, subject in (("train", "sub-01"), ("val", "sub-02")):
        (root / "images" / part).mkdir(parents=True)
        (root / "labels" / part).mkdir(parents=True)
        volume = volumes / subject / f"{subject}_T2w.nii.gz"
        volume.rename(root / "images" / part / volume.name)
        (root / "labels" / part / f"{subject}_T2w_s002.txt").write_text("0 0.5 0.5 0.4 0.4")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [disc]\n")
    result = convert(root, check=True)
    assert result.problems == [] and result.audit.leaks == []
    assert [(c["images"], c["patients"]) for c in result.audit.counts.values()] == [(1, 1), (1, 1)]


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
