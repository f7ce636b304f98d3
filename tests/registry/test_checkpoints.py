"""Detectors from checkpoints: what loads, and what is refused."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.nn import tasks
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel, torch_safe_load

from meddet_yolo import registry
from meddet_yolo.nn.heads import NmODE2Detect
from tests.registry._helpers import python, save, shipped_config, stock_weights


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with our head, its `conv` blocks and a block in the neck."""
    config = shipped_config()
    config["head"][-1][3][1].update(inject="conv", branches=["cls"])
    model = DetectionModel(config, nc=2, verbose=False)
    model.names = {0: "a", 1: "b"}
    return save(model, tmp_path_factory.mktemp("student") / "best.pt")


def test_plain_yolo_predicts_in_a_process_that_never_names_the_package(student: Path) -> None:
    out = python(f"""
        import sys, numpy
        from ultralytics import YOLO
        assert "meddet_yolo" not in sys.modules
        model = YOLO({str(student)!r})
        boxes = model.predict(numpy.zeros((64, 64, 3), "uint8"), imgsz=64, conf=0.0001, verbose=False)[0].boxes
        model.model.model[-1].nmode_cls  # the head is ours
        print(boxes.data.shape[1], model.names)
    """)
    assert out.splitlines()[-1] == "6 {0: 'a', 1: 'b'}"


def test_safe_mode_knows_our_files_and_checkpoints_once_the_package_is_imported(student: Path) -> None:
    """Here the package is imported before Ultralytics; in all other tests it is the other way round."""
    out = python(
        f"""
        from meddet_yolo import NmODE2Detect
        from ultralytics import YOLO
        print(*(type(YOLO(m).model.model[-1]).__name__ for m in ("meddet-n.yaml", {str(student)!r})))
        """,
        ULTRALYTICS_SAFE_LOAD="1",
    )
    assert out.split() == ["NmODE2Detect", "NmODE2Detect"]
    assert isinstance(torch_safe_load(student, safe_only=True)[0]["model"].model[-1], NmODE2Detect)


@pytest.mark.parametrize("name", ["meddet-n.yaml", "yolov8n.yaml", "yolov10n.yaml", "yolo11n.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize("trust", [False, True])
def test_detectors_load_as_ultralytics_loads_them(name: str, trust: bool, tmp_path: Path) -> None:
    path = save(stock_weights(name, 2, ["a", "b"]), tmp_path / "teacher.pt")
    model = registry.load_detector(path, trust=trust)
    want, _ = tasks.load_checkpoint(path)
    assert not model.training and all(p.dtype == torch.float32 for p in model.parameters())
    assert (model.names, model.task, model.pt_path) == ({0: "a", 1: "b"}, "detect", str(path))
    assert model.args == want.args and model.yaml == want.yaml
    assert torch.equal(model.stride, torch.tensor([8.0, 16.0, 32.0]))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x)[0], want(x)[0])


def test_ema_is_preferred(tmp_path: Path) -> None:
    ema, model = stock_weights("yolo11n.yaml", 2, ["e", "f"]), stock_weights("yolo11n.yaml", 2, ["a", "b"])
    path = save(model, tmp_path / "last.pt", ema=ema.half(), optimizer={}, epoch=3)
    assert registry.load_detector(path).names == {0: "e", 1: "f"}


class Foreign:
    """Unpickling one of these creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["checkpoint", "beside the model", "old torch"])
def test_foreign_code_is_refused_by_name_and_never_runs(form: str, tmp_path: Path) -> None:
    path, target = tmp_path / "teacher.pt", tmp_path / "proof"
    if form == "beside the model":
        save(stock_weights("yolo11n.yaml", 2), path, extra=Foreign(target))
    else:
        torch.save({"model": Foreign(target)}, path, _use_new_zipfile_serialization=form == "checkpoint")
    with pytest.raises(ValueError, match=r"foreign code .*mkdir.*trust=true") as error:
        registry.load_detector(path)
    assert "\n" not in str(error.value)
    assert not target.exists()


def test_a_bare_pickle_is_no_checkpoint_and_never_runs(tmp_path: Path) -> None:
    path, target = tmp_path / "teacher.pt", tmp_path / "proof"
    path.write_bytes(pickle.dumps(Foreign(target)))
    with pytest.raises(ValueError, match="cannot be read"):
        registry.load_detector(path)
    assert not target.exists()


def test_trust_runs_it(tmp_path: Path) -> None:
    path, target = tmp_path / "teacher.pt", tmp_path / "proof"
    save(stock_weights("yolo11n.yaml", 2), path, extra=Foreign(target))
    registry.load_detector(path, trust=True)
    assert target.is_dir()


def test_trusted_checkpoints_never_install_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("no_such_package_of_anyone")
    module.Thing = type("Thing", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = save(stock_weights("yolo11n.yaml", 2), tmp_path / "teacher.pt", extra=module.Thing())
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setattr(tasks, "check_requirements", lambda *a, **k: pytest.fail("tried to install"))
    with pytest.raises(ValueError, match="needs the package 'no_such_package_of_anyone'"):
        registry.load_detector(path, trust=True)


def test_an_rtdetr_checkpoint_is_a_teacher(tmp_path: Path) -> None:
    from meddet_yolo.distill.teachers import Teacher

    model = tasks.RTDETRDetectionModel("rtdetr-l.yaml", nc=2, verbose=False)
    torch.save({"model": model.half(), "train_args": {"task": "detect"}}, tmp_path / "rtdetr.pt")
    teacher = Teacher(registry.load_detector(tmp_path / "rtdetr.pt"))
    feats = teacher(torch.rand(1, 3, 64, 64)).feats
    assert [tuple(m.shape) for m in feats] == [(1, 256, 8, 8), (1, 256, 4, 4), (1, 256, 2, 2)]
    assert all(m.isfinite().all() and m.std() > 0 for m in feats)


def truncated(path: Path) -> None:
    save(stock_weights("yolo11n.yaml", 2), path)
    path.write_bytes(path.read_bytes()[:-5000])


def torchscript(path: Path) -> None:
    torch.jit.trace(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4)).save(str(path))


def other_task(name: str) -> object:
    def write(path: Path) -> None:
        model = {"seg": tasks.SegmentationModel, "pose": tasks.PoseModel, "cls": tasks.ClassificationModel}
        model |= {"obb": tasks.OBBModel}
        task = {"seg": "segment", "cls": "classify"}.get(name, name)
        torch.save({"model": model[name](f"yolo11n-{name}.yaml", verbose=False), "train_args": {"task": task}}, path)

    return write


BAD = {
    "missing": ("t.pt", None, FileNotFoundError, "does not exist"),
    "folder": ("run.pt", lambda p: p.mkdir(), ValueError, "is a folder"),
    "empty": ("t.pt", lambda p: p.write_bytes(b""), ValueError, "is empty"),
    "text": ("t.pt", lambda p: p.write_text("not a model"), ValueError, "cannot be read"),
    "image": ("t.pt", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" * 99), ValueError, "cannot be read"),
    "truncated": ("t.pt", truncated, ValueError, "truncated"),
    "torchscript": ("t.pt", torchscript, TypeError, "TorchScript"),
    "onnx": ("t.onnx", lambda p: p.write_bytes(b"onnx"), TypeError, "not a PyTorch checkpoint"),
    "engine": ("t.engine", lambda p: p.write_bytes(b"trt"), TypeError, "not a PyTorch checkpoint"),
    "yaml": ("t.yaml", lambda p: p.write_text("nc: 1"), TypeError, "untrained"),
    "tensor": ("t.pt", lambda p: torch.save(torch.zeros(3), p), (TypeError, ValueError), "t.pt"),
    "weights only": ("t.pt", lambda p: torch.save({"a": torch.zeros(3)}, p), TypeError, "holds no model"),
    "model is a dict": ("t.pt", lambda p: torch.save({"model": {"a": torch.zeros(3)}}, p), TypeError, "holds no model"),
    "plain module": ("t.pt", lambda p: torch.save({"model": torch.nn.Conv2d(3, 4, 1)}, p), TypeError, "Conv2d"),
    "segment": ("t.pt", other_task("seg"), TypeError, "'segment'.*expected a YOLO or RT-DETR detector"),
    "pose": ("t.pt", other_task("pose"), TypeError, "'pose'.*expected a YOLO or RT-DETR detector"),
    "obb": ("t.pt", other_task("obb"), TypeError, "'obb'.*expected a YOLO or RT-DETR detector"),
    "classify": ("t.pt", other_task("cls"), TypeError, "'classify'.*expected a YOLO or RT-DETR detector"),
    "renamed by ultralytics": (
        "yolov5n.pt",
        lambda p: save(stock_weights("yolo11n.yaml", 2), p),
        ValueError,
        "another name",
    ),
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_teachers_give_one_clear_line(
    case: str, trust: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, write, kind, message = BAD[case]
    path = tmp_path / name
    if write:
        write(path)
    monkeypatch.setattr(tasks, "check_requirements", lambda *a, **k: pytest.fail("tried to install"))
    with pytest.raises(kind, match=message) as error:
        registry.load_detector(path, trust=trust)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_official_names_are_not_looked_for_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"yolo11s\.pt is not here .* offline"):
        registry.load_detector("yolo11s.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        registry.load_detector("yolo11s-of-mine.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        registry.load_detector("runs/yolo11s.pt")


def test_official_names_in_the_weights_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import SETTINGS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SETTINGS, "weights_dir", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    save(stock_weights("yolo11n.yaml", 2, ["a", "b"]), tmp_path / "weights" / "yolo11n.pt")
    assert registry.load_detector("yolo11n.pt").names == {0: "a", 1: "b"}


def test_the_trained_stock_teacher_loads_safely() -> None:
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "teachers" / "yolo11s_spider_disc2.pt"
    if not path.is_file():
        pytest.skip("the trained teacher is not beside the repository")
    model = registry.load_detector(path)
    assert isinstance(model.model[-1], Detect) and model.names
    assert np.isfinite(model(torch.zeros(1, 3, 64, 64))[0].detach().numpy()).all()
