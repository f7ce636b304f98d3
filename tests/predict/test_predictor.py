from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from meddet_yolo import MedDet
from meddet_yolo.cli import main
from meddet_yolo.imaging.geometry import oriented
from meddet_yolo.imaging.structured_report import read_structured_report
from meddet_yolo.imaging.volumes import Slice, open_volume
from meddet_yolo.predict.predictor import SliceResults, VolumeSource
from tests.dicom_files import make_dicom, make_enhanced

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CANARY = "Quietus"
OPTIONS: dict[str, Any] = {"imgsz": 64, "conf": 1e-4, "max_det": 12, "verbose": False}


@pytest.fixture(scope="module")
def checkpoint(tiny_teachers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of small boxes: untrained ones span all of a small image, and would hide a wrong place."""
    stored = torch.load(tiny_teachers[0], weights_only=False)
    for branch in stored["model"].model[-1].cv2:
        branch[-1].bias.data.view(4, -1)[:, 1] += 6  # each side about one stride from the centre
    path = tmp_path_factory.mktemp("detector") / "small-boxes.pt"
    torch.save(stored, path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> MedDet:
    return MedDet(checkpoint)


@pytest.fixture(scope="module")
def pixels(tiny_data: Path) -> np.ndarray:
    """A drawn spine of 64 x 64 pixels, in the range of a scanner."""
    image = cv2.imread(str(next((tiny_data.parent / "images" / "train").glob("*.png"))), cv2.IMREAD_GRAYSCALE)
    return image.astype(np.uint16) * 9


def study(folder: Path, pixels: np.ndarray, count: int = 3, **attributes: Any) -> Path:
    """A sagittal series of a patient whose name must go nowhere, in a folder named after her."""
    folder = folder / f"{CANARY}_Anna" / "series"
    for i in range(count):
        make_dicom(
            folder / f"IM{i}.dcm",
            np.roll(pixels, i, axis=0),
            position=(4.0 * i, -32, 32),
            InstanceNumber=i + 1,
            **{
                "PatientName": f"{CANARY}^Anna",
                "PatientID": f"{CANARY}-zx4711q",
                "OtherPatientIDs": "ALIAS-0815",
                "StudyInstanceUID": "1.2.3",
                "SeriesInstanceUID": "1.2.3.4",
                **attributes,
            },
        )
    return folder


def boxes_of(results: list[Any]) -> np.ndarray:
    boxes = np.concatenate([r.boxes.data.numpy() for r in results])
    assert len(boxes) > 2 and (np.ptp(boxes[:, :4], axis=0) > 1).sum() > 2  # they would show a wrong place
    return boxes


def test_the_same_slice_as_png_dicom_and_nifti_gives_the_same_detections(
    model: MedDet, pixels: np.ndarray, tmp_path: Path
) -> None:
    dicom = make_dicom(tmp_path / "a.dcm", pixels, spacing=(0.7, 0.7), position=(3, -20, 20))
    frames = make_enhanced(tmp_path / "m.dcm", np.stack([pixels] * 2), [(3, -20, 20), (7, -20, 20)], spacing=(0.7, 0.7))
    # RAS voxels: to the left, to the back, to the feet.
    affine = np.array([[-0.7, 0, 0, -3], [0, -0.7, 0, 20], [0, 0, -0.7, 20], [0, 0, 0, 1.0]])
    nib.Nifti1Image(pixels.T[None].astype(np.int16), affine).to_filename(tmp_path / "v.nii.gz")
    shown = next(iter(open_volume(dicom).read()))
    assert isinstance(shown, Slice)
    cv2.imwrite(str(tmp_path / "p.png"), shown.image)
    want = boxes_of(model.predict(tmp_path / "p.png", **OPTIONS))
    results = model.predict([dicom, tmp_path / "v.nii.gz"], **OPTIONS)
    assert len(results) == 2
    for result in results:
        np.testing.assert_allclose(result.boxes.data.numpy(), want, atol=1e-4)
    np.testing.assert_allclose(results[0].boxes_mm, results[1].boxes_mm, atol=1e-3)
    for result in model.predict(frames, window="percentile", **OPTIONS):
        np.testing.assert_allclose(result.boxes.data.numpy(), want, atol=1e-4)


def test_a_turned_slice_is_detected_upright_and_placed_right(model: MedDet, pixels: np.ndarray, tmp_path: Path) -> None:
    upright = make_dicom(tmp_path / "a.dcm", pixels, position=(3, -20, 20))
    # Columns run to the head, rows to the front: the same picture, stored turned.
    turned = make_dicom(
        tmp_path / "b.dcm", pixels[::-1, ::-1].T.copy(), orientation=(0, 0, 1, 0, -1, 0), position=(3, 43, -43)
    )
    first, second = model.predict([upright, turned], **OPTIONS)
    np.testing.assert_allclose(second.boxes.data.numpy(), first.boxes.data.numpy(), atol=1e-4)
    np.testing.assert_allclose(second.boxes_mm, first.boxes_mm, atol=1e-3)
    assert np.abs(second.boxes_stored - first.boxes_stored).max() > 1


def test_results_carry_millimetres(model: MedDet, pixels: np.ndarray, tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", pixels, spacing=(0.5, 0.5), position=(3, -20, 20))
    (result,) = model.predict(path, **OPTIONS)
    assert isinstance(result, SliceResults)
    x1, y1, x2, y2 = result.boxes.xyxy[0].tolist()
    want = [[3, -20.25 + 0.5 * x, 20.25 - 0.5 * y] for x, y in [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]]
    np.testing.assert_allclose(result.boxes_mm[0], want, atol=1e-4)
    row = result.summary()[0]
    assert row["size_mm"] == pytest.approx([0.5 * (x2 - x1), 0.5 * (y2 - y1)], abs=1e-3)
    assert isinstance(result.cpu(), SliceResults) and result.cpu().slice is result.slice
    plain = make_dicom(tmp_path / "b.dcm", pixels, orientation=None, spacing=None)
    (result,) = model.predict(plain, **OPTIONS)
    assert (result.boxes_mm, result.summary()[0]["corners_mm"], result.summary()[0]["size_mm"]) == (None, None, None)


def test_a_batch_may_hold_slices_of_several_files_and_ordinary_images(
    model: MedDet, pixels: np.ndarray, tmp_path: Path
) -> None:
    for i in range(3):
        make_dicom(tmp_path / f"{i}.dcm", pixels[: 64 - 8 * i])
    cv2.imwrite(str(tmp_path / "p.png"), (pixels // 9).astype(np.uint8))
    results = model.predict(tmp_path, batch=2, save=True, project=tmp_path / "out", name="r", **OPTIONS)
    assert [Path(r.path).name for r in results] == ["0.png", "1.png", "2.png", "p.png"]
    assert [isinstance(r, SliceResults) for r in results] == [True, True, True, False]
    assert sorted(p.name for p in (tmp_path / "out" / "r").iterdir()) == sorted(
        ["0.jpg", "0.json", "1.jpg", "1.json", "2.jpg", "2.json", "p.jpg"]
    )


def test_one_box_a_region_returns_from_the_report(model: MedDet, pixels: np.ndarray, tmp_path: Path) -> None:
    source = study(tmp_path, pixels)
    results = model.predict(source, sr=True, project=tmp_path / "out", name="r", **OPTIONS)
    (report,) = (tmp_path / "out" / "r").glob("*_sr.dcm")
    back = read_structured_report(report)
    assert len(back) == sum(len(r.boxes) for r in results)
    by_uid = {r.slice.reference.sop_instance: r for r in results}
    for box in back:
        result = by_uid[box.reference.sop_instance]
        picture = result.slice.geometry.box_from_stored(box.box)
        near = np.abs(result.boxes.xyxy.numpy() - picture).max(axis=1) < 1  # pixel
        assert box.name in {result.names[int(c)] for c in result.boxes.cls[near]}


def test_the_json_says_where_each_box_lies_and_not_whose_it_is(
    model: MedDet, pixels: np.ndarray, tmp_path: Path
) -> None:
    source = study(tmp_path, pixels)
    results = model.predict(source, slices="all", save=True, project=tmp_path / "out", name="r", **OPTIONS)
    (file,) = (tmp_path / "out" / "r").glob("*.json")
    record = json.loads(file.read_text())
    assert [s["offset_left_mm"] for s in record["slices"]] == [-4.0, 0.0, 4.0]
    assert record["confidence_threshold"] == OPTIONS["conf"] and record["date"].endswith("+00:00")
    assert [s["source"]["sop_instance"] for s in record["slices"]] == [r.slice.reference.sop_instance for r in results]
    for part, result in zip(record["slices"], results, strict=True):
        assert part["edges"] == {"left": "A", "right": "P", "top": "H", "bottom": "F"}
        for box, mm in zip(part["boxes"], result.boxes_mm, strict=True):
            np.testing.assert_allclose(box["corners_mm"], mm, atol=1e-3)
            np.testing.assert_allclose(box["box_picture_px"], np.array(box["box_px"]) * part["picture_scale"], atol=0.1)
            np.testing.assert_allclose(box["centre_mm"], mm.mean(axis=0), atol=1e-3)
            header = pydicom.dcmread(source / part["file"])
            matrix = oriented((64, 64), patient=open_volume(source / part["file"]).parts[0].geometry.patient)
            np.testing.assert_allclose(matrix.to_patient(box["box_px"][:2])[0], mm[0], atol=0.01)
            assert header.SOPInstanceUID == part["source"]["sop_instance"]


@pytest.mark.parametrize("verbose", [True, False])
def test_the_patient_is_in_no_log_no_name_no_picture_and_no_file(
    checkpoint: Path,
    pixels: np.ndarray,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    verbose: bool,
) -> None:
    source = study(tmp_path, pixels, 5)
    make_dicom(source / f"{CANARY}.dcm", pixels, PatientName=CANARY, SeriesInstanceUID="1.2.3.4")
    make_dicom(source / "axial.dcm", pixels, PatientName=CANARY, orientation=(1, 0, 0, 0, 1, 0))
    truncated = make_dicom(source / f"{CANARY}2.dcm", pixels, PatientName=CANARY, SeriesInstanceUID="1.2.3.4")
    truncated.write_bytes(truncated.read_bytes()[:-9])
    out = tmp_path / "out"
    arguments = [f"source={source.parent}", "slices=all", "save_txt=True", "save_crop=True", f"verbose={verbose}"]
    with caplog.at_level("DEBUG"):
        code = main(
            ["predict", f"model={checkpoint}", "imgsz=64", "conf=0.0001", f"project={out}", "name=r", *arguments]
        )
    assert code == 1  # two files were skipped
    captured = capfd.readouterr()
    assert "axial plane" in captured.err
    assert len(list((out / "r").glob("*.jpg"))) == 6
    text = f"{captured.out} {captured.err} {caplog.text}".replace(str(source.parent), "")  # what the user typed
    files = [p for p in out.rglob("*") if p.is_file()]
    assert len(files) > 12
    for word in (CANARY, "Anna", "zx4711q", "ALIAS"):
        assert word.lower() not in text.lower()
        for file in files:
            assert word.lower() not in str(file.relative_to(out)).lower()
            assert word.lower().encode() not in file.read_bytes().lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slices=some"], "slices='some' is neither"),
        (["window=wide"], "window='wide' is neither"),
        (["window=[10,0]"], "with a width above 0"),
    ],
)
def test_wrong_arguments_are_refused(
    checkpoint: Path, pixels: np.ndarray, tmp_path: Path, arguments: list[str], message: str, capsys: Any
) -> None:
    path = make_dicom(tmp_path / "a.dcm", pixels)
    assert main(["predict", f"model={checkpoint}", f"source={path}", "imgsz=64", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_bad_files_give_an_exit_code_and_the_rest_is_done(
    checkpoint: Path, pixels: np.ndarray, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "bad.dcm").write_text("no DICOM")
    command = ["predict", f"model={checkpoint}", "imgsz=64", f"source={tmp_path}", f"project={tmp_path}/o"]
    assert main([*command, "name=a"]) == 1
    assert "nothing to predict on" in (error := capsys.readouterr().err) and "bad.dcm: not a DICOM file" in error
    make_dicom(tmp_path / "good.dcm", pixels)
    assert main([*command, "name=b"]) == 1
    assert "bad.dcm: not a DICOM file; the others are done" in capsys.readouterr().err
    assert (tmp_path / "o" / "b" / "good.json").is_file()
    (tmp_path / "bad.dcm").unlink()
    (tmp_path / "README.txt").write_text("no image, and none that was asked for")
    assert main([*command, "name=c"]) == 0
    (tmp_path / "film.mp4").write_bytes(b"")
    assert main([*command, "name=d"]) == 1
    assert "film.mp4: a video beside DICOM or NIfTI" in capsys.readouterr().err


def test_reports_without_dicom_are_refused(model: MedDet, tiny_data: Path) -> None:
    with pytest.raises(ValueError, match="holds no DICOM"):
        model.predict(tiny_data.parent / "images" / "val", sr=True, **OPTIONS)


def test_ordinary_sources_are_left_to_ultralytics(model: MedDet, tiny_data: Path, tmp_path: Path) -> None:
    images = shutil.copytree(tiny_data.parent / "images" / "val", tmp_path / "val")
    make_dicom(images / "deeper" / "a.dcm", np.ones((9, 9), np.uint16))
    assert not VolumeSource.holds(images)
    assert not VolumeSource.holds(np.zeros((64, 64, 3), np.uint8))
    assert not VolumeSource.holds([])
    results = model.predict(images, **OPTIONS)
    assert len(results) == 2 and not isinstance(results[0], SliceResults)


def test_validation_reads_dicom(checkpoint: Path, tiny_data: Path, tmp_path: Path, capfd: Any) -> None:
    """The pictures of a data set as DICOM give the same figures as PNG; a bad file gives an exit code."""
    for file in sorted((tiny_data.parent / "images" / "val").glob("*.png")):
        grey = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        window = {"WindowCenter": "127.5", "WindowWidth": "255", "VOILUTFunction": "LINEAR_EXACT"}
        make_dicom(tmp_path / "images" / "val" / f"{file.stem}.dcm", grey, bits=8, **window)
    for split in ("train", "val"):
        shutil.copytree(tiny_data.parent / "labels" / split, tmp_path / "labels" / split)
    (tmp_path / "d.yaml").write_text("train: images/val\nval: images/val\nnames: [herniation, normal]\n")
    model = MedDet(checkpoint)
    options = {"imgsz": 64, "verbose": False, "plots": False, "workers": 0, "conf": 1e-4}
    stock = model.val(data=tiny_data, project=tmp_path / "o", **options)
    ours = model.val(data=tmp_path / "d.yaml", project=tmp_path / "o", **options)
    assert ours.results_dict == pytest.approx(stock.results_dict)
    assert len(ours.speed) and (tmp_path / "labels" / "val.slices").is_dir()
    (tmp_path / "images" / "val" / "bad.dcm").write_text("no DICOM")
    command = ["val", f"model={checkpoint}", f"data={tmp_path / 'd.yaml'}", "imgsz=64", f"project={tmp_path}/o"]
    assert main(command) == 1
    assert "bad.dcm: not a DICOM file; the others are done" in capfd.readouterr().err
    assert main([*command, "noise=rician", "sigma=[0.1]"]) == 1
    assert "bad.dcm: not a DICOM file; the others are done" in capfd.readouterr().err


def test_training_reads_dicom(tiny_data: Path, pixels: np.ndarray, tmp_path: Path, capfd: Any) -> None:
    for split in ("train", "val"):
        for file in sorted((tiny_data.parent / "images" / split).glob("*.png")):
            make_dicom(
                tmp_path / "images" / split / f"{file.stem}.dcm", cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), bits=8
            )
        shutil.copytree(tiny_data.parent / "labels" / split, tmp_path / "labels" / split)
    (tmp_path / "images" / "train" / "bad.dcm").write_text("no DICOM")
    (tmp_path / "d.yaml").write_text("train: images/train\nval: images/val\nnames: [herniation, normal]\n")
    options = [
        "epochs=1",
        "imgsz=64",
        "batch=4",
        "workers=0",
        "plots=False",
        "device=cpu",
        f"project={tmp_path}/o",
        "name=t",
    ]
    assert main(["train", "model=yolo11n.yaml", f"data={tmp_path / 'd.yaml'}", *options]) == 1
    assert "bad.dcm: not a DICOM file; the others are done" in capfd.readouterr().err
    assert (tmp_path / "o" / "t" / "weights" / "best.pt").is_file()


def test_real_slices_as_png_dicom_and_nifti(tmp_path: Path) -> None:
    teacher, volumes = SHARED / "teachers" / "yolo11s_spider_disc2.pt", SHARED / "volumes"
    if not teacher.is_file():
        pytest.skip("the real volumes and teachers are not beside the repository")
    model = MedDet(teacher)
    options = {"imgsz": 256, "window": "percentile", "verbose": False}
    (dicom,) = model.predict(volumes / "dicom_derived_t2_lumbar" / "IM006.dcm", **options)
    volume = open_volume(volumes / "sct_tutorial_t2_lumbar.nii.gz")
    x = float(dicom.slice.geometry.to_patient([[0, 0]])[0, 0])
    at = [float(part.geometry.to_patient([[0, 0]])[0, 0]) for part in volume.parts]
    results = model.predict(volumes / "sct_tutorial_t2_lumbar.nii.gz", slices="all", **options)
    nifti = results[int(np.abs(np.array(at) - x).argmin())]
    cv2.imwrite(str(tmp_path / "p.png"), nifti.slice.image)
    (png,) = model.predict(tmp_path / "p.png", imgsz=256, verbose=False)
    assert len(png.boxes) >= 5  # discs
    for result in (dicom, nifti):
        np.testing.assert_allclose(result.boxes.data.numpy(), png.boxes.data.numpy(), atol=1e-3)
    np.testing.assert_allclose(dicom.boxes_mm, nifti.boxes_mm, atol=1e-2)


def outputs(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix in {".json", ".dcm"} or ".part" in p.name)


@pytest.mark.parametrize("verbose", [True, False])
def test_what_is_written_beside_the_pictures_is_told(
    model: MedDet, pixels: np.ndarray, tmp_path: Path, messages: list[str], verbose: bool
) -> None:
    source = study(tmp_path, pixels)
    options = {**OPTIONS, "verbose": verbose}
    model.predict(source, sr=True, save=True, project=tmp_path / "out", name="r", **options)
    (record,), (report,) = ((tmp_path / "out" / "r").glob(f"*{end}") for end in (".json", "_sr.dcm"))
    told = [line for line in messages if f"{record.name} and {report.name} written to " in line]
    assert len(told) == verbose


def test_an_aborted_run_leaves_no_half_series(
    model: MedDet, pixels: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        for i in range(3):
            uids = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": f"1.2.{ord(name)}"}
            make_dicom(tmp_path / name / f"{name}{i}.dcm", pixels, position=(4 * i, 0, 0), **uids)
    results = model.predict(
        tmp_path, slices="all", sr=True, save=True, stream=True, project=tmp_path / "o", name="r", **OPTIONS
    )
    with caplog.at_level("WARNING"):
        for _, result in zip(range(5), results, strict=False):  # two of three slices of the second series
            assert result.slice.name[0] in "ab"
        results.close()
    assert outputs(tmp_path / "o" / "r") == ["a.json", "a_sr.dcm"]
    assert "b: stopped after 2 of 3 slices, so no JSON file and no report" in caplog.text
    assert json.loads((tmp_path / "o" / "r" / "a.json").read_text())["complete"] is True


def test_a_series_that_could_not_be_read_whole_gets_no_report(
    model: MedDet, pixels: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = study(tmp_path, pixels)
    (source / "IM1.dcm").write_bytes((source / "IM1.dcm").read_bytes()[:-9])
    with caplog.at_level("WARNING"):
        model.predict(source, slices="all", sr=True, save=True, project=tmp_path / "o", name="r", **OPTIONS)
    (name,) = outputs(tmp_path / "o" / "r")
    record = json.loads((tmp_path / "o" / "r" / name).read_text())
    assert (record["complete"], len(record["slices"]), len(record["skipped"])) == (False, 2, 1)
    assert "1 of 3 slices could not be read, so no Structured Report" in caplog.text


def test_a_file_that_vanishes_is_named_and_the_rest_is_done(model: MedDet, pixels: np.ndarray, tmp_path: Path) -> None:
    make_dicom(tmp_path / "a.dcm", pixels)
    make_enhanced(tmp_path / "b.dcm", np.stack([pixels] * 2), [(0, 0, 0), (4, 0, 0)])
    make_dicom(tmp_path / "c.dcm", pixels)
    cv2.imwrite(str(tmp_path / "d.png"), (pixels // 9).astype(np.uint8))
    results = model.predict(tmp_path, slices="all", stream=True, **OPTIONS)
    names = [Path(next(results).path).stem]
    for gone in ("b.dcm", "d.png"):
        (tmp_path / gone).unlink()
    names += [Path(result.path).stem for result in results]
    assert names == ["a", "c"]
    skipped = {s.path.name: s.reason for s in model.predictor.dataset.skipped}
    assert skipped == {"b.dcm": "cannot be opened: No such file or directory", "d.png": "no such file any more"}


def test_a_failed_report_does_not_quote_the_birth_date(
    model: MedDet, pixels: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pydicom.config.disable_value_validation():
        path = make_dicom(tmp_path / "a.dcm", pixels, PatientBirthDate="03.02.2001")
    with caplog.at_level("DEBUG"):
        model.predict(path, sr=True, project=tmp_path / "o", name="r", **OPTIONS)
    assert "a.dcm: no Structured Report: its PatientBirthDate is not as DICOM writes it" in caplog.text
    assert "03.02.2001" not in caplog.text


def test_ordinary_images_named_after_a_known_patient_get_a_number_everywhere(
    checkpoint: Path, model: MedDet, pixels: np.ndarray, tmp_path: Path, capfd: Any
) -> None:
    source, grey = tmp_path / "in", (pixels // 9).astype(np.uint8)
    make_dicom(source / "a.dcm", pixels, PatientName=f"{CANARY}^Anna", PatientBirthDate="20010203")
    cv2.imwrite(str(source / f"{CANARY}_1.png"), grey)
    cv2.imwrite(str(source / "born_2001-02-03.png"), grey[::-1])
    cv2.imwrite(str(source / "other.png"), grey)
    options = {"save": True, "save_txt": True, "save_crop": True, "project": tmp_path / "o", "name": "r"}
    results = model.predict(source, **{**OPTIONS, **options, "verbose": True})
    written = [str(p.relative_to(tmp_path / "o")) for p in (tmp_path / "o").rglob("*")]
    shown = capfd.readouterr()
    text = " ".join([*(r.path for r in results), *map(str, results), *written, shown.out, shown.err]).lower()
    assert CANARY.lower() not in text and "2001-02-03" not in text
    assert results[-1].path == str(source / "other.png")  # names nobody, and stays
    numbered = [Path(r.path) for r in results[1:3]]
    assert all(path.name == str(path) and path.stem.startswith("image-") for path in numbered)
    assert {path.stem for path in numbered} <= {Path(name).stem for name in written} and len(set(numbered)) == 2
