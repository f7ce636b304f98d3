"""The GFL family as it is shipped: the paper's sizes, prediction, export, and rows that are wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML

import meddet_yolo
from meddet_yolo.cfg import MODELS_DIR
from meddet_yolo.distill.teachers import Teacher, probe_neck
from meddet_yolo.evaluate.info import PAPER, PAPER_MODELS, build_model, measure_size
from meddet_yolo.nn.backbones import BACKBONES

HEAVY = ("gfl-resnet101", "gfl-resnet152")
LIGHT = [name for name in PAPER_MODELS if "resnet" not in name]


def test_every_model_of_the_experiment_is_shipped_and_every_backbone_used() -> None:
    assert {p.stem for p in MODELS_DIR.glob("*gfl*.yaml")} == set(PAPER_MODELS)
    assert {YAML.load(MODELS_DIR / f"{n}.yaml")["backbone"][0][3][0] for n in PAPER_MODELS} == set(BACKBONES)


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_found_by_bare_name_with_and_without_suffix(name: str) -> None:
    assert meddet_yolo.resolve_model_yaml(name) == meddet_yolo.resolve_model_yaml(f"{name}.yaml")
    assert meddet_yolo.resolve_model_yaml(name) == MODELS_DIR / f"{name}.yaml"


def test_a_wrong_name_is_answered_with_shipped_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"gfl-resnet18.*gfl-resnet101.yaml"):
        meddet_yolo.resolve_model_yaml("gfl-resnet18.yaml")
    assert meddet_yolo.resolve_model_yaml("gfl-best.pt") is None  # a checkpoint of the user's


# ---------------------------------------------------------------------------------------------------- sizes


@pytest.fixture(scope="module")
def sizes() -> dict[str, Any]:
    return {name: measure_size(build_model(name, nc=2), 512) for name in PAPER}


def test_parameters_are_the_papers(sizes: dict[str, Any]) -> None:
    for name, (millions, _) in PAPER.items():
        assert sizes[name].parameters / 1e6 == pytest.approx(millions, rel=0.01), name
    assert round(sizes["meddet-gfl-mobilenetv2"].parameters / 1e6, 2) == 10.42


def test_multiply_adds_are_the_papers(sizes: dict[str, Any]) -> None:
    """Of three models; ResNet-50's in the table contradicts those of the others, see docs/gfl.md."""
    for name, (_, billions) in PAPER.items():
        counted = (sizes[name].multiply_adds + sizes[name].elementwise) / 1e9
        assert counted == pytest.approx(billions, rel=0.045 if name == "gfl-resnet50" else 0.03), name
        assert sizes[name].multiply_adds / 1e9 == pytest.approx(billions, rel=0.045 if "50" in name else 0.03), name
    student = sizes["meddet-gfl-mobilenetv2"]
    assert round((student.multiply_adds + student.elementwise) / 1e9, 2) == 31.69


def test_resnet50_has_the_operations_that_are_known_of_it() -> None:
    """GFL with ResNet-50, 80 classes, 800x1280: 208 G are published with the reference implementation."""
    size = measure_size(build_model("gfl-resnet50", nc=80), (800, 1280))
    assert (size.multiply_adds + size.elementwise) / 1e9 == pytest.approx(208, rel=0.01)


def test_teachers_differ_in_bottlenecks_alone(sizes: dict[str, Any]) -> None:
    """Each bottleneck costs the same at any stage; the table's differences need a larger image than the student's."""
    block = 1_114_112 * 32 * 32  # 1x1, 3x3 and 1x1 convolutions of stage 3 at stride 16
    r50, r101, r152 = (sizes[f"gfl-resnet{n}"].multiply_adds for n in (50, 101, 152))
    assert (r101 - r50, r152 - r101) == (17 * block, 17 * block)
    assert (PAPER["gfl-resnet101"][1] - PAPER["gfl-resnet50"][1]) * 1e9 / (17 * block) > 1.07


# ---------------------------------------------------------------------------------------------------- use


def alive(name: str, nc: int = 2) -> DetectionModel:
    """A model whose features have a normal size and whose predictions differ from place to place."""
    torch.manual_seed(0)
    model = build_model(name, nc)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    model.train()
    for momentum in (1.0, 0.03):
        for norm in norms:
            norm.momentum = momentum
        with torch.no_grad():
            model(images(4))
    head = model.model[-1]
    for tower in (head.cv2[0], head.cv3[0]):
        tower[2].weight.data.mul_(2)
    head.cv3[0][2].bias.data.zero_()
    return model.eval()


def images(batch: int, height: int = 96, width: int = 96) -> torch.Tensor:
    squares = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
    return torch.nn.functional.interpolate(squares, size=(height, width))


def saved(model: DetectionModel, path: Path) -> Path:
    args = {"imgsz": 96, "task": "detect", "model": "x.yaml"}
    torch.save({"model": model, "ema": None, "train_args": args}, path)
    return path


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow("exports large models") if n in HEAVY else ()) for n in PAPER_MODELS],
)
def test_onnx_equals_torch_and_both_predict(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = alive(name)
    x = images(1)
    with torch.no_grad():
        want = model(x)[0].numpy()
        exact = model.double()(x.double())[0].numpy()
    model.float()
    assert want[:, 4:].std() > 0.01  # or the comparison would mean nothing
    file = saved(model, tmp_path / "gfl.pt")
    exported = YOLO(file).export(format="onnx", imgsz=96, verbose=False)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    got = session.run(None, {"images": x.numpy()})[0]
    assert got.shape == want.shape == (1, 4 + 2, 12 * 12 + 6 * 6 + 3 * 3 + 2 * 2 + 1)
    error = np.abs(got - exact)
    own = np.abs(want - exact)
    assert error[:, 4:].max() <= max(1e-4, 2 * own[:, 4:].max())
    assert error[:, :4].max() <= max(1e-4 * 96, 2 * own[:, :4].max())  # pixels: 1e-4 of the image's side
    picture = (x[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    results = [YOLO(f, task="detect").predict(picture, imgsz=96, conf=0.3, verbose=False)[0] for f in (file, exported)]
    assert len(results[0].boxes) == len(results[1].boxes) > 0
    overlaps = box_iou(results[0].boxes.xyxy, results[1].boxes.xyxy)  # equal scores may come in another order
    assert float(overlaps.amax(1).min()) > 0.99


def test_onnx_of_any_size(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = alive("meddet-gfl-mobilenetv2")
    path = YOLO(saved(model, tmp_path / "gfl.pt")).export(format="onnx", imgsz=96, dynamic=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 96, 96), (2, 64, 160)):
        x = images(batch, height, width)
        with torch.no_grad():
            want = model.float()(x)[0].numpy()
        got = session.run(None, {"images": x.numpy()})[0]
        np.testing.assert_allclose(got[:, 4:], want[:, 4:], atol=1e-4)
        np.testing.assert_allclose(got[:, :4], want[:, :4], atol=0.02, rtol=1e-4)


@pytest.mark.parametrize("name", LIGHT)
def test_checkpoints_load_in_safe_mode_and_teach_on_five_levels(name: str, tmp_path: Path) -> None:
    model = alive(name)
    file = saved(model.half(), tmp_path / "teacher.pt")
    detector = meddet_yolo.load_detector(file)
    assert probe_neck(detector) == ([256] * 5, [8, 16, 32, 64, 128])
    teacher = Teacher(detector)
    assert teacher.strides == [8, 16, 32, 64, 128]
    x = images(2, 128, 256)  # of what its coarsest stride divides, and so left as they are
    with torch.no_grad():
        want = detector.float().eval()(x)[1]["feats"]
    for got, wanted in zip(teacher(x).feats, want, strict=True):
        assert float((got - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())  # folded normalisations


def test_a_resnet_teacher_loads_in_safe_mode(tmp_path: Path) -> None:
    detector = meddet_yolo.load_detector(saved(build_model("gfl-resnet50", 2).half(), tmp_path / "teacher.pt"))
    assert Teacher(detector, imgsz=96).channels == [256] * 5


# ---------------------------------------------------------------------------------------------------- wrong rows


def config() -> dict[str, Any]:
    loaded: dict[str, Any] = tasks.yaml_model_load("gfl-shufflenetv2.yaml")
    return loaded


def change(d: dict[str, Any], row: int, position: int, value: Any) -> None:
    [*d["backbone"], *d["head"]][row][position] = value


@pytest.mark.parametrize(
    ("row", "position", "value", "message"),
    [
        (0, 3, ["shuffelnet"], "row 0 .*Backbone.*did you mean 'shufflenet'"),
        (0, 3, ["shufflenetv2", {"pretraind": True}], "unknown option 'pretraind', did you mean 'pretrained'"),
        (0, 3, [], "not of the form"),
        (0, 1, 2, r"\(Backbone\): cannot be repeated"),
        (1, 3, [256, {"level": 5}], "unknown option 'level', did you mean 'levels'"),
        (7, 3, ["nc", {"branch": []}], "unknown option 'branch', did you mean 'branches'"),
        (7, 3, ["nc", {"stack": 1}], "row 7 .*GFLDetect.*stack >= 2"),
        (7, 1, 3, r"\(GFLDetect\): cannot be repeated"),
    ],
)
def test_wrong_rows_are_named(row: int, position: int, value: Any, message: str) -> None:
    d = config()
    change(d, row, position, value)
    with pytest.raises(ValueError, match=message):
        DetectionModel(d, nc=2, verbose=False)


def test_an_fpn_needs_a_backbone_and_a_backbone_the_images() -> None:
    d = config()
    d["backbone"] = [[-1, 1, "Conv", [16, 3, 2]]]
    with pytest.raises(ValueError, match="reads row -1, which is no Backbone"):
        DetectionModel(d, nc=2, verbose=False)
    d = config()
    d["head"].insert(0, [-1, 1, "Backbone", ["shufflenetv2"]])
    with pytest.raises(ValueError, match="must be row 0"):
        DetectionModel(d, nc=2, verbose=False)


def test_grey_images() -> None:
    model = DetectionModel("gfl-shufflenetv2.yaml", ch=1, nc=2, verbose=False)
    assert model.eval()(torch.rand(1, 1, 64, 64))[0].shape[1] == 6
    assert Teacher(model)(torch.rand(1, 3, 64, 64)).feats[0].shape[1] == 256


def test_the_papers_recipe_is_understood() -> None:
    from meddet_yolo import cli
    from meddet_yolo.arguments import read_recipe
    from meddet_yolo.distill.config import DistillConfig

    recipe = read_recipe("paper.yaml")
    cli._check_keys("train", dict(recipe))  # refuses unknown ones
    config = DistillConfig.from_dict({k: v for k, v in recipe.items() if k in DistillConfig.keys()})
    assert [Path(t).stem for t in config.run.teachers] == ["gfl-resnet152", "gfl-resnet101", "gfl-resnet50"]
    options = config.methods["meddet"]
    assert options.fusion == "lwff" and options.adv_weight > 0 and options.dist_weight > 0
    assert recipe["model"] == "meddet-gfl-mobilenetv2.yaml" and recipe["imgsz"] == 512
