"""Small models of every family, and what they hold and compute."""

from pathlib import Path

import torch
from torch import nn
from ultralytics.nn.modules import Concat, Conv
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

import meddet_yolo  # noqa: F401  # its layers in model YAMLs

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data"
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(
    layout: str, width: float = 0.125, depth: float = 0.5, nc: int = 2, ch: int = 3, seed: int = 0, **changes
) -> DetectionModel:
    """Return a detector of a stock layout or of one of ours, with batch statistics and normalisations of no order."""
    torch.manual_seed(seed)
    own = ROOT / "cfg" / "models" / f"{layout}.yaml"
    config = YAML.load(own if own.exists() else check_yaml(f"{layout}.yaml"))
    if "scales" in config:
        config.update(scales={"n": [depth, width, 1024]}, scale="n")
    config.update(changes, yaml_file=f"{layout}-{width:g}.yaml")
    model = DetectionModel(config, ch=ch, nc=nc, verbose=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.1, 0.1),
            ):
                nn.init.uniform_(tensor, low, high)
    return model.eval()


@torch.no_grad()
def outputs(model: nn.Module) -> list[torch.Tensor]:
    """Return the head's raw outputs, one-to-one branch included."""
    raw = model.eval()(IMAGE)[1]
    return (
        [raw[k][part] for k in ("one2many", "one2one") for part in ("boxes", "scores")]
        if "one2one" in raw
        else [
            raw["boxes"],
            raw["scores"],
        ]
    )


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


FAMILIES = ["yolov5", "yolov8", "yolo11", "yolo26", "meddet-n", "meddet11-n", "gfl-mobilenetv2"]
FAMILIES += ["gfl-efficientnet-b0", "gfl-shufflenet", "gfl-shufflenetv2", "meddet-gfl-mobilenetv2"]


class Rows(nn.Module):
    """A detector's rows without a head: what the hand-checked networks are made of."""

    def __init__(self, *rows: tuple[int | list[int], nn.Module]) -> None:
        super().__init__()
        self.model = nn.Sequential(*(module for _, module in rows))
        for source, module in rows:
            module.f = source


def concatenation(a: int, b: int, c: int) -> Rows:
    return Rows((-1, Conv(3, a)), (-1, Conv(a, b)), ([0, 1], Concat(1)), (-1, Conv(a + b, c)))


def equipped(
    inject: str, width: float = 0.125, layout: str = "meddet11-n", levels: list[int] | None = None, **settings
) -> DetectionModel:
    """Return a detector whose head has nmODE² in both branches, in one of its forms."""
    head = YAML.load(ROOT / "cfg" / "models" / f"{layout}.yaml")["head"]
    head[-1][3][1].update(inject=inject, branches=["cls", "reg"])
    if levels is not None:
        head[-1][3][1]["levels"] = levels
    return build(layout, width, head=head, **settings)
