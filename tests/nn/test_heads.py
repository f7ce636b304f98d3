"""The nmODE² head: where nmODE² sits, what it computes, and that it survives all that Ultralytics does to a head."""

import copy
import gzip
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import DetectionModel

from meddet_yolo.nn.heads import INJECTIONS, NmODE2Detect
from meddet_yolo.nn.nmode import NmODE2, NmODE2Activation, nmode2
from meddet_yolo.nn.nmode.forms import NmODE2Beside, NmODE2Gate
from meddet_yolo.nn.nmode.start import moments, start_of

CHANNELS = (16, 32)
SETS = {"cv2": "reg", "cv3": "cls", "one2one_cv2": "reg", "one2one_cv3": "cls"}
SUBSETS = (["cls", "reg"], ["cls"], ["reg"], [])
OPTIONS = [{"inject": inject, "branches": branches} for inject in INJECTIONS for branches in SUBSETS]
OPTIONS += [{"inject": inject, "branches": ["cls", "reg"], "levels": [1]} for inject in INJECTIONS]


def randomize(module: nn.Module) -> nn.Module:
    """Give statistics, biases and factors that make a wrong fusion or a dropped block visible."""
    generator = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 2.0, generator=generator)
            m.bias.data.normal_(generator=generator)
            m.running_mean.normal_(generator=generator)
            m.running_var.uniform_(0.5, 2.0, generator=generator)
        elif isinstance(m, NmODE2Beside):
            m.factor.data.normal_(generator=generator)
        elif isinstance(m, NmODE2Gate):
            m.out.weight.data.normal_(std=0.1, generator=generator)
    return module


def maps(batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, c, 8 // (i + 1), 8 // (i + 1), generator=generator) for i, c in enumerate(CHANNELS)]


def build(**kwargs: object) -> NmODE2Detect:
    torch.manual_seed(0)
    head = NmODE2Detect(**{"nc": 3, "ch": CHANNELS, **kwargs})
    head.stride = torch.tensor([8.0, 16.0])
    return randomize(head)


def model(name: str = "meddet-n.yaml", nc: int = 3, **overrides: object) -> DetectionModel:
    """A full model from a shipped YAML; keywords are options of the head, or keys of the YAML."""
    config = tasks.yaml_model_load(name)
    top = {k: overrides.pop(k) for k in ("end2end", "reg_max") if k in overrides}
    config.update(top)
    config["head"][-1][3][1].update(overrides)
    torch.manual_seed(0)
    return randomize(DetectionModel(config, nc=nc, verbose=False))


def last_conv(level: nn.Sequential) -> Conv:
    return [m for m in level[:-1].modules() if isinstance(m, Conv)][-1]


def raw(out: dict) -> dict[str, torch.Tensor]:
    """The tensors of a training output, one-to-one branch included."""
    if "one2many" not in out:
        return {k: out[k] for k in ("boxes", "scores")}
    return {f"{branch}.{k}": v for branch in ("one2many", "one2one") for k, v in raw(out[branch]).items()}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize("reg_max", [1, 16])
def test_nmode_sits_in_the_chosen_branches_only(options: dict, legacy: bool, end2end: bool, reg_max: int) -> None:
    head = build(**options, legacy=legacy, end2end=end2end, reg_max=reg_max)
    assert isinstance(head, Detect)
    for name, branch in SETS.items():
        if getattr(head, name, None) is None:
            assert not end2end
            continue
        in_branch = branch in options["branches"]
        for index, level in enumerate(getattr(head, name)):
            wanted = in_branch and index in options.get("levels", [0, 1])
            activations = [m for m in level.modules() if isinstance(m, NmODE2Activation)]
            assert len(activations) == (wanted and options["inject"] in ("act", "beside"))
            kind = {"act": NmODE2Activation, "beside": NmODE2Beside}.get(options["inject"], ()) if wanted else ()
            assert isinstance(last_conv(level).act, kind or nn.SiLU)
            assert isinstance(level[2], nn.Conv2d)  # INT8 exclusion looks for the prediction layer at index 2
        extra = name.replace("cv2", "nmode_reg").replace("cv3", "nmode_cls")
        blocks = getattr(head, extra, None)
        assert (blocks is not None) == (in_branch and options["inject"] in ("conv", "gate"))
        for index, (block, level) in enumerate(zip(blocks or (), getattr(head, name), strict=blocks is not None)):
            if index in options.get("levels", [0, 1]):
                assert block.conv.in_channels == level[2].in_channels
            else:
                assert type(block) is nn.Identity
    out = raw(head.train()(maps(2)))
    anchors = 8 * 8 + 4 * 4
    for key, value in out.items():
        assert value.shape == (2, 4 * reg_max if key.endswith("boxes") else 3, anchors)


@pytest.mark.parametrize("legacy", [False, True])
def test_act_equals_a_stock_head_with_the_activation_written_out(legacy: bool) -> None:
    head = build(legacy=legacy).eval()
    x = maps()
    got = head.forward_head(x, **head.one2many)
    for key, layers in (("boxes", head.cv2), ("scores", head.cv3)):
        want = []
        for xi, level in zip(x, layers, strict=True):
            y = level[0](xi)
            inner = level[1] if isinstance(level[1], nn.Sequential) else [level[1]]
            for conv in list(inner)[:-1]:
                y = conv(y)
            conv, start = inner[-1], start_of(1.0)
            want.append(level[2]((nmode2(conv.bn(conv.conv(y))) - start.mean) / start.std).flatten(2))
        torch.testing.assert_close(got[key], torch.cat(want, -1))


def test_conv_runs_its_block_between_the_branch_and_the_prediction() -> None:
    head = build(inject="conv", branches=["cls"]).eval()
    x = maps()
    got = head.forward_head(x, **head.one2many)
    want = [lv[2](b(lv[1](lv[0](xi)))).flatten(2) for xi, lv, b in zip(x, head.cv3, head.nmode_cls, strict=True)]
    torch.testing.assert_close(got["scores"], torch.cat(want, -1))
    stock = Detect.forward_head(head, x, head.cv2, head.cv3)
    assert torch.equal(got["boxes"], stock["boxes"])
    assert not torch.allclose(got["scores"], stock["scores"])


def test_beside_adds_the_standardised_ode_to_the_activation() -> None:
    head = build(inject="beside", branches=["reg"]).eval()
    x = maps()
    want = []
    for xi, level in zip(x, head.cv2, strict=True):
        g = level[1].bn(level[1].conv(level[0](xi)))
        mean, std = moments(1.0)
        y = (nmode2(g) - mean) / std
        want.append(level[2](nn.functional.silu(g) + level[1].act.factor.view(1, -1, 1, 1) * y).flatten(2))
    got = head.forward_head(x, **head.one2many)
    torch.testing.assert_close(got["boxes"], torch.cat(want, -1))
    assert torch.equal(got["scores"], Detect.forward_head(head, x, head.cv2, head.cv3)["scores"])


def test_gate_multiplies_a_linear_path_by_the_ode() -> None:
    head = build(inject="gate", branches=["cls"]).eval()
    x = maps()
    want = []
    for xi, level, gate in zip(x, head.cv3, head.nmode_cls, strict=True):
        y = level[1](level[0](xi))
        y = y + gate.out(gate.linear(y) * nmode2(gate.bn(gate.conv(y))))
        want.append(level[2](y).flatten(2))
    torch.testing.assert_close(head.forward_head(x, **head.one2many)["scores"], torch.cat(want, -1))


@pytest.mark.parametrize("inject", ["beside", "gate"])
@pytest.mark.parametrize("name", ["meddet-n.yaml", "meddet11-n.yaml"])
def test_a_stock_model_and_its_weights_compute_the_same_bits_at_the_start(name: str, inject: str) -> None:
    """In training, in inference and fused: pretrained weights keep their mAP at step 0."""
    torch.manual_seed(0)
    stock = randomize(DetectionModel({"meddet-n.yaml": "yolo26n.yaml"}.get(name, "yolo11n.yaml"), nc=3, verbose=False))
    config = tasks.yaml_model_load(name)
    config["head"][-1][3][1].update(inject=inject)
    net = DetectionModel(config, nc=3, verbose=False)
    net.load(stock, verbose=False)
    theirs, ours = stock.state_dict(), net.state_dict()
    assert not set(theirs) - set(ours) and all(torch.equal(ours[k], v) for k, v in theirs.items())
    x = torch.rand(2, 3, 64, 64)
    for got, want in zip(raw(net.train()(x)).values(), raw(stock.train()(x)).values(), strict=True):
        assert torch.equal(got, want)
    for a, b in ((net.eval(), stock.eval()), (net.fuse(verbose=False), stock.fuse(verbose=False))):
        with torch.no_grad():
            assert torch.equal(a(x)[0], b(x)[0])
    half, stock_half = copy.deepcopy(net).half(), copy.deepcopy(stock).half()
    with torch.no_grad():
        assert torch.equal(half(x.half())[0], stock_half(x.half())[0])


def test_a_head_pickled_before_there_were_levels_to_choose_has_them_all() -> None:
    head = build(inject="gate")
    del head.__dict__["levels"]
    head.cv3 = Detect(40, ch=list(CHANNELS)).cv3
    assert [b.conv.in_channels for b in head.nmode_cls] == [40, 40]
    assert "levels" not in head.extra_repr()


def test_a_head_pickled_before_there_were_other_forms_says_what_it_said() -> None:
    file = Path(__file__).parent / "files" / "head_act.pt.gz"  # written by version 0.1.0, `inject="act"`
    with gzip.open(file) as stream:
        saved = torch.load(io.BytesIO(stream.read()), weights_only=False)
    head = saved["head"]
    assert type(head) is NmODE2Detect and head.inject == "act"
    torch.testing.assert_close(head(saved["maps"])[0], saved["predictions"])
    head.cv3 = copy.deepcopy(head.cv3)  # its own options rule, not today's defaults
    head.fuse()
    torch.testing.assert_close(head(saved["maps"])[0], saved["predictions"])
    assert len([m for m in head.modules() if type(m) is NmODE2Activation]) == 2
    assert not any(isinstance(m, NmODE2Beside) for m in head.modules())


@pytest.mark.parametrize("inject", INJECTIONS)
def test_a_head_passes_safe_loading(inject: str) -> None:
    head = build(inject=inject).eval()
    buffer = io.BytesIO()
    torch.save(head, buffer)
    buffer.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    assert not [name for name in names if name.startswith("meddet_yolo")]


def test_learnt_factors_move_with_layers_into_another_head() -> None:
    source = build(nc=7, inject="beside", t_end=2.0)
    head = build(inject="beside").half()
    layers = copy.deepcopy(source.cv3).half().requires_grad_(False)
    head.cv3 = layers
    for level, other in zip(head.cv3, source.cv3, strict=True):
        act = last_conv(level).act
        assert act.ode.t_end == 1.0 and act.factor.dtype == torch.float16 and not act.factor.requires_grad
        assert torch.equal(act.factor, last_conv(other).act.factor.half()) and act.factor.abs().min() > 0
    head.cv3 = copy.deepcopy(Detect(7, ch=list(CHANNELS)).cv3)
    assert all((last_conv(level).act.factor == 0).all() for level in head.cv3)


def test_no_branch_means_a_plain_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detect, "legacy", False)  # Ultralytics leaves the last built model's on the class
    head = build(branches=[])
    stock = Detect(3, ch=list(CHANNELS))
    assert head.state_dict().keys() == stock.state_dict().keys()
    stock.load_state_dict(head.state_dict())
    for a, b in zip(raw(head.train()(maps())).values(), raw(stock.train()(maps())).values(), strict=True):
        assert torch.equal(a, b)


def test_from_detect_takes_over_the_layers_and_keeps_legacy_to_itself() -> None:
    Detect.legacy = True
    try:
        stock = Detect(3, 16, False, list(CHANNELS))
    finally:
        Detect.legacy = False
    state = {k: v.clone() for k, v in stock.state_dict().items()}
    head = NmODE2Detect.from_detect(stock, branches=["reg"])
    assert head.legacy and not NmODE2Detect.legacy and not Detect.legacy
    assert NmODE2Detect(3, ch=CHANNELS).legacy is False
    assert (head.nc, head.reg_max, head.nl) == (3, 16, 2)
    started = {f"cv2.{i}.1.bn.{part}" for i in range(2) for part in ("weight", "bias")}
    assert {k for k, v in head.state_dict().items() if not torch.equal(v, state[k])} == started
    plain = NmODE2Detect.from_detect(Detect(3, ch=CHANNELS), standardise=False)
    assert all((m.weight == 1).all() for m in plain.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_output_of_nmode_starts_standardised_and_rises_with_its_input() -> None:
    conv = NmODE2Detect(3, ch=CHANNELS).cv2[0][1].train()
    x = torch.randn(64, conv.conv.in_channels, 16, 16)
    y = conv(x)
    assert y.mean().abs() < 0.02 and (y.std() - 1).abs() < 0.02
    z = torch.nn.functional.batch_norm(conv.conv(x), None, None, training=True)
    assert torch.corrcoef(torch.stack([z.flatten(), y.flatten()]))[0, 1] > 0.9


def test_restart_is_for_what_was_trained_with_another_activation() -> None:
    net, stock = model("meddet11-n.yaml", inject="act"), DetectionModel("yolo11n.yaml", nc=3, verbose=False)
    norm = net.model[-1].cv2[0][1].bn
    with torch.no_grad():
        stock.model[-1].cv2[0][1].bn.weight.fill_(3.0)
        norm.weight.fill_(2.0)
    own = copy.deepcopy(net)
    net.load(stock, verbose=False)
    assert torch.allclose(norm.weight, torch.tensor(-start_of(1.0).weight))
    net.load(own, verbose=False)
    assert torch.equal(norm.weight, torch.full_like(norm.weight, 2.0))
    net.load(model("meddet11-n.yaml", inject="beside"), verbose=False)  # one of ours, but trained for a SiLU
    assert torch.allclose(norm.weight, torch.tensor(-start_of(1.0).weight))


def test_from_detect_refuses_heads_of_other_tasks() -> None:
    from ultralytics.nn.modules import Segment

    with pytest.raises(TypeError, match="Segment"):
        NmODE2Detect.from_detect(Segment(3, 8, 16, 16, False, list(CHANNELS)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": ["box"]}, "'box' is no branch"),
        ({"inject": "neck"}, "inject='neck'"),
        ({"levels": [2]}, "levels=\\[2\\]: expected numbers from 0, the finest, to 1"),
        ({"levels": []}, "levels="),
        ({"levels": "P4"}, "levels="),
        ({"t_end": -1.0}, "t_end"),
        ({"solver": "clsed"}, "closed"),
        ({"branches": [], "solver": "nope"}, "nope"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NmODE2Detect(3, ch=CHANNELS, **options)


def test_options_reach_the_activations_and_the_repr() -> None:
    head = build(t_end=2.0, solver="rk4", steps=4, branches="cls", end2end=True, reg_max=1)
    acts = [m for m in head.modules() if isinstance(m, NmODE2Activation)]
    assert len(acts) == 4 and all((a.t_end, a.solver, a.steps) == (2.0, "rk4", 4) for a in acts)
    text = head.extra_repr()
    assert text == "nc=3, reg_max=1, one2one=True, branches=[cls], inject=act, t_end=2.0, solver=rk4, steps=4"
    assert "inject=gate, levels=[0, 1], " in build(inject="gate", levels=[1, 0, 1], t_end=2.0).extra_repr()


@pytest.mark.parametrize("inject", INJECTIONS)
@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize("form", ["onnx", "openvino", "engine", "imx", "torchscript"])
@pytest.mark.parametrize("levels", [None, [1]])
def test_an_export_says_the_same(inject: str, end2end: bool, form: str, levels: list[int] | None) -> None:
    head = build(inject=inject, levels=levels, end2end=True).eval()
    head.end2end = end2end
    head.max_det = 20
    with torch.no_grad():
        want = head(maps())[0]
        head.export, head.format = True, form
        assert torch.equal(head(maps()), want)
        scores = head.forward_head(maps(), **head.one2many)["scores"]
    probabilities = bool((scores >= 0).all() and (scores <= 1).all())
    assert probabilities == (form in ("onnx", "openvino", "engine"))


@pytest.mark.parametrize("inject", INJECTIONS)
@pytest.mark.parametrize("reg_max", [1, 16])
@pytest.mark.parametrize("end2end", [None, False, True])
@pytest.mark.parametrize("levels", [None, [1, 2]])
def test_fuse_keeps_the_output_and_drops_what_is_not_used(
    inject: str, reg_max: int, end2end: bool | None, levels: list[int] | None
) -> None:
    """`end2end` None: no one-to-one branch; False and True: it is there, and inference does not use it or does."""
    net = model(inject=inject, levels=levels, reg_max=reg_max, end2end=end2end is not None).eval()
    if end2end is not None:
        net.end2end = end2end
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = net(x)[0]
        net.fuse(verbose=False)
        got = net(x)[0]
    if end2end:  # boxes in the order of scores, of which two may be as good as equal
        nearest = torch.cdist(want[0], got[0]).argmin(1)
        assert len(set(nearest.tolist())) == want.shape[1]
        got = got[:, nearest]
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-4)
    assert net.is_fused()
    head = net.model[-1]
    names = {name for name, child in head.named_children() if child is not None}
    wanted = {"cv2", "cv3"} | ({"nmode_reg", "nmode_cls"} if inject in ("conv", "gate") else set())
    assert names - {"dfl"} == ({f"one2one_{n}" for n in wanted} if end2end else wanted)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in head.modules())


@pytest.mark.parametrize("inject", INJECTIONS)
def test_every_parameter_gets_a_gradient(inject: str) -> None:
    head = build(inject=inject, end2end=True, reg_max=1).train()
    sum(v.square().mean() for v in raw(head(maps(2))).values()).backward()
    missing = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing


@pytest.mark.parametrize("inject", INJECTIONS)
def test_copies_compute_the_same(inject: str) -> None:
    head = build(inject=inject, end2end=True).eval()
    want = head(maps())[0]
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(other(maps())[0], want)
        assert (other.branches, other.inject, other.ode, other.legacy) == (head.branches, head.inject, head.ode, False)
        other.cv3 = copy.deepcopy(other.cv3)  # the hook works in copies too
        assert torch.equal(other(maps())[0], want)


@pytest.mark.parametrize("inject", INJECTIONS)
def test_channels_last_and_half(inject: str) -> None:
    head = build(inject=inject).eval()
    want = head(maps())[0]
    got = head.to(memory_format=torch.channels_last)([x.to(memory_format=torch.channels_last) for x in maps()])[0]
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)
    half = copy.deepcopy(head).half()
    assert all(p.dtype == torch.float16 for p in half.parameters())
    out = half([x.half() for x in maps()])[1]
    assert all(v.dtype == torch.float16 and v.isfinite().all() for v in raw(out).values())
    torch.testing.assert_close(out["scores"].float(), head(maps())[1]["scores"], atol=0.05, rtol=0.05)


@pytest.mark.slow("compiles")
def test_torch_compile_traces_the_head_in_one_graph() -> None:
    for inject in INJECTIONS:
        head = build(inject=inject, end2end=True).train()
        compiled = torch.compile(head, backend="eager", fullgraph=True)
        x = maps(2)
        for a, b in zip(raw(compiled(x)).values(), raw(copy.deepcopy(head)(x)).values(), strict=True):
            torch.testing.assert_close(a, b)


def test_replaced_layers_get_nmode_back_and_their_own_options() -> None:
    """What `BaseModel.load` does with weights of another class count."""
    for source in (Detect(7, ch=list(CHANNELS)), build(nc=7, t_end=2.0)):
        head = build()
        head.cv3 = copy.deepcopy(source.cv3)
        assert all(last_conv(level).act.t_end == 1.0 for level in head.cv3)
    head = build(branches=["reg"])
    head.cv3 = copy.deepcopy(build().cv3)
    assert all(isinstance(last_conv(level).act, nn.SiLU) for level in head.cv3)


def test_replaced_layers_of_another_width_get_blocks_of_that_width() -> None:
    head = build(inject="conv").half()
    head.requires_grad_(False)
    wide = Detect(40, ch=list(CHANNELS)).half().requires_grad_(False)  # hidden width follows the class count
    head.cv3 = wide.cv3
    assert [b.conv.in_channels for b in head.nmode_cls] == [40, 40]
    for block in head.nmode_cls:
        assert isinstance(block, NmODE2) and block.conv.weight.dtype == torch.float16
        assert not any(p.requires_grad for p in block.parameters())
        assert block.bn.eps == 1e-3
    assert [b.conv.in_channels for b in head.nmode_reg] == [level[2].in_channels for level in head.cv2]


def test_replaced_layers_get_nmode_at_the_chosen_levels_only() -> None:
    head = build(inject="gate", levels=[1])
    learnt = head.nmode_cls[1]
    head.cv3 = Detect(3, ch=list(CHANNELS)).cv3
    assert head.nmode_cls[1] is learnt  # of the same width: what it has learnt stays
    head.cv3 = Detect(40, ch=list(CHANNELS)).cv3
    assert [getattr(getattr(b, "conv", None), "in_channels", None) for b in head.nmode_cls] == [None, 40]


@pytest.mark.parametrize("inject", INJECTIONS)
@pytest.mark.parametrize("name", ["meddet-n.yaml", "meddet11-n.yaml"])
def test_weights_of_another_class_count_load_with_nmode_in_place(name: str, inject: str) -> None:
    source, net = model(name, nc=90, inject=inject), model(name, nc=3, inject=inject)
    before = len([m for m in net.modules() if isinstance(m, NmODE2Activation)])
    net.load(source, verbose=False)
    assert len([m for m in net.modules() if isinstance(m, NmODE2Activation)]) == before
    head, other = net.model[-1].state_dict(), source.model[-1].state_dict()
    differing = [k for k in head if head[k].shape != other[k].shape or not torch.equal(head[k], other[k])]
    assert differing and all(".2." in k and "cv3" in k for k in differing)  # class predictions only
    assert net.eval()(torch.zeros(1, 3, 64, 64))[0].shape[1] == 4 + 3


@pytest.mark.parametrize(("inject", "kind"), [("act", NmODE2Activation), ("beside", NmODE2Beside)])
def test_activation_named_by_the_yaml_stays_in_the_other_layers(inject: str, kind: type) -> None:
    config = tasks.yaml_model_load("meddet-n.yaml") | {"activation": "nn.ReLU()"}
    config["head"][-1][3][1].update(inject=inject)
    net = DetectionModel(config, nc=3, verbose=False)
    acts = [m.act for m in net.model[-1].modules() if isinstance(m, Conv)]
    assert {type(act) for act in acts} == {nn.ReLU, kind}
    assert inject == "act" or all(type(act.act) is nn.ReLU for act in acts if type(act) is kind)
    sum(v.sum() for v in raw(net.train()(torch.rand(2, 3, 64, 64))).values()).backward()  # ReLU works in place
