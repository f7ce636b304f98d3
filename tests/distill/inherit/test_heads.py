"""Inheritance in heads with nmODE²."""

import pytest
import torch

import meddet_yolo  # noqa: F401  # its layers in model YAMLs
from meddet_yolo.distill.inherit import inherit
from tests.distill.inherit._models import build, equipped, outputs, state


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

    @pytest.mark.parametrize("inject", ["act", "beside", "gate", "conv"])
    def test_levels_without_it_take_the_rest(self, inject):
        student, teacher = (equipped(inject, levels=[1, 2], seed=seed) for seed in (1, 2))
        assert inherit(student, teacher).share == 1.0
        assert all(torch.equal(a, b) for a, b in zip(outputs(student), outputs(teacher), strict=True))
        inherit(equipped(inject, levels=[1, 2]), equipped(inject, 0.25))

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
