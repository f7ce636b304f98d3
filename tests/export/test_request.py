"""From keys to one checked request."""

import pytest

from meddet_yolo.export.formats import FORMATS, find_format
from meddet_yolo.export.request import EXPORT_KEYS, read_request
from meddet_yolo.trt.request import ENGINE_KEYS, ExportRequest


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_exports_its_plain_precision_by_default(name):
    form = FORMATS[name]
    runtime = {"runtime": name} if form.on_gpu else {}
    found, request = read_request({"format": form.spellings[0], **runtime})
    assert found is form and request == ExportRequest(precision=form.plain)
    assert form.plain in form.precisions


def test_no_spelling_means_two_things():
    spelled = [s for form in {type(f): f for f in FORMATS.values()}.values() for s in form.spellings]
    assert len(spelled) == len(set(spelled))
    with pytest.raises(ValueError, match="format=coreml is unknown here: use one of onnx, openvino, engine"):
        find_format("coreml")


def test_keys_of_the_command_are_fields_of_the_request():
    fields = set(ExportRequest.__dataclass_fields__)
    assert EXPORT_KEYS - {"runtime", "calibration_images", "out"} <= fields
    assert set().union(*(form.keys for form in FORMATS.values())) <= fields >= ENGINE_KEYS


@pytest.mark.parametrize("key", sorted(ENGINE_KEYS))
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_keys_of_engines_are_refused_elsewhere(key, form):
    with pytest.raises(ValueError, match=f"^{key}= is for format=engine, not for format={form}$"):
        read_request({"format": form, key: 1})


def test_nms_chooses_the_head():
    requests = [read_request({"format": "onnx", "nms": nms})[1] for nms in (None, False, True)]
    assert [(r.end2end, r.nms) for r in requests] == [(False, False), (True, False), (False, True)]
    with pytest.raises(ValueError, match="exclude each other"):
        read_request({"format": "onnx", "nms": True, "end2end": True})


def test_what_is_none_is_not_given():
    options = {"format": "onnx", "half": None, "imgsz": None, "max_det": None, "refit": None}
    assert read_request(options)[1] == ExportRequest(precision="fp32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0: expected a whole number of at least 1"),
        ({"batch": "many"}, "batch=many: expected a whole number"),
        ({"imgsz": [64, 64, 64]}, "imgsz=.* must be a number of pixels"),
        ({"imgsz": 64.5}, "imgsz=64.5 must be a number of pixels"),
        ({"format": "engine", "max_imgsz": "big"}, "max_imgsz=big must be"),
        ({"calibration": "magic"}, "calibration='magic' is unknown: use one of minmax, entropy, percentile"),
        ({"opset": "new"}, "opset=new: expected a whole number"),
        ({"precision": "fp99"}, "precision='fp99' is unknown: use one of fp32, fp16, int8, fp8"),
        ({"format": "openvino", "precision": "fp8"}, "use fp32, fp16 or bf16, or format=onnx precision=fp8"),
        ({"precision": "fp32", "int8": True}, "precision, int8 ask for different precisions"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        read_request({"format": "onnx", **options})
