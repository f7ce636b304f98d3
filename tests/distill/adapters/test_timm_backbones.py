"""Backbones of timm as teachers: timm's own tiny test models, with random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from meddet_yolo.distill.adapters import adapt, open_named
from meddet_yolo.distill.teachers import Teacher

timm = pytest.importorskip("timm")

TINY = ["test_resnet", "test_convnext", "test_byobnet", "test_vit"]


def backbone(name: str, **kwargs: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **kwargs)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """State dicts of two backbones, with their classifiers, as timm saves them."""
    found = {}
    for name in ("test_resnet", "test_vit"):
        torch.save(backbone(name).state_dict(), tmp_path / f"{name}.pth")
        found[name] = str(tmp_path / f"{name}.pth")
    return found


@pytest.mark.parametrize("name", TINY)
def test_stages_of_convolutional_networks_and_transformers(name: str) -> None:
    model = backbone(name, num_classes=0, **({"dynamic_img_size": True} if "vit" in name else {}))
    network = adapt(model)
    assert network.channels == [stage["num_chs"] for stage in model.feature_info]
    assert network.strides == [stage["reduction"] for stage in model.feature_info]
    assert network.predictions == (0, 0)


def test_input_is_normalised_as_the_backbone_expects(files: dict[str, str]) -> None:
    model = open_named(f"timm:test_resnet@{files['test_resnet']}")
    config = model.pretrained_cfg
    images = torch.rand(1, 3, 64, 64)
    transform = timm.data.transforms_factory.create_transform(
        64, is_training=False, mean=config["mean"], std=config["std"], crop_pct=1.0, interpolation="bilinear"
    )
    normalised = transform.transforms[-1](images[0])[None]
    with torch.no_grad():
        expected = model.forward_intermediates(normalised, intermediates_only=True)
        found = adapt(model).maps(images)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "stages"), [("test_resnet", [2, 3, 4]), ("test_vit", [1, 3, 5])])
def test_a_teacher_resamples_stages_to_the_students_strides(
    name: str, stages: list[int], files: dict[str, str]
) -> None:
    model = open_named(f"timm:{name}@{files[name]}")
    teacher = Teacher(model, name=name)
    teacher.resample_to([8.0, 16.0, 32.0], imgsz=64)
    spec = teacher.spec_at(64)
    assert spec.channels == [model.feature_info[stage]["num_chs"] for stage in stages]
    feats = teacher(torch.rand(2, 3, 64, 96)).feats
    assert [tuple(feat.shape) for feat in feats] == [
        (2, channels, 64 // stride, 96 // stride) for channels, stride in zip(spec.channels, (8, 16, 32), strict=True)
    ]
    assert not feats[0].requires_grad


def test_weights_are_those_of_the_file(files: dict[str, str]) -> None:
    expected = torch.load(files["test_vit"], weights_only=True)
    for key, value in open_named(f"timm:test_vit@{files['test_vit']}").state_dict().items():
        assert torch.equal(value, expected[key])


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = backbone("test_resnet").state_dict()
    save_file(state, tmp_path / "w.safetensors")
    loaded = open_named(f"timm:test_resnet@{tmp_path / 'w.safetensors'}").state_dict()
    assert loaded.keys() < state.keys() and all(torch.equal(value, state[key]) for key, value in loaded.items())


class Tattler:
    """Writes a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_files_that_would_run_code_do_not(tmp_path: Path) -> None:
    torch.save({"state_dict": backbone("test_resnet").state_dict(), "x": Tattler(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth cannot be read as weights alone"):
        open_named(f"timm:test_resnet@{tmp_path / 'w.pth'}")
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_are_refused(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test_vit\.pth does not fit the model: \d+ of \d+ tensors missing"):
        open_named(f"timm:test_resnet@{files['test_vit']}")
    torch.save({"a": 1}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        open_named(f"timm:test_resnet@{tmp_path / 'none.pth'}")
    (tmp_path / "torn.pth").write_bytes(Path(files["test_vit"]).read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"torn\.pth cannot be read"):
        open_named(f"timm:test_vit@{tmp_path / 'torn.pth'}")


def test_unknown_names_and_kinds() -> None:
    with pytest.raises(ValueError, match=r"timm has no such model; did you mean resnet50"):
        open_named("timm:resnet_50")
    from meddet_yolo.distill.adapters import is_named

    with pytest.raises(ValueError, match="did you mean timm:"):
        is_named("tim:resnet50")
    assert not is_named("https://example.org/a.pt") and not is_named("C:\\a.pt")


def test_offline_and_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDDET_FETCH_ASKED_ONLY", raising=False)
    with pytest.raises(FileNotFoundError, match="offline; give a file"):
        open_named("timm:test_resnet")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "meddet-yolo\[timm\]"'):
        open_named("timm:test_resnet")
