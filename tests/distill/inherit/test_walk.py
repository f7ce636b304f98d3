"""Layers whose inherited weights are worked out by hand."""

import pytest
import torch
from torch import nn
from torchvision.models import mobilenetv2, resnet
from ultralytics.nn.modules import SPPF, Bottleneck, C3k2, Conv
from ultralytics.nn.modules.block import Attention, PSABlock

import meddet_yolo  # noqa: F401  # its layers in model YAMLs
from meddet_yolo.distill.inherit import inherit
from meddet_yolo.distill.inherit.blocks import BLOCKS
from meddet_yolo.distill.inherit.heads import fpn
from meddet_yolo.distill.inherit.spaces import Axis, Space
from meddet_yolo.distill.inherit.walk import Walk
from meddet_yolo.nn.gfl import FPN
from tests.distill.inherit._models import Rows, concatenation, state


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
