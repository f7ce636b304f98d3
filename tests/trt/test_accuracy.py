"""What quantization costs a trained detector on real images."""

import onnx
import pytest
from ultralytics import YOLO

from meddet_yolo import MedDet
from meddet_yolo.export.calibration import calibration_images
from meddet_yolo.trt.graph import conv_precisions, load_onnx
from meddet_yolo.trt.half import to_half
from meddet_yolo.trt.onnx_export import export_onnx
from meddet_yolo.trt.quantize import quantize_onnx

IMGSZ = 256


def accuracy(path, data, folder):
    found = YOLO(str(path), task="detect").val(
        data=str(data), imgsz=IMGSZ, batch=1, plots=False, verbose=False, workers=0, project=str(folder)
    )
    return 100 * float(found.box.map)


@pytest.mark.slow("validates on real images")
def test_int8_costs_less_than_a_point(spider, tmp_path):
    teacher = spider.parents[1] / "teachers" / "yolo11s_spider_disc2.pt"
    if not teacher.is_file():
        pytest.skip("the trained detector is not beside the repository")
    model = MedDet(str(teacher))
    images = calibration_images(spider, (IMGSZ, IMGSZ), count=64)
    whole = export_onnx(model, tmp_path / "whole.onnx", imgsz=IMGSZ, images=images[:4])
    quantized = to_half(quantize_onnx(load_onnx(whole), images))  # what an INT8 engine is built from
    assert conv_precisions(quantized)["int8"] > 0.8 * sum(conv_precisions(quantized).values())
    onnx.save(quantized, str(tmp_path / "int8.onnx"))
    expected, found = (accuracy(path, spider, tmp_path) for path in (whole, tmp_path / "int8.onnx"))
    assert expected > 45  # a detector that finds something
    assert abs(found - expected) < 1
