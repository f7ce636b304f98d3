"""Inheritance: the channels and blocks that a student takes over, what it computes with them, and what is refused."""

from pathlib import Path

import cv2
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import mobilenetv2, resnet
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules import SPPF, Bottleneck, C3k2, Concat, Conv
from ultralytics.nn.modules.block import Attention, PSABlock
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

import meddet_yolo  # noqa: F401  # its layers in model YAMLs
from meddet_yolo.distill.inherit import CHANNELS, InheritError, best_fit, inherit, recalibrate
from meddet_yolo.distill.inherit.blocks import BLOCKS
from meddet_yolo.distill.inherit.heads import fpn
from meddet_yolo.distill.inherit.spaces import Axis, Space
from meddet_yolo.distill.inherit.walk import Walk
from meddet_yolo.nn.gfl import FPN

ROOT = Path(__file__).parents[2]
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


class TestSpaces:
    @given(
        wanted=st.integers(1, 20),
        more=st.integers(0, 30),
        parts=st.integers(1, 4),
        more_parts=st.integers(0, 4),
        by=st.sampled_from(CHANNELS),
    )
    def test_channels_are_distinct_ascending_and_equally_many_of_every_part(self, wanted, more, parts, more_parts, by):
        size, all_parts = wanted + more, parts + more_parts
        space = Space(parts * wanted, all_parts * size, Space(parts, all_parts))
        space.add_score(torch.rand(all_parts * size) + 0.1)
        chosen = space.choose(by)
        assert (chosen.diff() > 0).all() and chosen[0] >= 0 and chosen[-1] < all_parts * size
        assert set((chosen // size).bincount().tolist()) <= {0, wanted}

    @given(student=st.integers(1, 64), more=st.integers(0, 64))
    def test_even_channels_are_those_of_weight_selection(self, student, more):
        teacher = student + more
        assert Space(student, teacher).choose("even").tolist() == [i * teacher // student for i in range(student)]

    def test_joined_spaces_choose_alike_by_the_scores_of_both(self):
        one, two = Space(1, 3), Space(1, 3)
        one.join(two)
        one.add_score(torch.tensor([1.0, 0.0, 0.8]))
        two.add_score(torch.tensor([0.0, 1.0, 0.8]))
        assert one.choose("importance").tolist() == two.choose("importance").tolist() == [2]

    def test_every_tensor_counts_alike_whatever_its_scale(self):
        space = Space(1, 2)
        space.add_score(torch.tensor([1000.0, 1100.0]))
        space.add_score(torch.tensor([0.2, 0.1]))
        assert space.choose("importance").tolist() == [0]

    def test_unequal_spaces_cannot_be_added(self):
        with pytest.raises(ValueError, match="2 and 3 in the student, 4 and 4 in the teacher"):
            Space(2, 4).join(Space(3, 4))

    def test_concatenated_parts_are_chosen_within_their_own_range(self):
        axis = Axis.cat([Axis.of(Space(2, 4)), Axis.of(Space(1, 6)), Axis.of(Space(2, 2))])
        assert axis.index("even").tolist() == [0, 2, 4, 10, 11]


class Rows(nn.Module):
    """A detector's rows without a head: what the hand-checked networks are made of."""

    def __init__(self, *rows: tuple[int | list[int], nn.Module]) -> None:
        super().__init__()
        self.model = nn.Sequential(*(module for _, module in rows))
        for source, module in rows:
            module.f = source


def concatenation(a: int, b: int, c: int) -> Rows:
    return Rows((-1, Conv(3, a)), (-1, Conv(a, b)), ([0, 1], Concat(1)), (-1, Conv(a + b, c)))


class TestByHand:
    def test_a_concatenation(self):
        student, teacher = concatenation(2, 2, 1), concatenation(4, 6, 3)
        report = inherit(student, teacher)
        w = [teacher.model[i].conv.weight for i in (0, 1, 3)]
        mine = [student.model[i].conv.weight for i in (0, 1, 3)]
        assert torch.equal(mine[0], w[0][[0, 2]])
        torch.testing.assert_close(mine[1], w[1][[0, 3]][:, [0, 2]] * 2**0.5)
        torch.testing.assert_close(mine[2], w[2][[0]][:, [0, 2, 4, 7]] * (10 / 4) ** 0.5)
        assert torch.equal(student.model[1].bn.running_var, teacher.model[1].bn.running_var[[0, 3]])
        assert (report.tensors, report.total_tensors, report.share, report.left) == (18, 18, 1.0, {})

    def test_without_rescaling_weights_are_those_of_the_teacher(self):
        student, teacher = concatenation(2, 2, 1), concatenation(4, 6, 3)
        inherit(student, teacher, rescale=False)
        assert torch.equal(student.model[3].conv.weight, teacher.model[3].conv.weight[[0]][:, [0, 2, 4, 7]])

    def test_importance_finds_planted_channels_and_keeps_to_them(self):
        student, teacher = concatenation(2, 2, 1), concatenation(4, 6, 3)
        with torch.no_grad():
            teacher.model[0].bn.weight[[1, 3]] = 1e4  # more than random readers can make up for
            teacher.model[3].conv.weight[:, 4 + torch.tensor([4, 5])] *= 1e4  # what the last layer reads of the second
        inherit(student, teacher, channels="importance", rescale=False)
        w = teacher.model[3].conv.weight
        assert torch.equal(student.model[0].conv.weight, teacher.model[0].conv.weight[[1, 3]])
        assert torch.equal(student.model[1].conv.weight, teacher.model[1].conv.weight[[4, 5]][:, [1, 3]])
        assert any(torch.equal(student.model[3].conv.weight[0], row[[1, 3, 8, 9]]) for row in w)

    def test_the_size_of_a_filter_does_not_count_before_a_normalisation(self):
        student, teacher = concatenation(2, 2, 1), concatenation(4, 6, 3)
        with torch.no_grad():
            teacher.model[0].bn.weight[[1, 3]] = 1e4
            teacher.model[0].conv.weight[[0, 2]] *= 1e6
        inherit(student, teacher, channels="importance")
        torch.testing.assert_close(student.model[0].conv.weight, teacher.model[0].conv.weight[[1, 3]])

    def test_a_block_that_is_left_out_gives_its_readers_its_input(self):
        rows = [Rows((-1, Conv(3, 4)), (-1, C3k2(4, 4, n))) for n in (1, 2)]
        student, teacher = (model.eval() for model in rows)
        inherit(student, teacher)
        w = teacher.model[1].cv2.conv.weight  # halves 0:2 and 2:4, blocks 4:6 and 6:8
        expected = torch.cat([w[:, :4], w[:, 4:6] + w[:, 6:8]], 1)
        torch.testing.assert_close(student.model[1].cv2.conv.weight, expected)

    def test_attention_by_whole_heads(self):
        torch.manual_seed(0)
        student, teacher = (Rows((-1, Conv(3, c)), (-1, Attention(c, heads))) for c, heads in ((8, 2), (16, 4)))
        inherit(student, teacher, rescale=False)
        mine, other = student.model[1], teacher.model[1]
        rows = [*range(0, 8), *range(16, 24)]  # of a head: 2 of query, 2 of key, 4 of value; heads 0 and 2
        values = [*range(0, 4), *range(8, 12)]
        assert torch.equal(mine.qkv.conv.weight, other.qkv.conv.weight[rows][:, ::2])
        assert torch.equal(mine.qkv.bn.bias, other.qkv.bn.bias[rows])
        assert torch.equal(mine.pe.conv.weight, other.pe.conv.weight[values])
        assert torch.equal(mine.proj.conv.weight, other.proj.conv.weight[::2][:, values])

    def test_attention_of_narrower_heads(self):
        student, teacher = (Rows((-1, Conv(3, c)), (-1, Attention(c, 1))) for c in (8, 16))
        inherit(student, teacher)
        mine, other = student.model[1].qkv.bn.weight, teacher.model[1].qkv.bn.weight
        rows = torch.tensor([*range(0, 8, 2), *range(8, 16, 2), *range(16, 32, 2)])
        gain = torch.tensor([2**0.5] * 4 + [1.0] * 12)  # half as many products a logit, over the root of half as many
        torch.testing.assert_close(mine, other[rows] * gain)

    def test_attention_of_wider_heads_is_left_out_with_a_word(self):
        student, teacher = Rows((-1, Conv(3, 8)), (-1, Attention(8, 1))), Rows((-1, Conv(3, 8)), (-1, Attention(8, 2)))
        before = state(student.model[1])
        report = inherit(student, teacher)
        assert all(torch.equal(tensor, before[name]) for name, tensor in student.model[1].state_dict().items())
        assert list(report.left) == ["attention of 1 x 8 channels, 2 x 4 in the teacher"]

    def test_a_stage_of_resnet(self):
        def stage(width: int, blocks: int) -> Rows:
            short_cut = nn.Sequential(nn.Conv2d(4 * width, 8 * width, 1, bias=False), nn.BatchNorm2d(8 * width))
            first = resnet.Bottleneck(4 * width, 2 * width, downsample=short_cut)
            others = [resnet.Bottleneck(8 * width, 2 * width) for _ in range(blocks - 1)]
            return Rows((-1, Conv(3, 4 * width)), (-1, nn.Sequential(first, *others)))

        student, teacher = stage(1, 3), stage(2, 6)
        assert inherit(student, teacher, rescale=False).share == 1.0
        for i, j in enumerate((0, 3, 5)):
            mine, other = student.model[1][i], teacher.model[1][j]
            assert torch.equal(mine.conv2.weight, other.conv2.weight[::2][:, ::2])
            assert torch.equal(mine.conv3.weight, other.conv3.weight[::2][:, ::2])
        mine, other = student.model[1][0].downsample, teacher.model[1][0].downsample
        assert torch.equal(mine[0].weight, other[0].weight[::2][:, ::2])

    @pytest.mark.parametrize(
        ("block", "last"),
        [
            (lambda c: Bottleneck(c, c), "cv2.bn"),
            (lambda c: PSABlock(c, num_heads=1), "ffn.1.bn"),
            (lambda c: PSABlock(c, num_heads=1), "attn.proj.bn"),
            (lambda c: SPPF(c, c, shortcut=True), "cv2.bn"),
            (lambda c: resnet.Bottleneck(c, c // 4), "bn3"),
            (lambda c: mobilenetv2.InvertedResidual(c, c, 1, 2), "conv.3"),
        ],
    )
    def test_importance_is_that_of_all_maps_that_are_added(self, block, last):
        student, teacher = (Rows((-1, Conv(3, c)), (-1, block(c))) for c in (4, 8))
        with torch.no_grad():
            teacher.model[0].bn.weight[[0, 1]] = 50.0
            teacher.model[1].get_submodule(last).weight[[6, 7]] = 50.0
            for model in (student, teacher):
                for tensor in (model.model[0].bn.bias, model.model[1].get_submodule(last).bias):
                    tensor.copy_(torch.arange(len(tensor)))  # says which channel it is
        inherit(student, teacher, channels="importance")
        assert student.model[0].bn.bias.tolist() == [0, 1, 6, 7]
        assert student.model[1].get_submodule(last).bias.tolist() == [0, 1, 6, 7]

    def test_the_levels_of_a_pyramid_keep_to_the_same_channels(self):
        walk = Walk("the student", "the teacher", BLOCKS)
        student, teacher = (FPN([8, 8, 8], channels, 4) for channels in (16, 32))
        levels = fpn(walk, student, teacher, [Axis.of(Space(8, 8)) for _ in range(3)])
        roots = [link.out.parts[0].space.root() for link in walk.links[:3]]
        assert roots[0] is roots[1] is roots[2]
        assert [(axis.student, axis.teacher) for axis in levels] == [(16, 32)] * 4


class TestSameSize:
    @pytest.mark.parametrize("layout", FAMILIES)
    def test_the_student_equals_its_teacher(self, layout):
        student, teacher = build(layout, seed=1), build(layout, seed=2)
        with torch.no_grad():
            for parameter in teacher.model[-1].parameters():  # no two branches or levels alike
                parameter.add_(0.01 * torch.rand_like(parameter))
        for channels in CHANNELS:
            report = inherit(student, teacher, channels=channels)
            for mine, other in zip(outputs(student), outputs(teacher), strict=True):
                assert torch.equal(mine, other)
            assert report.share == 1.0
            with torch.no_grad():
                student.model[-1].cv2[0][0].conv.weight.zero_()
            assert not report.left or list(report.left.values()) == [("model.0.frozen_bn",)]


def silence(teacher: nn.Module, student: nn.Module, kept: int) -> None:
    """Let a teacher twice as wide as its student use every second channel alone, from `kept` (0 or 1) on.

    What is not used is neither read nor, with `kept` 1, written; in an attention, that is every second head.
    """
    layers = dict(student.named_modules())
    heads = {
        f"{name}.{part}": m
        for name, m in teacher.named_modules()
        if type(m).__name__ == "Attention"
        for part in ("qkv", "proj", "pe")
    }
    with torch.no_grad():
        for name, module in teacher.named_modules():
            mine = layers.get(name)
            block, _, leaf = name.rpartition(".")
            attention = heads.get(block)
            if isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels == 2 * mine.in_channels:
                by_head = attention is not None and block.endswith("proj")
                columns = module.weight.unflatten(1, (attention.num_heads if by_head else module.in_channels, -1))
                columns[:, 1 - kept :: 2] = 0
            elif kept and leaf == "bn" and module.num_features == 2 * mine.num_features:
                by_head = attention is not None and not block.endswith("proj")
                for tensor in (module.weight, module.bias):
                    tensor.view(attention.num_heads if by_head else len(tensor), -1)[0::2] = 0


class TestFunction:
    """A student of half the width computes what its teacher does, where that uses only the channels that it takes."""

    @pytest.mark.parametrize(("channels", "kept"), [("even", 0), ("importance", 1)])
    @pytest.mark.parametrize("layout", ["yolov5", "yolov8", "yolo11", "yolo26", "meddet-n"])
    def test_half_the_width(self, layout, channels, kept):
        student, teacher = build(layout, 0.125, seed=1), build(layout, 0.25, seed=2)
        silence(teacher, student, kept)
        report = inherit(student, teacher, channels=channels, rescale=False)
        assert report.share == 1.0
        for mine, other in zip(outputs(student), outputs(teacher), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("layout", "depth"), [("yolov8", 0.33), ("yolo11", 0.5), ("yolo26", 0.5)])
    def test_half_the_depth(self, layout, depth):
        student, teacher = build(layout, depth=depth, seed=1), build(layout, depth=2 * depth, seed=2)
        with torch.no_grad():
            for name, block in teacher.named_modules():
                if type(block).__name__ in ("C2f", "C3k2"):
                    kept = len(student.get_submodule(name).m)
                    picked = [0] if kept == 1 else [round(i * (len(block.m) - 1) / (kept - 1)) for i in range(kept)]
                    for i in set(range(len(block.m))) - set(picked):
                        if getattr(block.m[i], "add", False):  # without effect
                            block.m[i].cv2.bn.weight.zero_()
                            block.m[i].cv2.bn.bias.zero_()
                        else:  # not read by the last convolution
                            block.cv2.conv.weight[:, (2 + i) * block.c : (3 + i) * block.c] = 0
                            assert i == len(block.m) - 1  # nor by a block
                elif type(block).__name__ == "PSABlock" and name.endswith(".1") and "10.m" in name:
                    for conv in (block.attn.proj, block.ffn[1]):
                        conv.bn.weight.zero_()
                        conv.bn.bias.zero_()
        report = inherit(student, teacher, rescale=False)
        assert report.share == 1.0
        for mine, other in zip(outputs(student), outputs(teacher), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


class TestLayouts:
    @pytest.mark.parametrize("channels", CHANNELS)
    @pytest.mark.parametrize(
        ("layout", "small", "large"),
        [
            ("yolo11", (0.1875, 0.5), (0.5, 0.5)),  # heads wider than the teacher's
            ("yolo11", (0.125, 0.5), (0.3125, 1.0)),
            ("yolov8", (0.125, 0.33), (0.375, 1.0)),  # blocks 1, 2, 2, 1 of 3, 6, 6, 3
            ("yolov8", (0.25, 0.67), (0.3125, 1.0)),  # 2, 4, 4, 2 of 3, 6, 6, 3
            ("yolo26", (0.125, 0.5), (0.375, 1.0)),
        ],
    )
    def test_odd_ratios_give_finite_outputs(self, layout, small, large, channels):
        student, teacher = build(layout, *small, seed=1), build(layout, *large, seed=2)
        shapes = {name: tensor.shape for name, tensor in state(student).items()}
        report = inherit(student, teacher, channels=channels)
        assert {name: tensor.shape for name, tensor in state(student).items()} == shapes
        assert all(output.isfinite().all() for output in outputs(student))
        assert report.share > 0.95

    @pytest.mark.parametrize(
        ("small", "large"),
        [
            ("gfl-mobilenetv2", "gfl-mobilenetv2-1.4"),
            ("gfl-efficientnet-b0", "gfl-efficientnet-b1"),
        ],
    )
    def test_classification_backbones(self, small, large):
        student, teacher = build(small, seed=1), build(large, seed=2)
        report = inherit(student, teacher, channels="importance")
        assert report.share == 1.0 and list(report.left.values()) == [("model.0.frozen_bn",)]
        assert all(output.isfinite().all() for output in outputs(student))

    def test_a_narrower_pyramid_keeps_the_groups_of_its_normalisations(self):
        narrow = YAML.load(ROOT / "cfg" / "models" / "gfl-mobilenetv2.yaml")
        narrow["head"] = [[f, n, m, [64 if a == 256 else a for a in args]] for f, n, m, args in narrow["head"]]
        student, teacher = DetectionModel(narrow, nc=2, verbose=False), build("gfl-mobilenetv2")
        inherit(student, teacher)
        mine, other = (model.model[-1].cv2[0][0].conv.weight for model in (student, teacher))
        torch.testing.assert_close(mine, other[::4][:, ::4] * 2)

    def test_a_c3k_of_the_teacher_is_left_out_with_a_word(self):
        student, teacher = (DetectionModel(f"yolo11{s}.yaml", nc=2, verbose=False) for s in "nm")
        before = state(student)
        report = inherit(student, teacher)
        ((reason, names),) = report.left.items()
        assert reason == "Bottleneck, C3k in the teacher"
        assert {name.split(".m.0.")[0] for name in names} == {f"model.{i}" for i in (2, 4, 13, 16, 19)}
        assert all(torch.equal(student.state_dict()[name], before[name]) for name in names)

    def test_another_number_of_classes_leaves_the_class_prediction(self):
        student, teacher = build("yolo11", 0.125, nc=3), build("yolo11", 0.25, nc=2)
        report = inherit(student, teacher)
        ((reason, names),) = report.left.items()
        assert reason == "3 outputs, 2 in the teacher"
        assert set(names) == {f"model.23.cv3.{k}.2.{part}" for k in range(3) for part in ("weight", "bias")}

    def test_other_image_channels_leave_the_first_convolution(self):
        student, teacher = build("yolo11", 0.125, ch=1), build("yolo11", 0.25)
        report = inherit(student, teacher)
        assert report.left == {"1 input channels, 3 in the teacher": ("model.0.conv.weight",)}

    def test_one_to_one_branches_start_from_the_one_to_many_branches_of_a_teacher_without(self):
        student, teacher = build("yolo11", end2end=True, seed=1), build("yolo11", seed=2)
        report = inherit(student, teacher)
        assert report.share == 1.0
        boxes, scores, one2one_boxes, one2one_scores = outputs(student)
        expected = outputs(teacher)
        for pair in ((boxes, scores), (one2one_boxes, one2one_scores)):
            assert torch.equal(pair[0], expected[0]) and torch.equal(pair[1], expected[1])


def equipped(inject: str, width: float = 0.125, layout: str = "meddet11-n", **settings) -> DetectionModel:
    """Return a detector whose head has nmODE² in both branches, in one of its forms."""
    head = YAML.load(ROOT / "cfg" / "models" / f"{layout}.yaml")["head"]
    head[-1][3][1].update(inject=inject, branches=["cls", "reg"])
    return build(layout, width, head=head, **settings)


class TestNmODE2:
    @pytest.mark.parametrize("inject", ["act", "beside", "gate", "conv"])
    @pytest.mark.parametrize("layout", ["meddet11-n", "meddet-n"])
    def test_every_form_is_taken_from_itself(self, layout, inject):
        student, teacher = equipped(inject, 0.125, layout, seed=1), equipped(inject, 0.125, layout, seed=2)
        with torch.no_grad():
            for parameter in teacher.model[-1].parameters():
                parameter.add_(0.01 * torch.rand_like(parameter))
        assert inherit(student, teacher, channels="importance").share == 1.0
        assert all(torch.equal(a, b) for a, b in zip(outputs(student), outputs(teacher), strict=True))
        wide = equipped(inject, 0.25, layout)
        assert inherit(student, wide).share == 1.0
        assert all(output.isfinite().all() for output in outputs(student))

    @pytest.mark.parametrize(("inject", "left"), [("beside", {"cv2", "cv3"}), ("gate", {"nmode_reg", "nmode_cls"})])
    def test_forms_that_start_without_effect_compute_what_a_stock_teacher_does(self, inject, left):
        student, teacher = equipped(inject, seed=1), build("yolo11", seed=2)
        report = inherit(student, teacher)
        assert all(torch.equal(a, b) for a, b in zip(outputs(student), outputs(teacher), strict=True))
        ((reason, names),) = report.left.items()
        assert reason == "nothing like it in the teacher"
        assert {name.split(".")[2] for name in names} == left

    def test_a_stock_student_takes_all_but_nmode2(self):
        for inject in ("beside", "gate", "conv"):
            assert inherit(build("yolo11"), equipped(inject, 0.25)).share == 1.0

    def test_one_form_takes_what_it_shares_with_another(self):
        report = inherit(equipped("gate"), equipped("conv", 0.25))
        (names,) = report.left.values()
        assert {name.split(".")[2] for name in names} == {"nmode_reg", "nmode_cls"}

    @pytest.mark.parametrize(
        ("student", "teacher"),
        [
            (lambda: equipped("act", seed=1), lambda: build("yolo11", 0.25, seed=2)),
            (lambda: build("yolo11", seed=1), lambda: equipped("act", 0.25, seed=2)),
            (lambda: equipped("beside", seed=1), lambda: equipped("act", 0.25, seed=2)),
        ],
        ids=["act from stock", "stock from act", "beside from act"],
    )
    def test_in_place_of_an_activation_the_normalisation_before_keeps_its_start(self, student, teacher):
        student, teacher = student(), teacher()
        before = state(student)
        report = inherit(student, teacher)
        names = next(names for reason, names in report.left.items() if "NmODE2Activation" in reason)
        expected = {f"model.23.cv2.{k}.1.bn.{part}" for k in range(3) for part in ("weight", "bias")}
        expected |= {f"model.23.cv3.{k}.1.1.bn.{part}" for k in range(3) for part in ("weight", "bias")}
        assert set(names) == expected
        assert all(torch.equal(student.state_dict()[name], before[name]) for name in names)

    @pytest.mark.parametrize("inject", ["act", "beside", "gate", "conv"])
    def test_in_the_head_of_gfl(self, inject):
        student, teacher = (equipped(inject, layout="meddet-gfl-mobilenetv2", seed=seed) for seed in (1, 2))
        assert inherit(student, teacher).share == 1.0
        assert all(torch.equal(a, b) for a, b in zip(outputs(student), outputs(teacher), strict=True))


class TestReport:
    def test_numbers_are_those_of_the_state(self):
        student, teacher = build("yolo11", 0.125, nc=3, seed=1), build("yolo11", 0.25, nc=2, seed=2)
        report = inherit(student, teacher)
        left = [name for names in report.left.values() for name in names]
        sizes = {name: p.numel() for name, p in student.named_parameters()}
        assert report.total_tensors == len(student.state_dict()) == report.tensors + len(left)
        assert report.total_parameters == sum(sizes.values())
        assert report.parameters == report.total_parameters - sum(sizes.get(name, 0) for name in left)
        assert report.share == pytest.approx(1 - 3 * (32 * 3 + 3) / report.total_parameters)

    def test_one_line_for_the_log(self):
        text = str(inherit(build("yolo11", 0.125, nc=3), build("yolo11", 0.25)))
        assert text == (
            "inherited 493 of 499 tensors, 100.0 % of the parameters, from the teacher yolo11-0.25; not inherited: "
            "6 tensors of model.23.cv3.0, model.23.cv3.1, model.23.cv3.2 (3 outputs, 2 in the teacher)"
        )

    def test_the_teacher_stays_as_it_is_and_shares_nothing(self):
        student, teacher = build("yolo11", 0.125), build("yolo11", 0.25)
        before = state(teacher)
        inherit(student, teacher, channels="importance")
        with torch.no_grad():
            for tensor in student.state_dict().values():
                tensor.zero_()
        assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())

    def test_a_half_precision_teacher_gives_a_student_of_its_own_precision(self):
        student = build("yolo11", 0.125)
        inherit(student, build("yolo11", 0.25).half())
        assert {p.dtype for p in student.parameters()} == {torch.float32}
        assert all(output.isfinite().all() for output in outputs(student))


class TestRefusals:
    @pytest.mark.parametrize(
        ("student", "teacher", "message"),
        [
            (("yolo11", 0.125), ("yolov8", 0.25), "another family (layer 2 is C3k2 in the student and C2f"),
            (("yolo11", 0.125), ("yolo26", 0.25), "another family (layer 9 is SPPF in the student and SPPF with"),
            (("gfl-mobilenetv2",), ("gfl-efficientnet-b0",), "backbone mobilenetv2 in the student and efficientnet-b0"),
            (("yolo11", 0.25), ("yolo11", 0.125), "narrower: layer 0 (Conv) has 16 channels in the student and 8 in"),
            (
                ("yolo11", 0.125, 1.0),
                ("yolo11", 0.25, 0.5),
                "shallower: layer 2 (C3k2) has 2 blocks in the student and 1",
            ),
            (("gfl-mobilenetv2-1.4",), ("gfl-mobilenetv2",), "narrower: layer 0 (Backbone)"),
        ],
    )
    def test_one_line_that_says_what_to_do(self, student, teacher, message):
        model = build(*student)
        before = state(model)
        with pytest.raises(InheritError) as error:
            inherit(model, build(*teacher))
        text = str(error.value)
        assert message in text and "; name a teacher" in text and "\n" not in text
        assert text.startswith(f"the student {model.yaml['yaml_file'][:-5]} cannot inherit from the teacher ")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_a_fused_teacher(self):
        with pytest.raises(InheritError, match=r"teacher yolo11-0.25 is fused .*give the checkpoint of its training"):
            inherit(build("yolo11"), build("yolo11", 0.25).fuse(verbose=False))

    def test_what_is_no_detector(self):
        with pytest.raises(InheritError, match="the teacher: expected a detector built from a model YAML, got Linear"):
            inherit(build("yolo11"), nn.Linear(1, 1))

    def test_a_block_without_a_rule(self):
        student, teacher = build("yolov10n", seed=1), build("yolov10n", seed=2)
        with pytest.raises(InheritError, match=r"layer 5 \(SCDown\) holds SCDown, which inheritance does not know"):
            inherit(student, teacher)

    def test_an_unknown_way_of_choosing(self):
        with pytest.raises(ValueError, match="channels='random' is not known, expected one of"):
            inherit(build("yolo11"), build("yolo11"), channels="random")


class TestBestFit:
    def test_the_smallest_that_is_wide_and_deep_enough(self):
        student = build("yolo11", 0.25)
        others = [("yolo11", 0.5), ("yolov8", 0.25), ("yolo11", 0.375), ("yolo11", 0.125), ("yolo11", 0.375, 1.0)]
        assert best_fit(student, [build(*other) for other in others]) == 2

    def test_none(self):
        assert best_fit(build("yolo11", 0.25), []) is None
        assert best_fit(build("yolo11", 0.25), [build("yolo11", 0.125), build("yolov8", 0.5)]) is None


class TestRecalibration:
    def test_statistics_are_the_plain_average_over_the_batches(self):
        norm = nn.BatchNorm2d(2, momentum=0.03).eval()
        batches = [torch.randn(4, 2, 8, 8) + shift for shift in (1.0, 3.0)]
        recalibrate(norm, batches)
        torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
        assert norm.momentum == 0.03 and not norm.training

    def test_without_a_batch_nothing_is_forgotten(self):
        norm = nn.BatchNorm2d(1)
        norm.running_mean.fill_(5.0)
        with pytest.raises(ValueError, match="at least one batch of images"):
            recalibrate(norm, [])
        assert float(norm.running_mean) == 5.0

    def test_modes_and_weights_stay(self):
        model = build("yolo11").train()
        model.model[3].eval()
        before = {name: p.clone() for name, p in model.named_parameters()}
        recalibrate(model, [IMAGE])
        assert model.training and not model.model[3].training and not model.model[3].bn.training
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def drawn(number: int, seed: int) -> dict[str, torch.Tensor]:
    """Return a batch of grey images (number, 3, 64, 64) with one bright or dark rectangle each, two classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(number, 1, 64, 64, generator=generator) * 0.2 + 0.4
    boxes, classes = [], torch.arange(number) % 2
    for image, label in zip(images, classes, strict=True):
        w, h = torch.randint(12, 36, (2,), generator=generator).tolist()
        x, y = (int(torch.randint(0, 64 - side, (1,), generator=generator)) for side in (w, h))
        image[0, y : y + h, x : x + w] += 0.35 if label else -0.35
        boxes.append([(x + w / 2) / 64, (y + h / 2) / 64, w / 64, h / 64])
    batch_idx = torch.arange(number).float()
    return {
        "img": images.repeat(1, 3, 1, 1),
        "cls": classes.float()[:, None],
        "bboxes": torch.tensor(boxes),
        "batch_idx": batch_idx,
    }


def loss_of(model: DetectionModel, batch: dict[str, torch.Tensor]) -> float:
    model.args, model.criterion = get_cfg(), None
    with torch.no_grad():
        return float(model.eval().loss(batch, model(batch["img"]))[0].sum()) / len(batch["img"])


def plain(width: float, seed: int) -> DetectionModel:
    """Return a detector as it starts without a teacher."""
    torch.manual_seed(seed)
    config = YAML.load(check_yaml("yolo11.yaml"))
    config.update(scales={"n": [0.5, width, 1024]}, scale="n")
    return DetectionModel(config, nc=2, verbose=False)


@pytest.fixture(scope="module")
def trained() -> DetectionModel:
    """A detector of drawn rectangles, trained for a few seconds."""
    model = plain(0.1875, seed=0)
    model.args = get_cfg()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(60):
        optimizer.zero_grad()
        (model.train().loss(drawn(8, step))[0].sum() / 8).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("channels", CHANNELS)
def test_an_inherited_student_starts_ahead_of_fresh_ones(trained, channels):
    batch, images = drawn(16, 1000), [drawn(16, 2000 + i)["img"] for i in range(4)]
    student, *fresh = (plain(0.125, seed) for seed in (1, 2, 3))
    inherit(student, trained, channels=channels)
    for model in (student, *fresh):
        recalibrate(model, images)
    assert loss_of(student, batch) < 0.9 * min(loss_of(model, batch) for model in fresh)


def real(split: str, number: int) -> dict[str, torch.Tensor]:
    """Return the first images of the real set, squeezed to 192 px, and their boxes."""
    folder = SHARED / "spider_disc2"
    images, boxes = [], []
    for i, file in enumerate(sorted((folder / "images" / split).glob("*.jpg"))[:number]):
        images.append(torch.from_numpy(cv2.resize(cv2.imread(str(file)), (192, 192))).permute(2, 0, 1))
        labels = (folder / "labels" / split / f"{file.stem}.txt").read_text().splitlines()
        boxes += [[i, *map(float, line.split())] for line in labels]
    table = torch.tensor(boxes)
    image = torch.stack(images).float() / 255
    return {"img": image, "batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:]}


@pytest.mark.skipif(not (SHARED / "teachers" / "yolo11s_spider_disc2.pt").exists(), reason="no trained teacher here")
@pytest.mark.parametrize("channels", CHANNELS)
def test_an_inherited_student_starts_ahead_of_a_fresh_one_on_real_images(channels):
    teacher, _ = load_checkpoint(str(SHARED / "teachers" / "yolo11s_spider_disc2.pt"))
    fresh, student = (DetectionModel("yolo11n.yaml", nc=2, verbose=False) for _ in range(2))
    inherit(student, teacher.float(), channels=channels)
    images, val = real("train", 64)["img"].split(16), real("val", 16)
    for model in (fresh, student):
        recalibrate(model, images)
    assert loss_of(student, val) < 0.9 * loss_of(fresh, val)
