import sys
import threading
import time
from pathlib import Path

import pytest

from meddet_yolo.compare import compare
from meddet_yolo.compare.files import RESULT, RUNS
from meddet_yolo.compare.folds import make_folds, read_images, write_folds
from meddet_yolo.compare.harness import execute, prepare
from meddet_yolo.compare.plan_reader import make_plan

STUB = [sys.executable, str(Path(__file__).with_name("_stub_worker.py"))]


def test_ray_that_is_missing_is_named(data_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "meddet-yolo\[ray\]"'):
        compare(data_set, "yolo11n.yaml", out=tmp_path / "out", folds=2, patient=r"(p\d+)_", executor="ray")


def test_a_cluster_that_cannot_be_reached_is_named(data_set, tmp_path):
    pytest.importorskip("ray")
    arguments = {"out": tmp_path / "out", "folds": 2, "patient": r"(p\d+)_", "executor": "ray"}
    with pytest.raises(ConnectionError, match=r"address=127\.0\.0\.1:9: no Ray cluster can be reached") as error:
        compare(data_set, "yolo11n.yaml", address="127.0.0.1:9", **arguments)
    assert "\n" not in str(error.value)


def test_an_unknown_executor_is_refused(data_set, tmp_path):
    with pytest.raises(ValueError, match="executor='slurm' is unknown: expected local or ray"):
        compare(data_set, "yolo11n.yaml", out=tmp_path / "out", folds=2, patient=r"(p\d+)_", executor="slurm")


@pytest.mark.slow("starts processes")
def test_runs_of_a_machine_that_is_lost_go_on_on_another(data_set, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from meddet_yolo.compare.ray_executor import RayExecutor

    monkeypatch.setenv("STUB_SECONDS", "0.4")
    plan = make_plan("yolo11n.yaml", ["none", "native"], ["yolo11s.yaml"], 1, 3, {"epochs": 6})
    runs, items, out = plan.runs(), read_images(data_set, r"(p\d+)_"), tmp_path / "out"
    prepare(out, runs, write_folds(out / "folds", data_set, items, make_folds(items, 3)))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=1)
        executor = RayExecutor(cluster.address, threads=1, command=STUB)

        def kill() -> None:
            while sum(len(file.read_text().split("\n")) for file in (out / RUNS).glob("executed.txt")) < 8:
                time.sleep(0.05)
            cluster.remove_node(lost, allow_graceful=False)

        killer = threading.Thread(target=kill)
        killer.start()
        failed = execute(out, runs, executor)
        killer.join()
        assert len([node for node in ray.nodes() if node["Alive"]]) == 1
        executor.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert failed == {}
    assert all((out / RUNS / spec.name / RESULT).is_file() for spec in runs)
    executed = (out / RUNS / "executed.txt").read_text().splitlines()
    assert sorted(set(executed)) == sorted(f"{spec.name} {epoch}" for spec in runs for epoch in range(6))
    assert len(executed) <= len(set(executed)) + 1  # at most the epoch that was under way was done twice
