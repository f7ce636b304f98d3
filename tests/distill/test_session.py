"""A run's session: order of a step, schedule, shares, random state, several methods, state, averaged gradients."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel

from meddet_yolo.distill import DetectorOutput, DetectorSpec, DistillConfig, DistillSession, Teacher
from meddet_yolo.distill import session as module

STUDENT = DetectorSpec("student", [8, 16, 16], [8, 16, 32], nc=2, reg_max=16)


@pytest.fixture(scope="module")
def detectors() -> list[Any]:
    models = []
    for seed, name in enumerate(("yolov8n.yaml", "yolo26n.yaml")):
        torch.manual_seed(seed)
        models.append(DetectionModel(name, nc=2, verbose=False))
    return models


def start(detectors: list[Any], epochs: int | None = None, **options: Any) -> DistillSession:
    teachers = [Teacher(model, name=f"t{i}.pt") for i, model in enumerate(detectors)]
    torch.manual_seed(0)
    config = DistillConfig.from_dict({"distill_warmup": 0, **options})
    session = DistillSession(STUDENT, teachers, config, imgsz=64, epochs=epochs)
    session.start_epoch(0, batches=4)
    return session


def student_maps(grad: bool = False) -> DetectorOutput:
    generator = torch.Generator().manual_seed(3)
    maps = [
        torch.randn(2, c, 64 // int(s), 64 // int(s), generator=generator).requires_grad_(grad)
        for c, s in zip(STUDENT.channels, STUDENT.strides, strict=True)
    ]
    return DetectorOutput(maps)


def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def one_step(session: DistillSession, student: DetectorOutput | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    session.observe(images())
    return session.loss(student or student_maps(), {}, torch.tensor(2.0), head_loss=lambda maps: maps[0].mean())


def test_a_loss_without_its_images_is_refused(detectors):
    session = start(detectors)
    with pytest.raises(RuntimeError, match=r"call observe\(images\) before loss"):
        session.loss(student_maps(), {}, torch.tensor(1.0), head_loss=lambda maps: maps[0].mean())
    one_step(session)
    with pytest.raises(RuntimeError, match="observe"):  # what was seen is used once
        session.loss(student_maps(), {}, torch.tensor(1.0), head_loss=lambda maps: maps[0].mean())


def test_building_leaves_the_random_state_alone_and_repeats_itself(detectors):
    first = start(detectors)
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), after)
    second = start(detectors)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_scheduled_terms_rise_by_the_batch_and_from_the_start_of_an_epoch_begun_again(detectors):
    session = start(detectors, distill_warmup=2)
    values = [one_step(session)[0] for _ in range(3)]
    full = start(detectors)
    reference = one_step(full)[0]
    for batch, terms in enumerate(values):
        torch.testing.assert_close(terms[:2], reference[:2] * batch / 8)
        assert terms[2] == reference[2]  # the guard is not scheduled
    session.start_epoch(0, batches=4)
    assert one_step(session)[0][0] == 0
    session.start_epoch(1, batches=4)
    torch.testing.assert_close(one_step(session)[0][:2], reference[:2] / 2)


def test_a_cosine_falls_to_a_tenth_by_the_end_of_distillation(detectors):
    session = start(detectors, epochs=9, distill="pkd", distill_warmup=1, distill_schedule="cosine")
    full = one_step(start(detectors, distill="pkd"))[0]
    expected = {0: 0.0, 1: 1.0, 3: 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 5: 0.55, 7: 0.1 + 0.9 * (1 - 0.5**0.5) / 2}
    for epoch, factor in expected.items():
        session.start_epoch(epoch, batches=4)
        torch.testing.assert_close(one_step(session)[0], full * factor)
    session.start_epoch(8, batches=10**9)  # from its middle on it is all but over
    session._batch = 10**9 - 1
    torch.testing.assert_close(one_step(session)[0], full * 0.1, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="distill_schedule=cosine needs the number of epochs"):
        start(detectors, distill_schedule="cosine")


@pytest.mark.parametrize("resumed", [False, True])
def test_in_the_last_epochs_neither_teachers_nor_methods_run(detectors, monkeypatch, resumed):
    session = start(detectors, epochs=2, distill=["meddet", "pkd"])
    names = list(one_step(session)[1])
    columns = list(session.epoch_metrics())
    if resumed:  # a process that has seen no batch before the end
        session = start(detectors, epochs=2, distill=["meddet", "pkd"])
    session.start_epoch(2, batches=4)
    student = student_maps(grad=True)
    before = {k: v.clone() for k, v in session.methods.named_parameters()}
    for _ in range(2):
        terms, items = one_step(session, student)
        assert terms.eq(0).all() and not terms.requires_grad and list(items) == names
        assert all(value == 0 for value in items.values())
        session.step()
    assert all(torch.equal(v, before[k]) for k, v in session.methods.named_parameters())
    assert session.epoch_metrics() == dict.fromkeys(columns, 0) and session.drowning(items) == ""
    monkeypatch.setattr(Teacher, "__call__", lambda self, images: pytest.fail("a teacher ran"))
    session.start_epoch(3, batches=4)
    one_step(session, student)
    assert session.epoch_metrics() == dict.fromkeys(columns, 0)  # a log keeps its columns


def test_items_are_the_terms_their_shares_and_the_progress_measures(detectors):
    terms, items = one_step(session := start(detectors))
    assert list(items) == [
        *("dist_loss", "adv_loss", "guard_loss", "dist_share", "adv_share", "disc_acc", "fused_ev"),
    ]
    assert session.item_names == set(items)
    torch.testing.assert_close(items["dist_share"], terms[0] / (2 + terms[0] + terms[1]))
    assert {"ev_t0", "ev_t1", "w_p3_t0", "disc_loss", "fused_var"} <= set(session.epoch_metrics())
    assert "fusion P3 " in session.describe_epoch() and "discriminator loss" in session.describe_epoch()


def test_epoch_metrics_are_means_over_the_epochs_batches(detectors):
    session = start(detectors)
    one_step(session)
    once = session.epoch_metrics()
    one_step(session)
    assert session.epoch_metrics() == pytest.approx(once)
    session.start_epoch(1, batches=4)
    assert session.epoch_metrics() == {}


def test_drowning_names_the_weights_to_lower(detectors):
    session = start(detectors, dist_weight=50)
    _, items = one_step(session)
    assert "lower dist_weight=50 or adv_weight=0.1" in session.drowning(items)
    calm = start(detectors, dist_weight=0.01)
    assert calm.drowning(one_step(calm)[1]) == ""


def test_several_methods_add_their_terms(detectors):
    session = start(detectors, distill=["meddet", "l2"], l2_weight=3)
    terms, items = one_step(session, student := student_maps(grad=True))
    assert list(items)[:4] == ["dist_loss", "adv_loss", "guard_loss", "l2_loss"] and len(terms) == 4
    alone = start(detectors, distill="l2", l2_weight=1)
    assert "l2_share" in items and terms[3] > 0
    alone.methods["l2"].load_state_dict(session.methods["l2"].state_dict())
    torch.testing.assert_close(one_step(alone)[0][0] * 3, terms[3])
    terms.sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in student.feats)


def test_a_step_trains_adversaries_and_clips_the_rest(detectors):
    session = start(detectors)
    before = {k: v.clone() for k, v in session.methods.named_parameters()}
    terms, _ = one_step(session, student_maps(grad=True))
    (terms.sum() * 1e6).backward()
    session.step()
    norm = torch.stack([p.grad.norm() for p in session.parameters() if p.grad is not None]).norm()
    assert norm <= 10.001
    moved = {k for k, v in session.methods.named_parameters() if not torch.equal(v, before[k])}
    assert moved and all("discriminators" in name for name in moved)


@pytest.mark.parametrize("distill", ["meddet", ["meddet", "l2"]])
def test_state_goes_to_a_file_and_back(detectors, distill):
    session = start(detectors, distill=distill)
    terms, _ = one_step(session, student_maps(grad=True))
    terms.sum().backward()
    session.step()
    buffer = io.BytesIO()
    torch.save(session.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(9)
    again = start(detectors, distill=distill)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(one_step(again)[0], one_step(session)[0])


def test_the_state_of_one_method_has_the_names_of_its_modules(detectors):
    state = start(detectors).state_dict()
    assert set(state) == {"distiller", "disc_optimizer"}
    assert {name.partition(".")[0] for name in state["distiller"]} == {
        *("align", "fusion", "guard", "student_align", "adversary"),
    }


def test_teachers_run_their_heads_only_where_predictions_are_read(detectors):
    plain = start(detectors)
    plain.observe(images())
    assert all(output.logits is None for output in plain._seen or ())
    reading = start(detectors, distill="l2")
    reading.observe(images())
    for output, reference in zip(reading._seen or (), detectors, strict=True):
        assert output.logits is not None and output.boxes is not None
        with torch.no_grad():
            reference.eval()
            reference.model[-1].training = True  # its raw output
            expected = reference(images())
            reference.train()
        expected = expected.get("one2many") or expected
        torch.testing.assert_close(output.logits, expected["scores"], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(output.boxes, expected["boxes"], atol=2e-3, rtol=1e-3)


def test_a_teacher_without_dense_predictions_is_refused_by_name():
    teacher = Teacher(RTDETRDetectionModel("rtdetr-resnet50.yaml", nc=2, verbose=False), name="rtdetr.pt")
    with pytest.raises(ValueError, match=r"distill=l2 reads its teachers' predictions, and rtdetr\.pt has no dense"):
        DistillSession(STUDENT, [teacher], DistillConfig.from_dict({"distill": "l2"}), imgsz=64)


def test_gradients_are_averaged_in_one_exchange(monkeypatch):
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 2), (4,), ())]
    for parameter in parameters[1:]:
        parameter.grad = torch.randn_like(parameter)
    expected = [torch.zeros_like(parameters[0]), *(p.grad * 1.5 for p in parameters[1:] if p.grad is not None)]
    exchanged: list[int] = []

    def all_reduce(tensor: Tensor) -> None:  # the other process has twice our gradients
        exchanged.append(tensor.numel())
        tensor.mul_(3)

    monkeypatch.setattr(module.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(module, "_world_size", lambda: 2)
    module.average_gradients(parameters)
    assert exchanged == [11]
    for parameter, mean in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, mean)
