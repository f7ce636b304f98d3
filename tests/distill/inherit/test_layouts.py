"""Inheritance in whole layouts: of every family, size and depth."""

import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML

import meddet_yolo  # noqa: F401  # its layers in model YAMLs
from meddet_yolo.distill.inherit import CHANNELS, inherit
from tests.distill.inherit._models import FAMILIES, ROOT, build, outputs, state


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
