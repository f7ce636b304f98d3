from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel, PoseModel, RTDETRDetectionModel, SegmentationModel

from meddet_yolo.distill.teachers import Teacher, probe_neck

FAMILIES = ["yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "meddet-n", "meddet11-n"]


def detector(name: str = "yolo11n", **kwargs: int) -> DetectionModel:
    torch.manual_seed(0)
    return DetectionModel(f"{name}.yaml", nc=2, verbose=False, **kwargs)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_maps_its_head_reads(name: str) -> None:
    model = detector(name).eval()
    images = torch.rand(2, 3, 64, 96)
    seen: list[torch.Tensor] = []
    handle = model.model[-1].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    teacher = Teacher(model, name=name)
    feats = teacher(images).feats
    assert [f.shape for f in feats] == [f.shape for f in seen]
    assert teacher.channels == [f.shape[1] for f in seen]
    assert teacher.strides == [8.0, 16.0, 32.0]
    for ours, theirs in zip(feats, seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # fusing rounds differently


@pytest.mark.parametrize(("name", "strides"), [("yolov8n-p2", [4, 8, 16, 32]), ("yolov8n-p6", [8, 16, 32, 64])])
def test_other_numbers_of_levels(name: str, strides: list[float]) -> None:
    assert Teacher(detector(name)).strides == strides


def test_rtdetr_is_a_detector_too() -> None:
    model = RTDETRDetectionModel("rtdetr-resnet50.yaml", nc=2, verbose=False)
    teacher = Teacher(model)
    assert teacher.strides == [8.0, 16.0, 32.0]


def test_the_given_model_is_left_alone() -> None:
    model = detector().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    Teacher(model)(torch.rand(1, 3, 64, 64))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert model.training
    assert all(p.requires_grad for n, p in model.named_parameters() if "dfl" not in n)


def test_a_teacher_is_frozen_and_has_no_head() -> None:
    model = detector()
    teacher = Teacher(model)
    assert not isinstance(teacher, nn.Module)
    assert not any(p.requires_grad for p in teacher._network.layers.parameters())
    assert not any(m.training for m in teacher._network.layers.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in teacher._network.layers.modules())
    assert not any(type(m) is type(model.model[-1]) for m in teacher._network.layers.modules())
    assert not teacher(torch.rand(1, 3, 64, 64, requires_grad=True)).feats[0].requires_grad


def test_a_teacher_sees_its_own_input_size() -> None:
    teacher = Teacher(detector(), imgsz=128)
    assert [tuple(f.shape[-2:]) for f in teacher(torch.rand(1, 3, 64, 64)).feats] == [(16, 16), (8, 8), (4, 4)]
    assert [tuple(f.shape[-2:]) for f in teacher(torch.rand(1, 3, 64, 32)).feats] == [(16, 8), (8, 4), (4, 2)]
    small = Teacher(detector(), imgsz=32)
    assert [tuple(f.shape[-2:]) for f in small(torch.rand(1, 3, 64, 64)).feats] == [(4, 4), (2, 2), (1, 1)]


@pytest.mark.parametrize(("height", "width"), [(96, 96), (96, 128), (32, 160)])
def test_sides_are_made_multiples_of_the_coarsest_stride(height: int, width: int) -> None:
    teacher = Teacher(detector("yolov8n-p6"))  # of stride 64, as no student need be
    sizes = [tuple(f.shape[-2:]) for f in teacher(torch.rand(1, 3, height, width)).feats]
    rows, columns = -(-height // 64), -(-width // 64)
    assert sizes == [(rows * scale, columns * scale) for scale in (8, 4, 2, 1)]


@pytest.mark.parametrize(
    ("name", "imgsz", "strides"),
    [
        ("yolo11n", None, [8, 16, 32]),
        ("yolo11n", 192, [4, 8, 16]),
        ("yolo11n", 64, [12, 24, 48]),
        ("yolo11n", 65, [8, 16, 32]),  # rounded up to 96
        ("yolov8n-p6", None, [6, 12, 24, 48]),  # 96 rounded up to 128
    ],
)
def test_strides_in_pixels_of_the_students_input(name: str, imgsz: int | None, strides: list[float]) -> None:
    teacher = Teacher(detector(name), imgsz=imgsz)
    assert teacher.strides_at(96) == strides
    maps = teacher(torch.rand(1, 3, 96, 96)).feats
    assert [96 / m.shape[-1] for m in maps] == strides


def test_resizing_keeps_what_is_seen() -> None:
    image = torch.zeros(1, 3, 64, 64)
    image[..., :32] = 1.0
    resized = Teacher(detector(), imgsz=128)._resize(image)
    assert resized.shape[-2:] == (128, 128)
    assert resized[..., :60].min() > 0.99
    assert resized[..., 68:].max() < 0.01


def test_grey_and_colour_teachers() -> None:
    grey = Teacher(detector(ch=1))
    assert grey.image_channels == 1
    assert len(grey(torch.rand(1, 3, 64, 64)).feats) == 3
    colour = Teacher(detector())
    one = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(colour(one).feats[0], colour(one.expand(-1, 3, -1, -1)).feats[0])
    with pytest.raises(ValueError, match=r"expects images of 3 channels, got 4.*`channels`"):
        colour(torch.rand(1, 4, 64, 64))


def test_bad_teachers_are_refused() -> None:
    with pytest.raises(TypeError, match="Expected an Ultralytics detection model"):
        Teacher(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="teacher_imgsz > 0"):
        Teacher(detector(), imgsz=0)


def test_probing_restores_the_mode_of_every_layer() -> None:
    model = detector().train()
    model.model[0].eval()
    before = [m.training for m in model.modules()]
    means = [b.clone() for b in model.buffers()]
    channels, strides = probe_neck(model)
    assert (channels, strides) == ([64, 128, 256], [8.0, 16.0, 32.0])
    assert [m.training for m in model.modules()] == before
    assert all(torch.equal(a, b) for a, b in zip(means, model.buffers(), strict=True))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("yolo11n-seg", SegmentationModel),
        ("yolo11n-pose", PoseModel),
        ("yolo26n-seg", SegmentationModel),
        ("yolo26n-pose", PoseModel),
    ],
)
def test_of_other_tasks_the_detection_part_serves(name: str, build: Any) -> None:
    model = build(f"{name}.yaml", nc=2, verbose=False).eval()
    images = torch.rand(1, 3, 64, 64)
    output = Teacher(model)(images)
    with torch.no_grad():
        model.model[-1].training = True
        preds = model(images)
    preds = preds.get("one2many", preds)
    assert output.logits is not None
    torch.testing.assert_close(output.logits, preds["scores"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.boxes, preds["boxes"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["meddet-n", "meddet11-n"])
def test_what_a_head_has_before_its_prediction_layers_speaks_too(name: str) -> None:
    model = detector(name).eval()
    head: Any = model.model[-1]
    for block in (*head.nmode_cls, *head.nmode_reg):  # gates, which start without effect
        nn.init.normal_(block.out.weight)
    for norm in (m for m in head.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.ones_(norm.bias)  # an untrained network's maps are all but 0
    output = Teacher(model)(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        head.training = True
        preds = model(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    preds = preds.get("one2many", preds)
    assert output.logits is not None
    torch.testing.assert_close(output.logits, preds["scores"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.boxes, preds["boxes"], rtol=1e-3, atol=1e-3)
