"""Backbones: maps, frozen statistics, images of other channels, weights from this machine, folding."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from meddet_yolo.nn import backbones
from meddet_yolo.nn.backbones import BACKBONES, Backbone
from meddet_yolo.nn.shufflenet import ShuffleNet, ShuffleUnit, shuffle

CHANNELS = {
    "resnet50": [512, 1024, 2048],
    "mobilenetv2": [32, 96, 1280],
    "mobilenetv2-1.4": [48, 136, 1792],
    "efficientnet-b0": [40, 112, 320],
    "efficientnet-b1": [40, 112, 320],
    "shufflenet": [240, 480, 960],
    "shufflenetv2": [116, 232, 464],
}


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def vary(module: nn.Module) -> None:
    """Give the normalisations statistics that make a wrong fold visible."""
    generator = torch.Generator().manual_seed(0)
    for m in norms(module):
        m.weight.data.uniform_(0.5, 1.5, generator=generator)
        m.running_mean.normal_(0, 0.1, generator=generator)
        m.running_var.uniform_(0.5, 2.0, generator=generator)


@pytest.mark.parametrize("name", CHANNELS)
def test_maps_of_strides_8_16_and_32(name: str) -> None:
    backbone = Backbone(name, pretrained=False).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS[name], (8, 16, 32), strict=True)
    ]
    assert backbone.channels == CHANNELS[name]
    for a, b in itertools.pairwise(maps):
        assert a.std() > 0 and b.std() > 0


def test_it_computes_what_torchvisions_network_computes() -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet50(weights=None).eval()
    backbone = Backbone("resnet50", pretrained=False).eval()
    vary(net)
    theirs = [v for k, v in net.state_dict().items() if not k.startswith("fc.")]
    own = {n: t for n, t in backbone.state_dict().items() if n != "frozen_bn"}
    backbone.load_state_dict({**dict(zip(own, theirs, strict=True)), "frozen_bn": torch.tensor(False)})
    x = torch.rand(1, 3, 64, 64)
    y = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(x)
    with torch.no_grad():
        y = net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(y))))))
        want = [y, net.layer3(y), net.layer4(net.layer3(y))]
        for got, wanted in zip(backbone(x), want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2", "efficientnet-b0", "shufflenet", "shufflenetv2"])
def test_folding_the_normalisations_changes_nothing(name: str) -> None:
    backbone = Backbone(name, pretrained=False).eval()
    vary(backbone)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = backbone(x)
        got = copy.deepcopy(backbone).fuse_norms()
        assert norms(backbone) and not norms(got)
        for a, b in zip(got(x), want, strict=True):
            assert float((a - b).abs().max()) < 1e-4 * float(b.abs().max())


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_and_others_move(frozen: bool) -> None:
    backbone = Backbone("shufflenetv2", pretrained=False, frozen_bn=frozen).train()
    before = [m.running_mean.clone() for m in norms(backbone)]
    sum(m.mean() for m in backbone(torch.rand(4, 3, 64, 64))).backward()
    same = all(torch.equal(m.running_mean, old) for m, old in zip(norms(backbone), before, strict=True))
    assert same is frozen
    assert all(m.weight.grad is not None for m in norms(backbone))  # weight and bias learn in either case


def test_a_checkpoint_tells_whether_statistics_are_frozen() -> None:
    frozen, free = (Backbone("shufflenetv2", pretrained=False, frozen_bn=f) for f in (True, False))
    free.load_state_dict(frozen.state_dict())
    assert not any(m.training for m in norms(free.train()))


def test_at_random_statistics_are_learnt() -> None:
    """Frozen at mean 0 and variance 1, a random network would be dead."""
    assert all(m.training for m in norms(Backbone("shufflenetv2", pretrained=False).train()))


def test_eps_stays_that_of_the_weights() -> None:
    from ultralytics.utils.torch_utils import initialize_weights

    backbone = Backbone("resnet50", pretrained=False)
    initialize_weights(backbone)  # what Ultralytics does to every model it builds
    assert {m.eps for m in norms(backbone)} == {1e-5}


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels(channels: int) -> None:
    torch.manual_seed(0)
    wide = Backbone("shufflenetv2", channels, pretrained=False).eval()
    torch.manual_seed(0)
    colour = Backbone("shufflenetv2", 3, pretrained=False).eval()
    # A grey picture says the same in any number of channels, but for ImageNet's means, which differ by colour.
    for mean_std in ("mean", "std"):
        getattr(colour, mean_std).fill_(float(getattr(wide, mean_std).flatten()[0]))
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        for a, b in zip(wide(grey.expand(-1, channels, -1, -1)), colour(grey.expand(-1, 3, -1, -1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------- weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    backbones._imagenet_file.cache_clear()
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    backbones._imagenet_file.cache_clear()


def test_weights_on_this_machine_are_used_and_freeze_the_statistics(hub: Path) -> None:
    net = torchvision.models.shufflenet_v2_x1_0(weights=None)
    vary(net)
    torch.save(net.state_dict(), hub / "shufflenetv2_x1-5666bf0f80.pth")
    backbone = Backbone("shufflenetv2")
    assert torch.equal(backbone.stages[0][0][0].weight, net.conv1[0].weight)
    assert bool(backbone.frozen_bn)
    assert not bool(Backbone("shufflenetv2", frozen_bn=False).frozen_bn)


def test_without_weights_one_warning_and_a_random_start(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(backbones.LOGGER, "warning", said.append)
    monkeypatch.setattr(backbones, "may_fetch", lambda: False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("asked the network"))
    for _ in range(2):
        assert not bool(Backbone("shufflenetv2").frozen_bn)
    assert len(said) == 1 and "\n" not in said[0]
    assert "No ImageNet weights for shufflenetv2" in said[0] and "starts at random" in said[0]


def test_a_download_that_fails_is_given_up_after_a_while(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    waits: list[float | None] = []

    def fail(*args: object, **kwargs: object) -> None:
        waits.append(socket.getdefaulttimeout())
        raise TimeoutError("no answer")

    said: list[str] = []
    monkeypatch.setattr(backbones.LOGGER, "warning", said.append)
    monkeypatch.setattr(backbones, "may_fetch", lambda: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    Backbone("shufflenetv2")
    assert waits and waits[0] is not None and waits[0] <= 10
    assert socket.getdefaulttimeout() is None  # as it was
    assert "cannot be loaded (TimeoutError)" in said[0]


def test_every_network_with_weights_has_an_address() -> None:
    for name, network in backbones._NETWORKS.items():
        if network.weights:
            assert torchvision.models.get_weight(backbones._weights_name(network.weights)).url.endswith(".pth"), name


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        Backbone("resnet5")
    with pytest.raises(ValueError, match="frozen_bn must be true, false or auto"):
        Backbone("resnet50", frozen_bn="yes")
    assert set(CHANNELS) < set(BACKBONES)


# ---------------------------------------------------------------------------------------------------- ShuffleNet


def test_shufflenet_has_the_size_that_its_paper_gives() -> None:
    """ShuffleNet 1x (g=3): 137 to 140 million multiply-adds at 224 px with its classifier."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ShuffleNet().eval()(torch.zeros(1, 3, 224, 224))
    assert (counter.get_total_flops() / 2 + 960 * 1000) / 1e6 == pytest.approx(137, rel=0.03)


def test_the_shuffle_is_torchs() -> None:
    x = torch.randn(2, 12, 3, 3)
    assert torch.equal(shuffle(x), torch.nn.functional.channel_shuffle(x, 3))


def test_a_unit_mixes_its_groups() -> None:
    """After the shuffle every output depends on inputs of every group."""
    torch.manual_seed(0)
    unit = ShuffleUnit(240, 240).eval()
    x = torch.randn(1, 240, 4, 4, requires_grad=True)
    (unit.expand(unit.depthwise(shuffle(unit.compress(x))))[0, 0].sum()).backward()
    touched = x.grad.abs().sum((0, 2, 3)).view(3, 80).sum(1)
    assert (touched > 0).all()


def test_nmode_stands_behind_the_maps_where_it_is_asked_for() -> None:
    from meddet_yolo.nn.gfl import FPN
    from meddet_yolo.nn.nmode import NmODE2Activation

    act, images = NmODE2Activation(standardise=True), torch.rand(1, 3, 64, 64)
    for build in (
        lambda nmode: Backbone("shufflenetv2", pretrained=False, nmode=nmode),
        lambda nmode: FPN([8, 16], nmode=nmode),
    ):
        torch.manual_seed(0)
        plain = build(False).eval()
        torch.manual_seed(0)
        placed = build(True).eval()
        given = images if isinstance(plain, Backbone) else [torch.rand(1, 8, 8, 8), torch.rand(1, 16, 4, 4)]
        for before, after in zip(plain(given), placed(given), strict=True):
            torch.testing.assert_close(act(before), after)
        assert placed.state_dict().keys() == plain.state_dict().keys()
