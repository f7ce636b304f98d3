"""What inheriting reports and refuses, which teacher fits best, and statistics measured anew."""

import pytest
import torch
from torch import nn

import meddet_yolo  # noqa: F401  # its layers in model YAMLs
from meddet_yolo.distill.inherit import InheritError, best_fit, inherit, recalibrate
from tests.distill.inherit._models import IMAGE, build, outputs, state


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
