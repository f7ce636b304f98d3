"""Cross-head distillation against its formula in plain loops, on real heads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel

from meddet_yolo.distill.adapters.branches import run_from_stems, run_stems, stem_widths
from meddet_yolo.distill.adapters.yolo import head_output
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec
from meddet_yolo.distill.methods.crosskd import CrossKD, CrossKDOptions
from meddet_yolo.nn.gfl.head import GFLDetect
from meddet_yolo.nn.heads import NmODE2Detect
from tests.distill.methods._outputs import no_head, sides_of
from tests.distill.methods.test_bckd import giou


def lively(head: Any) -> Any:
    """A head that is not all but silent, in inference but for its output."""
    torch.manual_seed(3)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    head.eval()
    head.training = True
    return head


def heads() -> dict[str, Any]:
    return {
        "plain": Detect(nc=2, reg_max=4, ch=(16, 24)),
        "legacy": NmODE2Detect(nc=2, reg_max=4, ch=(16, 24), legacy=True, branches=[]),
        "nms-free": Detect(nc=2, reg_max=1, end2end=True, ch=(16, 24)),
        "gate": NmODE2Detect(nc=2, reg_max=4, ch=(16, 24), inject="gate"),
        "gfl": GFLDetect(nc=2, reg_max=3, ch=(64, 64)),
    }


def described(head: Any, name: str, strides: tuple[float, ...] = (8.0, 16.0)) -> DetectorSpec:
    return DetectorSpec(name, [1] * len(strides), list(strides), head.nc, head.reg_max, stem_widths(head))


def seen_by(head: Any, seed: int, size: int = 4) -> DetectorOutput:
    """What a head gives of random maps, with its stems and its rest."""
    torch.manual_seed(seed)
    maps = [torch.rand(2, _width(head, i), size >> i, size >> i) for i in range(head.nl)]
    with torch.no_grad():
        output = head_output(head(maps))
        output.stems = run_stems(head, maps)
    output.finish = lambda stems: head_output(run_from_stems(head, stems))
    return output


def _width(head: Any, level: int) -> int:
    return 64 if isinstance(head, GFLDetect) else (16, 24)[level]


@pytest.mark.parametrize("kind", heads())
def test_both_halves_are_the_whole_head(kind):
    head = lively(heads()[kind])
    output = seen_by(head, 1)
    assert output.stems is not None and output.finish is not None
    assert [(c.shape[1], b.shape[1]) for c, b in output.stems] == stem_widths(head)
    again = output.finish(output.stems)
    torch.testing.assert_close(again.logits, output.logits)
    torch.testing.assert_close(again.boxes, output.boxes)


def test_heads_of_another_build_have_no_halves():
    head = Detect(nc=2, ch=(16,))
    head.cv3[0] = nn.Sequential(head.cv3[0][0], nn.Conv2d(16, 2, 1))
    assert stem_widths(head) == [] == stem_widths(nn.Linear(1, 1))
    words = Detect(nc=2, ch=(16,))
    words.cv3[0][-1] = nn.Conv2d(16, 512, 1)  # compared with words afterwards
    assert stem_widths(words) == []


@pytest.mark.parametrize(("mine", "theirs"), [("plain", "legacy"), ("nms-free", "plain"), ("gfl", "nms-free")])
def test_it_is_the_formula(mine, theirs):
    small, large = lively(heads()[mine]), lively(heads()[theirs])
    student, teacher = seen_by(small, 5), seen_by(large, 6)
    torch.manual_seed(0)
    method = CrossKD(described(small, "student"), [described(large, "a.pt")], CrossKDOptions())
    terms = method(student, [teacher], {}, head_loss=no_head)

    crossed: list[tuple[torch.Tensor, torch.Tensor]] = []  # level by level through the layers themselves
    assert student.stems is not None and teacher.logits is not None and teacher.boxes is not None
    adapters = iter(method.adapters)
    for level, pair in enumerate(student.stems):
        x, y = (_through(next(adapters), stem) for stem in pair)
        for part in large.cv3[level][1:]:
            x = part(x)
        for part in large.cv2[level][1:]:
            y = part(y)
        crossed.append((x.flatten(2), y.flatten(2)))
    logits, boxes = (torch.cat(parts, 2).detach() for parts in zip(*crossed, strict=True))
    bins, total, classes, sides = large.reg_max, 0.0, 0.0, 0.0
    for b in range(2):
        for a in range(logits.shape[2]):
            p = [1 / (1 + math.exp(-z)) for z in logits[b, :, a].tolist()]
            q = [1 / (1 + math.exp(-z)) for z in teacher.logits[b, :, a].tolist()]
            classes -= sum(
                abs(s - t) * (t * math.log(s) + (1 - t) * math.log(1 - s)) for s, t in zip(p, q, strict=True)
            )
            (near, shares), (far, told) = (sides_of(given, b, a, bins) for given in (boxes, teacher.boxes))
            if bins > 1:
                pairs = [(t, s) for ts, ss in zip(told, shares, strict=True) for t, s in zip(ts, ss, strict=True)]
                error = sum(t * math.log(t / s) for t, s in pairs) / 4
            else:
                error = 1 - giou(_upright(near), _upright(far))
            sides += max(q) * error
            total += max(q)
    assert terms["crosskd_cls"].loss.item() == pytest.approx(classes / max(total, 1), rel=1e-3)
    assert terms["crosskd_box"].loss.item() == pytest.approx(sides / max(total, 1), rel=1e-3)
    assert (terms["crosskd_cls"].weight, terms["crosskd_box"].weight) == (1, 4)


def _upright(sides: list[float]) -> list[float]:
    """Distances of which no box is empty, as the methods make them."""
    left, top, right, bottom = sides
    return [left, top, max(right, 1e-3 - left), max(bottom, 1e-3 - top)]


def _through(adapter: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(adapter, nn.Identity):
        return x
    return torch.einsum("dc,bchw->bdhw", adapter.get_parameter("weight")[:, :, 0, 0], x)


def test_the_teachers_own_maps_cost_nothing_and_heads_of_one_width_need_no_adapter():
    head = lively(heads()["plain"])
    output = seen_by(head, 2)
    method = CrossKD(described(head, "student"), [described(head, "a.pt")], CrossKDOptions())
    assert not list(method.parameters())
    terms = method(output, [output], {}, head_loss=no_head)
    assert all(term.loss.item() == pytest.approx(0, abs=1e-5) for term in terms.values())


def test_several_teachers_give_the_mean_of_their_losses():
    small = lively(heads()["plain"])
    other = lively(GFLDetect(nc=2, reg_max=3, ch=(64, 64)))
    student = seen_by(small, 2)
    outputs = [seen_by(small, 3), seen_by(other, 4)]
    specs = [described(small, "a.pt"), described(other, "b.pt")]
    both = CrossKD(described(small, "student"), specs, CrossKDOptions())
    alone = [CrossKD(described(small, "student"), [spec], CrossKDOptions()) for spec in specs]
    alone[1].adapters = both.adapters[4:]
    losses = [m(student, [o], {}, head_loss=no_head)["crosskd_box"].loss for m, o in zip(alone, outputs, strict=True)]
    loss = both(student, outputs, {}, head_loss=no_head)["crosskd_box"].loss
    assert loss.item() == pytest.approx(sum(part.item() for part in losses) / 2, rel=1e-5)


def test_two_levels_may_read_one_of_the_teachers():
    head = lively(heads()["plain"])
    student, teacher = seen_by(head, 2), seen_by(head, 3)
    far = described(head, "a.pt", (8.0, 4.0))
    method = CrossKD(described(head, "student", (8.0, 16.0)), [far], CrossKDOptions())
    assert method._levels == [[0, 0]]
    terms = method(student, [teacher], {}, head_loss=no_head)
    assert all(term.loss.isfinite() and term.loss > 0 for term in terms.values())


def test_heads_that_cannot_be_cut_are_refused_by_name():
    head, none = heads()["plain"], DetectorSpec("b.pt", [1, 1], [8.0, 16.0], 2, 4)
    with pytest.raises(ValueError, match=r"distill=crosskd leads maps .* the head of b\.pt is not made of branches"):
        CrossKD(described(head, "student"), [described(head, "a.pt"), none], CrossKDOptions())
    with pytest.raises(ValueError, match="the head of student is not"):
        CrossKD(DetectorSpec("student", [1, 1], [8.0, 16.0], 2, 4), [described(head, "a.pt")], CrossKDOptions())


def test_of_a_training_the_students_statistics_stay_those_of_its_own_pass():
    from ultralytics.cfg import get_cfg

    from meddet_yolo.distill import DistillConfig, DistillSession, Teacher
    from meddet_yolo.distill.teachers import detector_spec
    from meddet_yolo.train.criterion import DistillCriterion

    def statistics(method: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model: Any = DetectionModel("yolo11n.yaml", nc=2, verbose=False).train()
        model.args = get_cfg()
        teacher = Teacher(DetectionModel("yolo11n.yaml", nc=2, verbose=False), name="a.pt")
        config = DistillConfig.from_dict({"distill": method})
        session = DistillSession(detector_spec(model, "student"), [teacher], config, imgsz=64)
        session.start_epoch(0, batches=1)
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        session.observe(images)
        labels = {"cls": torch.zeros(1, 1), "bboxes": torch.full((1, 4), 0.5), "batch_idx": torch.zeros(1)}
        DistillCriterion(model.init_criterion(), session, model)(model(images), {"img": images, **labels})
        return [b.clone() for b in model.model[-1].buffers()]

    for a, b in zip(statistics("crosskd"), statistics("bckd"), strict=True):
        if a.is_floating_point():  # the count of batches has no effect
            torch.testing.assert_close(a, b)
