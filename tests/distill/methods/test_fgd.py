"""Focal and global distillation against its formulas in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.methods.fgd import FGD, ContextBlock, FGDOptions, focal_weights
from tests.distill.methods._outputs import channel, no_head, output, projected, spec

LABELS = {
    "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.625, 0.625, 0.25, 0.25], [0.25, 0.5, 0.5, 1.0]]),
    "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
}


def softmax(values: list[float], tau: float) -> list[float]:
    total = sum(math.exp(v / tau) for v in values)
    return [len(values) * math.exp(v / tau) / total for v in values]


def related(x: list[list[float]], block: ContextBlock) -> list[list[float]]:
    """The global-context block on one image, [channel][position]."""
    state = {name: value.detach().double() for name, value in block.state_dict().items()}
    places = range(len(x[0]))
    scores = [sum(state["mask.weight"].flatten()[c].item() * x[c][p] for c in range(len(x))) for p in places]
    weights = [w / len(x[0]) for w in softmax(scores, 1.0)]
    context = torch.tensor([sum(w * v for w, v in zip(weights, row, strict=True)) for row in x], dtype=torch.float64)
    hidden = state["change.0.weight"][:, :, 0, 0] @ context + state["change.0.bias"]
    normal = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
    hidden = F.relu(normal * state["change.1.weight"].flatten() + state["change.1.bias"].flatten())
    added = state["change.3.weight"][:, :, 0, 0] @ hidden + state["change.3.bias"]
    return [[v + added[c].item() for v in row] for c, row in enumerate(x)]


def by_the_formula(method: FGD, s_map: torch.Tensor, t_map: torch.Tensor, options: FGDOptions) -> float:
    batch, channels, size, _ = t_map.shape
    s, t = ([channel(m, c) for c in range(channels)] for m in (s_map, t_map))  # [channel][image][position]
    focal, attend, apart = 0.0, 0.0, 0.0
    for b in range(batch):
        mine, theirs = [row[b] for row in s], [row[b] for row in t]
        places = range(size * size)
        spatial, by_channel = [], []
        for x in (theirs, mine):
            means = [sum(abs(row[p]) for row in x) / channels for p in places]
            spatial.append(softmax(means, options.fgd_temperature))
            by_channel.append(softmax([sum(map(abs, row)) / len(row) for row in x], options.fgd_temperature))
        boxes = [tuple(v.tolist()) for v, i in zip(LABELS["bboxes"], LABELS["batch_idx"], strict=True) if i == b]
        inside: list[list[int]] = []  # positions of each box
        for x, y, w, h in boxes:
            columns = range(round((x - w / 2) * size), round((x + w / 2) * size))
            rows = range(round((y - h / 2) * size), round((y + h / 2) * size))
            inside.append([i * size + j for i in rows for j in columns])
        background = set(places) - {p for cells in inside for p in cells}
        for p in places:
            areas = [len(cells) for cells in inside if p in cells]
            weight = options.fgd_foreground / min(areas) if areas else options.fgd_background / len(background)
            squared = sum(by_channel[0][c] * (theirs[c][p] - mine[c][p]) ** 2 for c in range(channels)) / channels
            focal += weight * spatial[0][p] * squared
        attend += sum(abs(x - y) for x, y in zip(*spatial, strict=True)) / len(places)
        attend += sum(abs(x - y) for x, y in zip(*by_channel, strict=True)) / channels
        pairs = zip(related(theirs, method.theirs[0]), related(mine, method.own[0]), strict=True)
        apart += sum((x - y) ** 2 for one, other in pairs for x, y in zip(one, other, strict=True))
    apart /= channels * size * size
    return (focal + options.fgd_attention * attend + options.fgd_global * apart) / batch


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99))
def test_it_is_the_formula(seed):
    torch.manual_seed(seed)
    options = FGDOptions(fgd_temperature=0.7)
    method = FGD(spec("student", [3]), [spec("a.pt", [4])], options)
    for block in (method.own[0], method.theirs[0]):
        torch.nn.init.normal_(block.get_parameter("change.3.weight"))  # not the identity that it starts as
    student, teacher = output([3], seed), output([4], seed + 1)
    loss = method(student, [teacher], LABELS, head_loss=no_head)["fgd"].loss
    expected = by_the_formula(method, projected(method, 0, student.feats[0]), teacher.feats[0].double(), options)
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_images_without_boxes_are_all_background():
    none = {"bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}
    torch.testing.assert_close(focal_weights(none, (2, 2, 2), 1.0, 0.5), torch.full((2, 2, 2), 0.125))
