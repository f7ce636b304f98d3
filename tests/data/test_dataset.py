from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

from meddet_yolo.data.dataset import MedDetDataset, build_dataset
from tests.dicom_files import make_dicom


@pytest.mark.parametrize("mode", ["train", "val"])
def test_ordinary_images_are_read_as_the_stock_data_set_reads_them(tiny_data: Path, mode: str) -> None:
    data = check_det_dataset(tiny_data)
    cfg = get_cfg(overrides={"imgsz": 64, "mosaic": 0.0, "hsv_v": 0.0, "translate": 0.0, "scale": 0.0, "fliplr": 0.0})
    ours = build_dataset(cfg, data[mode], 2, data, mode=mode, rect=mode == "val")
    stock = build_yolo_dataset(cfg, data[mode], 2, data, mode=mode, rect=mode == "val")
    assert isinstance(ours, MedDetDataset)
    assert ours.im_files == stock.im_files
    assert {k: v for k, v in vars(ours).items() if isinstance(v, (int, float, str))} == {
        k: v for k, v in vars(stock).items() if isinstance(v, (int, float, str))
    }
    for mine, theirs in zip(ours, stock, strict=False):
        np.testing.assert_array_equal(mine["img"], theirs["img"])
        np.testing.assert_array_equal(mine["bboxes"], theirs["bboxes"])


def test_a_list_may_name_dicom_files(tmp_path: Path) -> None:
    images = tmp_path / "images"
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    make_dicom(images / "a.dcm", grey, bits=8)
    make_dicom(images / "b.dcm", grey, bits=8)
    cv2.imwrite(str(images / "c.png"), grey)
    (tmp_path / "labels").mkdir()
    for name in "abc":
        (tmp_path / "labels" / f"{name}.txt").write_text(f"{'abc'.index(name)} 0.5 0.5 0.5 0.5\n")
    (tmp_path / "list.txt").write_text(f"./images/a.dcm\n{images / 'c.png'}\n./images/none.dcm\n")
    data = {"names": {0: "a", 1: "b", 2: "c"}, "channels": 3}
    dataset = MedDetDataset(str(tmp_path / "list.txt"), data=data, imgsz=32, augment=False)
    assert [Path(f).name for f in dataset.im_files] == ["c.png", "a.png"]
    assert [int(label["cls"][0, 0]) for label in dataset.labels] == [2, 0]
    assert [(s.path.name, s.reason.split(":")[0]) for s in dataset.skipped] == [("none.dcm", "cannot be opened")]
    halved = MedDetDataset(str(images), data=data, imgsz=32, augment=False, fraction=0.67)
    assert len(halved.im_files) == 2


def test_a_data_set_of_unusable_files_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text("no DICOM")
    with pytest.raises(ValueError, match=r"a\.dcm: not a DICOM file"):
        MedDetDataset(str(tmp_path), data={"names": {0: "a"}}, imgsz=32, augment=False)
    make_dicom(tmp_path / "b.dcm", np.zeros((16, 16), np.uint8), bits=8)
    for key, value in (("slices", "some"), ("window", "wide")):
        with pytest.raises(ValueError, match=f"{key}='{value}' is neither"):
            MedDetDataset(str(tmp_path), data={"names": {0: "a"}, key: value}, imgsz=32, augment=False)
