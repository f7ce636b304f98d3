"""Torchvision's detectors as teachers; weights are random, as no test downloads any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import detection, get_model

from meddet_yolo.distill.adapters import adapt, open_named
from meddet_yolo.distill.teachers import Teacher

SMALL = "fasterrcnn_mobilenet_v3_large_fpn"


def detector(name: str = SMALL, **kwargs: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return get_model(name, weights=None, weights_backbone=None, **kwargs)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        (SMALL, [32, 32, 64]),
        ("fasterrcnn_resnet50_fpn", [4, 8, 16, 32, 64]),
        ("retinanet_resnet50_fpn", [8, 16, 32, 64, 128]),
        ("fcos_resnet50_fpn", [8, 16, 32, 64, 128]),
    ],
)
def test_the_pyramid_of_every_family(name: str, strides: list[float]) -> None:
    network = adapt(detector(name))
    assert network.strides == strides
    assert network.channels == [256] * len(strides)
    assert network.predictions == (0, 0) and network.names == {}
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_maps_are_those_that_the_detector_computes() -> None:
    model = detector("retinanet_resnet50_fpn").eval()
    images = torch.rand(2, 3, 64, 64)
    transform = detection.transform.GeneralizedRCNNTransform(
        64, 64, model.transform.image_mean, model.transform.image_std
    )
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_hook(lambda module, inputs, maps: seen.extend(maps.values()))
    model.transform = transform  # as the detector normalises, without its resizing to 800 px
    with torch.no_grad():
        model(list(images))
        found = adapt(model).maps(images)
    for ours, theirs in zip(found, seen[:5], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_teacher_resamples_to_the_students_strides() -> None:
    teacher = Teacher(detector(), name="frcnn")
    teacher.resample_to([8.0, 16.0, 32.0], imgsz=64)
    assert teacher.spec_at(64).strides == [8.0, 16.0, 32.0]
    output = teacher(torch.rand(1, 3, 64, 96))
    assert [tuple(feat.shape) for feat in output.feats] == [(1, 256, 8, 12), (1, 256, 4, 6), (1, 256, 2, 3)]
    assert output.logits is None and teacher.silent == "has no dense ones"


def test_weights_of_a_file_of_any_number_of_classes(tmp_path: Path) -> None:
    model = detector(num_classes=3)
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    loaded = open_named(f"torchvision:{SMALL}@{tmp_path / 'w.pth'}")
    expected = model.backbone.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.backbone.state_dict().items())


def test_weights_of_another_detector_are_refused(tmp_path: Path) -> None:
    torch.save(detector(SMALL).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth does not fit the model"):
        open_named(f"torchvision:fcos_resnet50_fpn@{tmp_path / 'w.pth'}")


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean retinanet_resnet50_fpn"):
        open_named("torchvision:retinanet_resnet50")
    with pytest.raises(ValueError, match=r"valid are fasterrcnn.*retinanet"):
        open_named("torchvision:ssd300_vgg16_x")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.pth"):
        open_named(f"torchvision:{SMALL}@{tmp_path / 'none.pth'}")


def test_nothing_is_downloaded_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("MEDDET_FETCH_ASKED_ONLY", raising=False)
    with pytest.raises(FileNotFoundError, match=r"offline; fetch https://.*@FILE"):
        open_named(f"torchvision:{SMALL}")


def test_pretrained_weights_are_read_as_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that a download leaves, put where torch looks for it; its hash is not checked where it is there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = detector()
    name = Path(detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights.DEFAULT.url).name
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    loaded = open_named(f"torchvision:{SMALL}")
    expected = model.backbone.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.backbone.state_dict().items())
