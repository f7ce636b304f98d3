"""Pools of boxes: overlaps against torchvision, matching against a plain loop."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from meddet_yolo.evaluate import pool as module
from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.pool import Pairs, Pool, greedy_match, rank_in_groups


def _random(seed: int, images: int = 4) -> Pool:
    generator = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = generator.uniform(0, 40, (count, 2))
        return np.hstack([corner, corner + generator.uniform(5, 30, (count, 2))])

    found, truth = [], []
    for number in range(images):
        d, g = boxes(generator.integers(0, 7)), boxes(generator.integers(0, 5))
        found.append(Found(str(number), d, generator.integers(0, 2, len(d)), generator.random(len(d))))
        truth.append(Truth(str(number), g, generator.integers(0, 2, len(g)), (64, 64)))
    return Pool(found, truth)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), chunk=st.sampled_from([1, 3, 10**6]))
def test_pairs_are_all_overlaps_of_an_image(seed, chunk):
    pool = _random(seed)
    before, module._CHUNK = module._CHUNK, chunk
    try:
        pairs = pool.pairs
    finally:
        module._CHUNK = before
    iou = box_iou(torch.from_numpy(pool.boxes), torch.from_numpy(pool.truth_boxes)).numpy()
    iou[pool.image[:, None] != pool.truth_image] = 0
    dense = np.zeros_like(iou)
    dense[pairs.found, pairs.truth] = pairs.iou
    np.testing.assert_allclose(dense, iou, atol=1e-12)
    own = pool.own_class_pairs
    assert (pool.classes[own.found] == pool.truth_classes[own.truth]).all()
    assert len(own.found) == ((iou > 0) & (pool.classes[:, None] == pool.truth_classes)).sum()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6))
def test_greedy_matching_is_the_plain_loop(seed):
    pool = _random(seed)
    generator = np.random.default_rng(seed)
    thresholds = np.array([0.1, 0.3, 0.6])
    ignored = generator.random(len(pool.truth_image)) < 0.3
    pairs = pool.own_class_pairs
    pairs = Pairs(pairs.found, pairs.truth, np.ceil(pairs.iou * 5) / 5)  # ties
    match = greedy_match(pairs, len(pool.scores), len(pool.truth_image), pool.image, thresholds, ignored)
    for level, threshold in enumerate(thresholds):
        taken: set[int] = set()
        for box in range(len(pool.scores)):
            best, best_key = -1, (False, 0.0)
            for truth, iou in zip(pairs.truth[pairs.found == box], pairs.iou[pairs.found == box], strict=True):
                key = (not ignored[truth], iou)
                if truth not in taken and iou >= threshold and key >= best_key:
                    best, best_key = int(truth), key
            taken.add(best)
            assert match[level, box] == best


def test_rank_counts_within_groups():
    assert rank_in_groups(np.zeros(0, int)).tolist() == []
    assert rank_in_groups(np.array([2, 2, 0, 2])).tolist() == [0, 1, 0, 2]


def test_boxes_without_area_overlap_nothing():
    pool = Pool([Found("a", [[1, 1, 1, 1]], [0], [0.5])], [Truth("a", [[1, 1, 1, 1]], [0], (4, 4))])
    assert len(pool.pairs.found) == 0
