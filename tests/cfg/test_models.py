"""The shipped model files: stock layouts with the nmODE² head, and their exports."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules import Detect
from ultralytics.nn.modules.block import Attention
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML

import meddet_yolo  # noqa: F401  (registers the model files)
from meddet_yolo.cfg import MODELS_DIR
from meddet_yolo.evaluate.info import measure_size
from meddet_yolo.nn.heads import NmODE2Detect
from meddet_yolo.nn.nmode import NmODE2Activation
from meddet_yolo.nn.nmode.forms import NmODE2Beside

STOCK = {f"meddet-{s}": f"yolo26{s}" for s in "pnsmlx"} | {f"meddet11-{s}": f"yolo11{s}" for s in "pns"}
WIDTH_P = [0.50, 0.125, 1024]  # a scale of ours


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_every_planned_file_is_shipped() -> None:
    assert {p.stem for p in MODELS_DIR.glob("*.yaml") if "gfl" not in p.stem} == set(STOCK)  # those: test_gfl_models.py


@pytest.mark.parametrize("name", STOCK)
def test_differs_from_the_stock_model_in_the_head_alone(name: str) -> None:
    """The stock tensors under the same names, so stock weights load completely, and as many parameters as it says."""
    with torch.device("meta"):  # the large scales need not be in memory
        ours, stock = parse(name), parse(STOCK[name])
    added = {key: shape for key, shape in shapes(ours).items() if key not in shapes(stock)}
    assert {key: shape for key, shape in shapes(ours).items() if key not in added} == shapes(stock)
    assert added and all("nmode_" in key for key in added)
    assert [type(m) for m in ours[:-1]] == [type(m) for m in stock[:-1]]
    assert [(m.i, m.f) for m in ours] == [(m.i, m.f) for m in stock]
    head = ours[-1]
    assert type(head) is NmODE2Detect and head.branches == ("cls", "reg") and head.inject == "gate"
    counts = [sum(p.numel() for p in layers.parameters()) for layers in (ours, stock)]
    text = (MODELS_DIR / f"{name}.yaml").read_text()
    assert f"# {counts[0]:,} parameters" in text and f" {counts[0] - counts[1]:,} " in text
    assert name.endswith("-p") or f"{counts[1]:,} of {STOCK[name]}" in text


@pytest.mark.parametrize("family", ["meddet", "meddet11"])
def test_p_is_a_third_of_n_and_half_of_its_work(family: str) -> None:
    small, large = (measure_size(DetectionModel(f"{family}-{s}.yaml", nc=2, verbose=False), 64) for s in "pn")
    assert 0.6e6 < small.parameters < 0.9e6 and small.parameters < 0.36 * large.parameters
    assert small.multiply_adds < 0.5 * large.multiply_adds


@pytest.mark.parametrize("family", ["meddet", "meddet11"])
def test_p_attends_with_heads_of_full_width(family: str) -> None:
    """Where the channels are too few for one head of Ultralytics' width, there must be one head, not none."""
    attention = [m for m in parse(f"{family}-p").modules() if isinstance(m, Attention)]
    assert attention and all(m.num_heads >= 1 and m.key_dim >= 8 for m in attention)


def parse(name: str) -> torch.nn.Sequential:
    return tasks.parse_model(layout(name), ch=3, verbose=False)[0]


def layout(name: str) -> dict:
    """The layout of a shipped or stock model; Ultralytics has no scale p."""
    if not name.startswith("yolo") or not name.endswith("p"):
        return tasks.yaml_model_load(f"{name}.yaml")
    return {**tasks.yaml_model_load(f"{name[:-1]}n.yaml"), "scales": {"p": WIDTH_P}, "scale": "p"}


@pytest.mark.parametrize("name", ["meddet-n", "meddet11-n", "meddet-p", "meddet11-p"])
def test_builds_by_bare_name_and_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = YOLO(f"{name}.yaml")
    stock = DetectionModel(layout(STOCK[name]), verbose=False)
    assert model.task == "detect"
    gates = [p for n, p in model.model.named_parameters() if "nmode_" in n]
    count = sum(p.numel() for p in stock.parameters()) + sum(p.numel() for p in gates)
    assert sum(p.numel() for p in model.model.parameters()) == count
    assert torch.equal(model.model.stride, torch.tensor([8.0, 16.0, 32.0]))
    assert model.model.yaml["yaml_file"] == f"{name}.yaml"  # and no path of this machine
    result = model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)[0]
    assert result.boxes.data.shape[1] == 6
    again = DetectionModel(copy.deepcopy(model.model.yaml), verbose=False)  # what a resumed run builds
    assert shapes(again) == shapes(model.model)


def test_one_scale_a_file_and_options_spelt_out() -> None:
    for path in (MODELS_DIR / f"{name}.yaml" for name in STOCK):
        config = YAML.load(path)
        assert list(config["scales"]) == [path.stem[-1]]
        _, repeats, layer, args = config["head"][-1]
        assert (layer, repeats) == ("NmODE2Detect", 1)
        assert args[1] == {"branches": ["cls", "reg"], "inject": "gate", "t_end": 1.0, "solver": "closed"}


# ---------------------------------------------------------------------------------------------------- exports


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of meddet-n with features of a normal size and predictions that differ from box to box."""
    torch.manual_seed(0)
    model = DetectionModel("meddet-n.yaml", nc=3, verbose=False)
    head = model.model[-1]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for momentum in (1.0, 0.03):
            for norm in norms:
                norm.momentum = momentum
            model(images(16))
    for module in head.modules():
        if isinstance(module, NmODE2Beside):
            module.factor.data.normal_()
    for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
        for level in getattr(head, name):
            level[2].weight.data.mul_(3)
            if "cv3" in name:
                level[2].bias.data.zero_()  # class scores start near zero
    path = tmp_path_factory.mktemp("weights") / "student.pt"
    args = {"imgsz": 64, "task": "detect", "model": "meddet-n.yaml"}
    torch.save({"model": model.eval(), "ema": None, "train_args": args}, path)
    return path


def split(predictions: np.ndarray, end2end: bool) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of raw predictions (B, 4 + nc, A), or of end-to-end ones (B, A, 6)."""
    if end2end:
        return predictions[..., :4], predictions[..., 4:5]
    return predictions[:, :4], predictions[:, 4:]


def check(got: np.ndarray, weights: Path, images: torch.Tensor, end2end: bool = False) -> None:
    """Compare an export's predictions with those of the model in float64.

    Allowed are 1e-4 for scores and 0.01 for pixels, or twice torch's own error where rounding grows more than that in
    this untrained model.
    """
    model = torch.load(weights, weights_only=False)["model"].eval()
    model.end2end = end2end
    with torch.no_grad():
        rounded = model(images)[0].numpy()
        exact = model.double()(images.double())[0].numpy()
    assert got.shape == exact.shape
    assert split(exact, end2end)[1].std() > 0.01  # or the comparison would mean nothing
    parts = (split(x, end2end) for x in (got, rounded, exact))
    for g, r, e, least in zip(*parts, (0.01, 1e-4), strict=True):
        assert np.abs(g - e).max() <= max(least, 2 * np.abs(r - e).max())


def run_onnx(path: str, images: torch.Tensor) -> np.ndarray:
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


def images(batch: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """Images of coloured squares, of shape (batch, 3, height, width): noise would average out on the coarse maps."""
    squares = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
    return torch.nn.functional.interpolate(squares, size=(height, width))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("static", {}), ("dynamic", {"dynamic": True}), ("end2end", {"nms": False}), ("nms", {"nms": True})],
)
def test_onnx_equals_torch(weights: Path, kind: str, options: dict, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    copy = tmp_path / "student.pt"
    copy.write_bytes(weights.read_bytes())
    path = YOLO(copy).export(format="onnx", imgsz=64, verbose=False, **options)
    graph = pytest.importorskip("onnx").load(path).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}  # no custom operator
    sizes = [(1, 64, 64), (3, 96, 64)] if kind == "dynamic" else [(1, 64, 64)]
    for batch, height, width in sizes:
        x = images(batch, height, width)
        got = run_onnx(path, x)
        if kind == "nms":
            scores = torch.load(weights, weights_only=False)["model"].eval()(x)[0][0, 4:]
            kept = torch.from_numpy(got[0][got[0, :, 4] > 0])
            assert len(kept) > 1
            for row in kept:  # of which anchor it is, is lost
                assert (scores[int(row[5])] - row[4]).abs().min() < 1e-4
        else:
            check(got, weights, x, end2end=kind == "end2end")


def test_torchscript_equals_torch(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "student.pt"
    copy.write_bytes(weights.read_bytes())
    path = YOLO(copy).export(format="torchscript", imgsz=64)
    x = images(1)
    check(torch.jit.load(path)(x).detach().numpy(), weights, x)


def test_stock_head_class_is_untouched() -> None:
    assert NmODE2Activation not in {type(m) for m in DetectionModel("yolo26n.yaml", verbose=False).modules()}
    assert type(DetectionModel("yolo11n.yaml", verbose=False).model[-1]) is Detect
