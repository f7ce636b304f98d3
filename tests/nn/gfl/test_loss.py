"""QFL, DFL and the criterion against loops over numbers, and against what the formulas say of special cases."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from meddet_yolo.nn.gfl.loss import GFLCriterion, distribution_focal_loss, quality_focal_loss
from tests.nn.gfl._atss import STRIDES, atss_by_the_book, pyramid, random_boxes

BINS, NC, SIZE = 17, 3, 128


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---------------------------------------------------------------------------------------------------- single losses


@settings(max_examples=100, deadline=None)
@given(st.floats(-12, 12), st.floats(0, 1))
def test_quality_focal_loss_is_its_formula(logit: float, quality: float) -> None:
    p = sigmoid(logit)
    want = -(abs(quality - p) ** 2) * ((1 - quality) * math.log(1 - p) + quality * math.log(p))
    got = quality_focal_loss(torch.tensor([logit], dtype=torch.float64), torch.tensor([quality], dtype=torch.float64))
    assert float(got) == pytest.approx(want, rel=1e-6, abs=1e-9)


def test_quality_focal_loss_is_least_at_its_target() -> None:
    logits = torch.linspace(-6, 6, 2401)
    losses = quality_focal_loss(logits, torch.full_like(logits, 0.7))
    assert float(logits[losses.argmin()].sigmoid()) == pytest.approx(0.7, abs=2e-3)
    assert float(losses.min()) == pytest.approx(0, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=5, max_size=5), st.floats(0, 3.875, width=32))
def test_distribution_focal_loss_is_cross_entropy_with_the_two_next_bins(logits: list[float], target: float) -> None:
    total = sum(math.exp(x) for x in logits)
    left = int(target)
    want = -(left + 1 - target) * math.log(math.exp(logits[left]) / total)
    want -= (target - left) * math.log(math.exp(logits[left + 1]) / total)
    got = distribution_focal_loss(torch.tensor([logits]), torch.tensor([target]))
    assert float(got) == pytest.approx(want, rel=1e-3, abs=1e-4)


def test_the_distribution_that_dfl_wants_has_the_target_as_its_mean() -> None:
    logits = torch.zeros(1, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        distribution_focal_loss(logits, torch.tensor([4.3])).sum().backward()
        optimizer.step()
    assert float(logits.detach().softmax(-1) @ torch.arange(8.0)) == pytest.approx(4.3, abs=0.05)


# ---------------------------------------------------------------------------------------------------- criterion


def criterion(class_weights: torch.Tensor | None = None) -> GFLCriterion:
    head = SimpleNamespace(nc=NC, reg_max=BINS, stride=torch.tensor([float(s) for s in STRIDES]))
    return GFLCriterion(SimpleNamespace(model=[head], class_weights=class_weights))  # type: ignore[arg-type]


def predictions(batch: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [math.ceil(SIZE / s) for s in STRIDES]
    total = sum(n * n for n in sizes)
    return {
        "boxes": torch.randn(batch, 4 * BINS, total, generator=generator).requires_grad_(),
        "scores": (torch.randn(batch, NC, total, generator=generator) - 2).requires_grad_(),
        "feats": [torch.zeros(batch, 8, n, n) for n in sizes],
    }


def labels(boxes: list[torch.Tensor], classes: list[list[int]]) -> dict[str, torch.Tensor]:
    image = torch.cat([torch.full((len(b),), float(i)) for i, b in enumerate(boxes)])
    flat = torch.cat(boxes) / SIZE
    xywh = torch.cat([(flat[:, :2] + flat[:, 2:]) / 2, flat[:, 2:] - flat[:, :2]], -1)
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(5))  # the loader promises no order
    cls = torch.tensor([float(c) for some in classes for c in some]).view(-1, 1)
    return {"batch_idx": image[order], "cls": cls[order], "bboxes": xywh[order]}


def slow_loss(preds: dict[str, Any], boxes: list[torch.Tensor], classes: list[list[int]]) -> tuple[float, float, float]:
    """The whole loss, number by number, with torchvision's IoUs."""
    preds = {k: v.detach() for k, v in preds.items() if k != "feats"}
    points, strides, sizes = pyramid(SIZE, SIZE)
    qfl, giou, dfl, weights, positives = 0.0, 0.0, 0.0, 0.0, 0
    for i, some in enumerate(boxes):
        owners = atss_by_the_book(some, points, strides, sizes)
        for p in range(len(points)):
            quality = [0.0] * NC
            if p in owners:
                g, stride = owners[p], float(strides[p])
                logits = preds["boxes"][i, :, p].view(4, BINS)
                sides = [sum(k * float(q) for k, q in enumerate(row.softmax(0))) for row in logits]
                x, y = points[p].tolist()
                predicted = torch.tensor([[x, y, x, y]]) + stride * torch.tensor(
                    [[-sides[0], -sides[1], sides[2], sides[3]]]
                )
                target = some[g : g + 1]
                quality[classes[i][g]] = float(box_iou(predicted, target))
                weight = max(sigmoid(float(s)) for s in preds["scores"][i, :, p])
                giou += weight * float(generalized_box_iou_loss(predicted, target).sum())
                left, top, right, bottom = target[0].tolist()
                for row, distance in zip(logits, (x - left, y - top, right - x, bottom - y), strict=True):
                    want = min(max(distance / stride, 0.0), BINS - 1 - 0.1)
                    log_p, k = row.log_softmax(0), int(want)
                    dfl -= weight * ((k + 1 - want) * float(log_p[k]) + (want - k) * float(log_p[k + 1])) / 4
                weights += weight
                positives += 1
            for c in range(NC):
                prob = sigmoid(float(preds["scores"][i, c, p]))
                entropy = -quality[c] * math.log(prob) - (1 - quality[c]) * math.log(1 - prob)
                qfl += abs(quality[c] - prob) ** 2 * entropy
    return 2 * giou / (weights or 1), qfl / max(positives, 1), 0.25 * dfl / (weights or 1)


@pytest.mark.parametrize("counts", [(2, 3, 0), (1, 0, 0), (4, 4, 4)])
def test_equals_the_loss_added_up_number_by_number(counts: tuple[int, ...]) -> None:
    boxes = [random_boxes(n, 20 + i) for i, n in enumerate(counts)]
    classes = [[(i + k) % NC for k in range(n)] for i, n in enumerate(counts)]
    preds = predictions(len(counts))
    loss, items = criterion()(preds, labels(boxes, classes))
    assert loss.tolist() == pytest.approx([len(counts) * x for x in slow_loss(preds, boxes, classes)], rel=1e-4)
    assert list(items) == ["box_loss", "cls_loss", "dfl_loss"]
    assert [len(counts) * float(v) for v in items.values()] == pytest.approx(loss.tolist())
    assert not any(v.requires_grad for v in items.values())


def test_images_without_boxes_give_a_loss_that_can_be_differentiated() -> None:
    preds = predictions(2)
    empty = {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    loss, _ = criterion()(preds, empty)
    loss.sum().backward()
    assert loss[0] == loss[2] == 0 and loss[1] > 0
    assert preds["boxes"].grad is not None and not preds["boxes"].grad.any()  # or DDP would miss the box tower
    assert preds["scores"].grad.abs().sum() > 0


def test_half_precision_predictions_are_weighed_in_single_precision() -> None:
    boxes, classes = [random_boxes(3, 1)], [[0, 1, 2]]
    preds = predictions(1)
    half = {
        "boxes": preds["boxes"].half(),
        "scores": preds["scores"].half(),
        "feats": [f.half() for f in preds["feats"]],
    }
    loss = criterion()(half, labels(boxes, classes))[0]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, criterion()(preds, labels(boxes, classes))[0], rtol=1e-2, atol=1e-2)


def test_a_perfect_prediction_has_no_loss_of_box_and_class() -> None:
    """A box whose sides are whole strides from a position: the distribution can hit it."""
    boxes, classes = [torch.tensor([[36.0, 36.0, 100.0, 100.0]])], [[1]]
    preds = predictions(1)
    points, strides, sizes = pyramid(SIZE, SIZE)
    owners = atss_by_the_book(boxes[0], points, strides, sizes)
    logits, scores = torch.zeros(4 * BINS, len(points)), torch.full((NC, len(points)), -20.0)
    for p in owners:
        (x, y), stride = points[p].tolist(), float(strides[p])
        for side, distance in enumerate((x - 36, y - 36, 100 - x, 100 - y)):
            low = int(distance / stride)
            share = distance / stride - low
            logits[side * BINS : (side + 1) * BINS, p] = -40
            logits[side * BINS + low, p] = math.log(max(1 - share, 1e-9))
            logits[side * BINS + low + 1, p] = math.log(max(share, 1e-9))
        scores[1, p] = 20.0
    preds["boxes"], preds["scores"] = logits[None], scores[None]
    loss, _ = criterion()(preds, labels(boxes, classes))
    assert float(loss[0]) < 1e-3 and float(loss[1]) < 1e-3


def test_class_weights_scale_the_class_loss_alone() -> None:
    boxes, classes = [random_boxes(2, 3)], [[0, 2]]
    preds, batch = predictions(1), labels(boxes, classes)
    plain = criterion()(preds, batch)[0]
    weighted = criterion(torch.tensor([2.0, 2.0, 2.0]))(preds, batch)[0]
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 2.0, 1.0]))


def test_loss_leads_free_predictions_to_the_boxes() -> None:
    """Gradient descent on the outputs themselves finds the labels: signs, scales and decoding fit together."""
    boxes, classes = [random_boxes(2, 8)], [[0, 1]]
    preds = predictions(1)
    outputs = nn.ParameterList([preds["boxes"].detach(), preds["scores"].detach()])
    optimizer = torch.optim.Adam(outputs.parameters(), lr=0.2)
    first = None
    for _ in range(150):
        loss, _ = criterion()({**preds, "boxes": outputs[0], "scores": outputs[1]}, labels(boxes, classes))
        first = first or float(loss[0].detach())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert float(loss[0]) < 0.05 * first
    assert float(loss[1]) < 0.05


def test_two_processes_have_the_gradient_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ultralytics multiplies a process's loss by their number and DDP averages: that is the sum over processes."""
    boxes, classes = [random_boxes(5, 2), random_boxes(1, 4)], [[0, 1, 2, 0, 1], [2]]
    whole = predictions(2)
    criterion()(whole, labels(boxes, classes))[0].sum().backward()

    divisors: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    gradients: list[torch.Tensor] = []
    for sharing in (False, True):  # first only to learn what each process would contribute
        for rank in (0, 1):
            part = {k: v[rank : rank + 1].detach().requires_grad_() for k, v in whole.items() if k != "feats"}
            part["feats"] = [f[:1] for f in whole["feats"]]

            def all_reduce(tensor: torch.Tensor, rank: int = rank, sharing: bool = sharing) -> None:
                if sharing:
                    tensor += divisors[1 - rank]
                else:
                    divisors.append(tensor.clone())

            monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
            loss, _ = criterion()(part, labels([boxes[rank]], [classes[rank]]))
            if sharing:
                loss.sum().backward()
                gradients += [part["boxes"].grad, part["scores"].grad]
    assert divisors[0][0] != divisors[1][0]  # or averaging them would change nothing
    for name, halves in (("boxes", gradients[::2]), ("scores", gradients[1::2])):
        torch.testing.assert_close(torch.cat(halves), whole[name].grad, rtol=1e-4, atol=1e-7)


def test_validation_waits_for_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t: pytest.fail("would hang where batches are uneven"))
    with torch.no_grad():
        criterion()((None, predictions(1)), labels([random_boxes(1, 0)], [[0]]))
