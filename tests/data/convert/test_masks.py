"""Conversions of masks, of NIfTI volumes and of DICOM."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from meddet_yolo import cli
from meddet_yolo.data.convert import convert
from tests.data.convert._sources import BOXES, PATIENT, SIZE, masks, written


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
