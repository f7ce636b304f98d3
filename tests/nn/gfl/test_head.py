"""FPN and GFL head: shapes, sharing, decoding, nmODE² in the towers, and what Ultralytics does to a head."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.tal import make_anchors

from meddet_yolo.nn.gfl.head import FPN, ConvGN, GFLDetect
from meddet_yolo.nn.gfl.loss import GFLCriterion
from meddet_yolo.nn.nmode import NmODE2Activation, nmode2
from meddet_yolo.nn.nmode.forms import NmODE2Beside, NmODE2Gate

STRIDES = [8.0, 16.0, 32.0, 64.0, 128.0]


def levels(batch: int = 1, channels: int = 64, height: int = 128, width: int = 128) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sides = [(-(-height // int(s)), -(-width // int(s))) for s in STRIDES]
    return [torch.randn(batch, channels, h, w, generator=generator) for h, w in sides]


def head(**options: Any) -> GFLDetect:
    torch.manual_seed(0)
    made = GFLDetect(nc=2, ch=[64] * 5, **options)
    made.stride = torch.tensor(STRIDES)
    made.bias_init()
    return made


# ---------------------------------------------------------------------------------------------------- FPN


def test_fpn_adds_coarse_to_fine_and_appends_levels() -> None:
    fpn = FPN([4, 8], channels=32, levels=4)
    with torch.no_grad():
        for conv in fpn.output:
            nn.init.dirac_(conv.weight)  # hands its input on
    fine, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)
    p3, p4, p5, p6 = fpn([fine, coarse])
    torch.testing.assert_close(p4, fpn.lateral[1](coarse))
    upsampled = p4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(p3, fpn.lateral[0](fine) + upsampled)
    torch.testing.assert_close(p5, fpn.extra[0](p4))
    torch.testing.assert_close(p6, fpn.extra[1](p5))
    assert p6.shape == (1, 32, 1, 1)


@pytest.mark.parametrize(("maps", "count"), [([], 5), ([4, 8, 16], 2)])
def test_fpn_refuses_too_few(maps: list[int], count: int) -> None:
    with pytest.raises(ValueError, match="as many levels as maps"):
        FPN(maps, levels=count)


# ---------------------------------------------------------------------------------------------------- head


def test_training_output_is_that_of_detect() -> None:
    x = levels(batch=2)
    preds = head().train()(x)
    positions = sum(level.shape[-2] * level.shape[-1] for level in x)
    assert preds["boxes"].shape == (2, 4 * 17, positions)
    assert preds["scores"].shape == (2, 2, positions)
    assert all(a is b for a, b in zip(preds["feats"], x, strict=True))


def test_levels_share_the_towers_and_have_a_scale_each() -> None:
    made = head().train()
    x = torch.randn(1, 64, 4, 4)
    preds = made([x, x.clone(), x.clone(), x.clone(), x.clone()])
    scores, boxes = preds["scores"].unflatten(-1, (5, 16)), preds["boxes"].unflatten(-1, (5, 16))
    for i in range(1, 5):
        torch.testing.assert_close(scores[..., i, :], scores[..., 0, :])
        torch.testing.assert_close(boxes[..., i, :], boxes[..., 0, :])
    with torch.no_grad():
        made.scales[3] = 2.0
    again = made([x] * 5)["boxes"].unflatten(-1, (5, 16))
    torch.testing.assert_close(again[..., 3, :], 2 * boxes[..., 3, :])
    torch.testing.assert_close(again[..., 4, :], boxes[..., 4, :])


def test_a_position_of_every_level_decodes_to_the_box_that_its_distribution_says() -> None:
    made, x = head().eval(), levels()
    decoded, preds = made(x)
    assert decoded.shape == (1, 4 + 2, preds["boxes"].shape[-1])
    cells, strides = make_anchors(x, torch.tensor(STRIDES), 0.5)
    starts = torch.tensor([level.shape[-2] * level.shape[-1] for level in x]).cumsum(0) - 1
    for p in starts.tolist():
        sides = [float(row.softmax(0) @ torch.arange(17.0)) for row in preds["boxes"][0, :, p].view(4, 17).detach()]
        (cx, cy), s = cells[p].tolist(), float(strides[p])
        left, top, right, bottom = cx - sides[0], cy - sides[1], cx + sides[2], cy + sides[3]
        want = [(left + right) / 2 * s, (top + bottom) / 2 * s, (right - left) * s, (bottom - top) * s]
        assert decoded[0, :4, p].tolist() == pytest.approx(want, rel=1e-4)
    torch.testing.assert_close(decoded[:, 4:], preds["scores"].sigmoid())


def test_classes_start_improbable() -> None:
    _, preds = head().eval()(levels())
    assert float(preds["scores"].sigmoid().mean()) == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("branches", [["cls"], ["reg"], ["cls", "reg"]])
def test_nmode2_takes_the_place_of_the_last_activation_and_adds_no_parameter(branches: list[str]) -> None:
    plain, ours = head(), head(branches=branches)
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}
    for branch, tower in (("reg", ours.cv2[0]), ("cls", ours.cv3[0])):
        acts = [m.act for m in tower.modules() if isinstance(m, ConvGN)]
        assert [isinstance(act, NmODE2Activation) for act in acts] == [False, False, False, branch in branches]
    x = torch.randn(1, 64, 4, 4)
    tower = (ours.cv3 if "cls" in branches else ours.cv2)[0]
    last = tower[1][-1]
    g = last.norm(last.conv(x))
    torch.testing.assert_close(last(x), (nmode2(g) - last.act.shift) * last.act.scale)


def test_a_convolution_of_its_own_for_nmode2() -> None:
    plain, ours = head(), head(branches=["cls", "reg"], inject="conv")
    extra = sum(p.numel() for p in ours.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 2 * (64 * 64 + 2 * 64)
    assert isinstance(ours.cv3[0][1][-1].act, NmODE2Activation) and ours.cv3[0][1][-1].conv.kernel_size == (1, 1)


@pytest.mark.parametrize("inject", ["beside", "gate"])
def test_forms_that_start_as_the_head_without_nmode2(inject: str) -> None:
    plain, ours = head(), head(branches=["cls", "reg"], inject=inject)
    ours.load_state_dict(plain.state_dict(), strict=False)
    x = levels(batch=2)
    got, want = ours.train()(x), plain.train()(x)
    assert all(torch.equal(got[key], want[key]) for key in ("boxes", "scores"))
    (got["boxes"].square().mean() + got["scores"].square().mean()).backward()
    kind = NmODE2Beside if inject == "beside" else NmODE2Gate
    added = [m for m in ours.modules() if isinstance(m, kind)]
    learns = [m.factor if inject == "beside" else m.out.weight for m in added]
    assert len(added) == 2 and all(p.grad.abs().sum() > 0 for p in learns)


def test_nmode2_starts_on_its_flank_where_its_output_varies() -> None:
    ours = head(branches=["cls"])
    out = ours.cv3[0][1][-1](torch.randn(4, 64, 16, 16))
    assert float(out.mean()) == pytest.approx(0, abs=0.1) and float(out.std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ch": []}, "one width"),
        ({"ch": [64, 128]}, "one width"),
        ({"ch": [32, 32]}, "at least 64"),
        ({"ch": [80, 80]}, "multiple of 32"),
        ({"reg_max": 0}, "reg_max >= 1"),
        ({"stack": 1}, "stack >= 2"),
        ({"branches": ["box"]}, "'box' is no branch"),
        ({"inject": "before"}, "inject='before' is not known"),
        ({"solver": "closd"}, "did you mean 'closed'"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GFLDetect(**{"nc": 2, "ch": [64, 64], **options})


def test_survives_copies_pickles_and_half_precision() -> None:
    made, x = head(branches=["cls", "reg"]).eval(), levels()
    want = made(x)[0]
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(twin(x)[0], want)
    half = copy.deepcopy(made).half()
    assert half([level.half() for level in x])[0].isfinite().all()


# ---------------------------------------------------------------------------------------------------- in a model


@pytest.fixture(scope="module")
def model() -> DetectionModel:
    return DetectionModel("gfl-shufflenetv2.yaml", nc=2, verbose=False)


def test_the_model_is_ultralytics_own_with_our_head(model: DetectionModel) -> None:
    assert type(model) is DetectionModel and isinstance(model.model[-1], Detect)
    assert model.model[-1].stride.tolist() == STRIDES
    assert max(model.stride.tolist()) == 32  # images need no sides that are multiples of 128


def test_the_model_builds_our_criterion_and_other_models_their_own(model: DetectionModel) -> None:
    assert isinstance(model.init_criterion(), GFLCriterion)
    stock = DetectionModel("yolo11n.yaml", nc=2, verbose=False)
    stock.args = None
    assert type(stock.init_criterion()) is v8DetectionLoss


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (192, 192)])
def test_any_multiple_of_32_goes_through(model: DetectionModel, height: int, width: int) -> None:
    with torch.no_grad():
        decoded, preds = model.eval()(torch.rand(1, 3, height, width))
    sides = [tuple(f.shape[-2:]) for f in preds["feats"]]
    assert sides[:3] == [(height // s, width // s) for s in (8, 16, 32)]
    assert sides[3:] == [(-(-height // s), -(-width // s)) for s in (64, 128)]
    assert decoded.shape[-1] == sum(h * w for h, w in sides)


def test_class_rows_are_taken_over_by_name(model: DetectionModel) -> None:
    model.names = {0: "herniation", 1: "normal"}
    other = DetectionModel("gfl-shufflenetv2.yaml", nc=3, verbose=False)
    other.names = {0: "scar", 1: "normal", 2: "herniation"}
    other.load(model, verbose=False)
    mine, theirs = other.model[-1].cv3[0][2].weight, model.model[-1].cv3[0][2].weight
    torch.testing.assert_close(mine[1], theirs[1])
    torch.testing.assert_close(mine[2], theirs[0])
