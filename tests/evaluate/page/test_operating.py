"""The slider's table and the curves, against the measures and scikit-learn."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.measures import measure
from meddet_yolo.evaluate.page.gallery import choose_cases
from meddet_yolo.evaluate.page.operating import count_table, curves, slider_thresholds, steps_reached
from meddet_yolo.evaluate.pool import Pool

BOX, FAR = [0.0, 0, 10, 10], [30.0, 30, 40, 40]


def scene(seed: int, images: int = 6, ties: bool = True) -> Pool:
    generator = np.random.default_rng(seed)
    found, truth = [], []
    for number in range(images):
        corner = generator.uniform(0, 40, (generator.integers(0, 4), 2))
        there = np.hstack([corner, corner + 12])
        near = np.vstack([there + generator.normal(0, 3, (len(there), 1)), [BOX, FAR]])
        scores = generator.random(len(near))
        scores = scores.round(1) if ties else scores
        truth.append(Truth(str(number), there, generator.integers(0, 2, len(there)), (64, 64)))
        found.append(Found(str(number), near, generator.integers(0, 2, len(near)), scores))
    return Pool(found, truth)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["iou", "centre"]), st.floats(0, 1))
def test_counts_are_those_of_the_operating_point(seed, hit, own):
    pool = scene(seed)
    thresholds = slider_thresholds([own])
    assert own in thresholds and (np.diff(thresholds) > 0).all()
    table = count_table(pool, 2, thresholds, hit=hit, iou=0.5)
    for place in (0, 40, int(np.searchsorted(thresholds, own)), len(thresholds) - 1):
        point = measure("operating_point", ["a", "b"], threshold=float(thresholds[place]), hit=hit)
        point.adopt(pool)
        point.compute()
        rows = list(point.details()["classes"].values())
        for row, counts in zip(rows, table[1:], strict=True):
            assert (row["hits"], row["false_alarms"]) == (counts["tp"][place], counts["fp"][place])
            assert row["missed"] == counts["boxes"] - counts["tp"][place]
        assert table[0]["tp"][place] == sum(r["hits"] for r in rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_curves_pass_through_every_point_with_a_new_hit(seed):
    pool = scene(seed)
    match, _ = pool.matches()
    if not (match >= 0).any():
        return
    precision, recall, _ = precision_recall_curve(match >= 0, pool.scores)
    hits = int((match >= 0).sum())
    theirs = {(round(r * hits), round(p, 9)) for p, r in zip(precision[:-1], recall[:-1], strict=True)}
    curve = curves(pool, 2, hit="iou", iou=0.5)[0]
    ours = {(t, round(t / (t + f), 9)) for t, f in zip(curve["tp"], curve["fp"], strict=True)}
    best = {(t, max(p for u, p in theirs if u == t)) for t, _ in theirs if t}
    assert ours <= theirs and best <= ours


def test_long_curves_are_thinned_and_keep_their_ends():
    pool = scene(1, images=2400, ties=False)
    curve = curves(pool, 2, hit="iou", iou=0.5)[0]
    match, alarm = pool.matches()
    assert len(curve["tp"]) <= 601 < (match >= 0).sum()
    assert (curve["tp"][-1], curve["fp"][-1]) == ((match >= 0).sum(), alarm.sum())


@given(st.floats(0, 1), st.floats(0, 1))
def test_whole_numbers_decide_as_scores_do(score, own):
    thresholds = slider_thresholds([own])
    (steps,) = steps_reached(thresholds, np.array([score]))
    assert [bool(steps > i) for i in range(len(thresholds))] == (score >= thresholds).tolist()


def test_worst_cases_come_first():
    truth = [Truth(n, [BOX], [0], (64, 64)) for n in "abc"]
    found = [
        Found("a", [BOX, FAR], [0, 0], [0.9, 0.3]),
        Found("b", [FAR], [0], [0.8]),
        Found("c", [BOX, FAR], [0, 0], [0.2, 0.9]),
    ]
    cases = choose_cases([Pool(found, truth)], hit="iou", iou=0.5, count=9)
    order = {kind: [c.image for c in cases if c.kind == kind] for kind in ("miss", "alarm", "random")}
    assert order["miss"] == [1, 2, 0] and order["alarm"] == [2, 1, 0] and sorted(order["random"]) == [0, 1, 2]


def test_the_number_of_cases_is_shared_by_kinds_and_models():
    pools = [scene(1, 30), scene(1, 30)]
    cases = choose_cases(pools, hit="iou", iou=0.5, count=12)
    assert [(c.kind, c.model) for c in cases] == (
        [("miss", 0)] * 2 + [("miss", 1)] * 2 + [("alarm", 0)] * 2 + [("alarm", 1)] * 2 + [("random", None)] * 4
    )
    assert cases == choose_cases(pools, hit="iou", iou=0.5, count=12)
    assert len({c.image for c in cases if c.kind == "random"}) == 4
