from types import SimpleNamespace

import pytest
from ultralytics import cfg

from meddet_yolo import MedDet
from meddet_yolo.registry.run_folders import leaving_no_empty_folder


def folder_of(project):
    args = SimpleNamespace(project=str(project), name="run", task="detect", mode="train", exist_ok=False, save_dir=None)
    return cfg.get_save_dir(args)


def fail(*paths):
    with pytest.raises(KeyError), leaving_no_empty_folder():
        folder = folder_of(paths[0])
        (folder / "weights").mkdir(parents=True)
        (folder / "args.yaml").touch()
        for name in paths[1:]:
            (folder / name).touch()
        raise KeyError


def test_what_holds_nothing_goes_and_what_was_there_stays(tmp_path):
    (tmp_path / "own.txt").touch()
    fail(tmp_path / "new" / "project")
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]
    fail(tmp_path / "project", "results.csv")
    assert (tmp_path / "project" / "run" / "results.csv").is_file()
    fail(tmp_path / "project")
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["run"]


def test_a_run_that_is_refused_for_another_leaves_the_folder_to_it(tmp_path):
    with pytest.raises(BlockingIOError), leaving_no_empty_folder():
        run = folder_of(tmp_path)
        run.mkdir(parents=True)
        (run / "args.yaml").touch()  # the other's
        raise BlockingIOError
    assert (run / "args.yaml").is_file()


def test_a_run_that_is_refused_leaves_no_folder(tmp_path, tiny_data):
    model = MedDet("yolo11n.yaml")
    (tmp_path / "broken.yaml").write_text(f"path: {tmp_path}\ntrain: a\nval: b\nnames: [x]\n")
    common = {"data": str(tmp_path / "broken.yaml"), "imgsz": 64, "project": str(tmp_path / "runs")}
    for call in (model.train, model.val):
        with pytest.raises((RuntimeError, FileNotFoundError)):
            call(**common)
    with pytest.raises(FileNotFoundError):
        model.predict(tmp_path / "missing.png", imgsz=64, project=str(tmp_path / "runs"), save=True)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.yaml"]
