"""What every method must do in a training: a step of a real student with real teachers."""

from __future__ import annotations

import io
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from meddet_yolo.distill import METHODS, DistillConfig, DistillSession, Teacher
from meddet_yolo.distill.teachers import detector_spec
from meddet_yolo.train.criterion import DistillCriterion

BATCH = {
    "img": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)),
    "cls": torch.tensor([[0.0], [1.0], [1.0]]),
    "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2], [0.7, 0.4, 0.3, 0.5]]),
    "batch_idx": torch.tensor([0.0, 1.0, 1.0]),
}


def detector(name: str, width: float, seed: int) -> Any:
    """A detector narrower than any that is shipped."""
    layout = yaml_model_load(name)
    layout["scales"], layout["scale"] = {"x": [0.33, width, 1024]}, "x"
    torch.manual_seed(seed)
    model = DetectionModel(layout, nc=2, verbose=False)
    model.args = get_cfg()
    for branch in model.model[-1].cv3:
        branch[-1].bias.data.zero_()  # scores about 0.5: an untrained detector sees nothing anywhere
    return model


@pytest.fixture(scope="module")
def student() -> Any:
    return detector("yolo11n.yaml", 0.125, 0).train()


@pytest.fixture(scope="module")
def teachers() -> list[Teacher]:
    layouts = [("yolov8n.yaml", 0.125, None), ("yolo11n.yaml", 0.1875, 128)]
    return [
        Teacher(detector(name, width, 1 + i), name=f"t{i}.pt", imgsz=size)
        for i, (name, width, size) in enumerate(layouts)
    ]


def start(student: Any, teachers: list[Teacher], method: str, **options: Any) -> DistillSession:
    config = DistillConfig.from_dict({"distill": method, "distill_warmup": 0, **options})
    torch.manual_seed(1)
    session = DistillSession(detector_spec(student, "student"), teachers, config, imgsz=64)
    session.start_epoch(0, batches=4)
    return session


def one_step(session: DistillSession, student: Any, half: bool = False) -> Tensor:
    """Return the terms of a step, after its backward pass."""
    student.zero_grad()
    criterion = DistillCriterion(student.init_criterion(), session, student)
    torch.manual_seed(2)  # of masks
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        session.observe(BATCH["img"])
        loss, _ = criterion(student(BATCH["img"]), dict(BATCH))
    terms = loss[3:]  # after box, class and distribution loss
    terms.sum().backward()
    return terms.detach()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_it_teaches_the_student_and_leaves_the_teachers_alone(student, teachers, method, number, half):
    taught = [Teacher(detector("yolo11n.yaml", 0.1875, 1), name="t0.pt")] if number == 1 else fresh(teachers)
    session = start(student, taught, method)
    terms = one_step(session, student, half)
    assert terms.isfinite().all() and terms.abs().sum() > 0
    gradients = [p.grad for p in student.model[:-1].parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients) and sum(g.abs().sum() for g in gradients) > 0
    for teacher in taught:
        assert all(p.grad is None and not p.requires_grad for p in teacher._network.parameters())
    session.step()
    assert all(p.isfinite().all() for p in session.methods.parameters())


def fresh(teachers: list[Teacher]) -> list[Teacher]:
    """Copies, since a session drops the heads that it does not need."""
    return deepcopy(teachers)


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_on_from_its_state(student, teachers, method):
    session = start(student, fresh(teachers), method)
    one_step(session, student)
    with torch.no_grad():
        for parameter in session.methods.parameters():
            parameter.mul_(0.9)  # as if it had learnt
    buffer = io.BytesIO()
    torch.save(session.state_dict(), buffer)
    buffer.seek(0)
    again = start(student, fresh(teachers), method)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(one_step(again, student), one_step(session, student))


@pytest.mark.parametrize("method", METHODS)
def test_its_loss_does_not_grow_with_the_batch(student, teachers, method):
    session = start(student, fresh(teachers), method)
    session.methods.eval()
    losses = []
    for repeats in (1, 3):
        images = BATCH["img"].repeat(repeats, 1, 1, 1)
        labels = {
            "cls": BATCH["cls"].repeat(repeats, 1),
            "bboxes": BATCH["bboxes"].repeat(repeats, 1),
            "batch_idx": torch.cat([BATCH["batch_idx"] + 2 * i for i in range(repeats)]),
        }
        session.observe(images)
        with torch.no_grad():
            criterion = DistillCriterion(student.init_criterion(), session, student)
            loss, _ = criterion(student(images), {"img": images, **labels})
        losses.append(loss[3:] / len(images))
    if method not in {"mgd"}:  # masks are drawn anew
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)
