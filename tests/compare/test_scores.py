from pathlib import Path

import numpy as np
import pytest

from meddet_yolo.compare.files import FOUND, RESULT, RUNS, write_json
from meddet_yolo.compare.plan_reader import make_plan
from meddet_yolo.compare.predictions import save_predictions
from meddet_yolo.compare.report import as_text, write_report
from meddet_yolo.compare.scores import score_runs
from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.measures import measure
from meddet_yolo.evaluate.statistics import bootstrap, paired
from meddet_yolo.evaluate.validator import SeenImage

IMAGES, PATIENTS, ROUNDS = 24, 8, 60


@pytest.fixture
def plan():
    return make_plan("yolo11n.yaml", {"none": None, "good": {}, "poor": {}}, [], 2, 2, {})


@pytest.fixture
def finished(plan, tmp_path: Path):
    """Write what the runs of the plan found, boxes farther off with `poor`.

    Returns:
        The folder, and the boxes by method and seed.
    """
    boxes: dict[tuple[str, int], list[tuple[Found, Truth]]] = {}
    off = {"none": 6.0, "good": 2.0, "poor": 12.0}
    for spec in plan.runs():
        rng = np.random.default_rng([spec.seed, len(spec.method)])
        seen = {}
        for i in range(IMAGES):
            true = np.float32([[10, 10, 40, 40, i % 2], [50, 50, 90, 80, 1]])
            moved = true[:, :4] + rng.uniform(0, off[spec.method], (2, 4)).astype(np.float32)
            found = np.concatenate([moved, rng.uniform(0, 1, (2, 1)), true[:, 4:]], 1).astype(np.float32)
            if i % 2 == spec.fold:
                pair = SeenImage(
                    Found(f"{i:02d}.png", found[:, :4], found[:, 5], found[:, 4]),
                    Truth(f"{i:02d}.png", true[:, :4], true[:, 4], (100, 100), patient=f"p{i % PATIENTS}"),
                )
                seen[f"{i:02d}.png"] = pair
                boxes.setdefault((spec.method, spec.seed), []).append(pair)
        folder = tmp_path / RUNS / spec.name
        folder.mkdir(parents=True)
        save_predictions(folder / FOUND, seen, {f"{i:02d}.png": f"p{i % PATIENTS}" for i in range(IMAGES)})
        result = {"seconds_per_step": 0.1 + spec.fold, "peak_memory_bytes": 5, "parameters": 7}
        write_json(folder / RESULT, result)
    return tmp_path, boxes


def test_scores_and_paired_differences_are_those_of_all_folds_together(plan, finished):
    out, boxes = finished
    comparison = score_runs(out, plan, ["a", "b"], {}, rounds=ROUNDS)
    rows = {row.method: row for row in comparison.rows}

    def pooled(method, seed):
        one = measure("average_precision", ["a", "b"])
        for found, truth in sorted(boxes[method, seed], key=lambda pair: pair[0].name):
            one.update(found, truth)
        return one

    measures = {key: pooled(*key) for key in boxes}
    patients = [f"p{i % PATIENTS}" for i in range(IMAGES)]

    def mean(method, weights):
        return float(np.mean([measures[method, seed].compute(weights)["mAP50-95"] for seed in (0, 1)]))

    assert rows["good"].seeds == [0, 1]
    for method in ("none", "good", "poor"):
        expected = bootstrap(lambda w, m=method: mean(m, w), patients, rounds=ROUNDS, scale="share")
        got = rows[method].scores["mAP50-95"]
        assert (got.value, got.low, got.high) == pytest.approx((expected.value, expected.low, expected.high))
        assert rows[method].by_seed[1]["mAP50"] == measures[method, 1].compute()["mAP50"]
    expected = paired(lambda w: mean("poor", w[0]) if w[0].any() else mean("none", w[1]), patients, rounds=ROUNDS)
    got = rows["poor"].to_baseline["mAP50-95"]
    assert (got.value, got.low, got.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert got.high < 0
    assert comparison.best == {"yolo11n": "good"} and not rows["good"].to_best
    assert rows["good"].to_baseline["mAP50-95"].low > 0 > rows["none"].to_best["mAP50-95"].high
    assert rows["none"].seconds_per_step == pytest.approx(0.6) and rows["none"].parameters == 7


def test_a_seed_that_lacks_a_fold_is_left_out(plan, finished):
    out, _ = finished
    lost = "yolo11n-poor-seed1-fold0"
    (out / RUNS / lost / RESULT).unlink()
    comparison = score_runs(out, plan, ["a", "b"], {lost: "no memory"}, rounds=ROUNDS)
    rows = {row.method: row for row in comparison.rows}
    assert rows["poor"].seeds == [0] and rows["none"].seeds == [0, 1] and comparison.folds == [0, 1]
    assert f"failed: {lost}: no memory" in as_text(comparison)
    assert "yolo11n poor: seeds 0 only" in as_text(comparison)


def test_nothing_finished_is_no_error(plan, tmp_path):
    comparison = score_runs(tmp_path, plan, ["a", "b"], {})
    assert "no scores yet" in as_text(comparison)
    assert not write_report(tmp_path, comparison, {}).read_text().count("![")


def test_runs_on_other_images_are_refused(plan, finished):
    out, _ = finished
    image = SeenImage(Found("x.png", [], [], []), Truth("x.png", [], [], (8, 8)))
    save_predictions(out / RUNS / "yolo11n-poor-seed1-fold0" / FOUND, {"x.png": image}, {"x.png": "p"})
    with pytest.raises(ValueError, match="other images"):
        score_runs(out, plan, ["a", "b"], {}, rounds=ROUNDS)


def test_the_report_has_tables_and_pictures(plan, finished):
    out, _ = finished
    comparison = score_runs(out, plan, ["a", "b"], {}, rounds=ROUNDS)
    for row in comparison.rows:
        row.milliseconds_per_image = 12.5
    page = write_report(out, comparison, {"epochs": 3}).read_text()
    assert "| 12.5 |" in page
    assert "| yolo11n | good | 4/4 |" in page and "epochs: 3" in page and "difference to none" in page
    assert (out / "differences.png").stat().st_size > 5000 and (out / "bubbles.png").stat().st_size > 5000
