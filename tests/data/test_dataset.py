from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

from meddet_yolo.data.dataset import MedDetDataset, build_dataset


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
