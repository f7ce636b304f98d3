"""The door to Ultralytics: our layers in YAMLs, shipped files by name, weights, detectors from checkpoints."""

import logging
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import DetectionModel, torch_safe_load
from ultralytics.utils import LOGGER, YAML

import meddet_yolo
from meddet_yolo import registry
from meddet_yolo.cfg import MODELS_DIR
from meddet_yolo.nn.heads import NmODE2Detect


def python(code: str, **env: str) -> str:
    """Run code in a fresh process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def save(model: torch.nn.Module, path: Path, **extra: object) -> Path:
    args = {"imgsz": 64, "task": "detect", "model": "x.yaml"}
    torch.save({"model": model.half(), "ema": None, "train_args": args, **extra}, path)
    return path


def shipped_config() -> dict:
    return tasks.yaml_model_load("meddet-n.yaml")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with our head, its `conv` blocks and a block in the neck."""
    config = shipped_config()
    config["head"][-1][3][1].update(inject="conv", branches=["cls"])
    model = DetectionModel(config, nc=2, verbose=False)
    model.names = {0: "a", 1: "b"}
    return save(model, tmp_path_factory.mktemp("student") / "best.pt")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Ultralytics' logger says; it does not propagate by itself."""
    LOGGER.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger=LOGGER.name)
    yield caplog
    LOGGER.removeHandler(caplog.handler)


# ---------------------------------------------------------------------------------------------------- registration


def test_registering_twice_wraps_once() -> None:
    before = tasks.parse_model, tasks.yaml_model_load, tasks.BaseModel.load
    registry.register()
    assert (tasks.parse_model, tasks.yaml_model_load, tasks.BaseModel.load) == before
    assert not hasattr(tasks.parse_model.__wrapped__, "__wrapped__")


def test_every_holder_of_a_wrapped_function_has_the_wrapper() -> None:
    import ultralytics.engine.model
    import ultralytics.nn

    assert ultralytics.engine.model.yaml_model_load is tasks.yaml_model_load is ultralytics.nn.yaml_model_load
    assert ultralytics.nn.parse_model is tasks.parse_model


def test_importing_the_package_imports_neither_torch_nor_ultralytics() -> None:
    out = python("""
        import sys
        import meddet_yolo, meddet_yolo.trt, meddet_yolo.cfg
        print("torch" in sys.modules, "ultralytics" in sys.modules)
    """)
    assert out.split() == ["False", "False"]


@pytest.mark.slow("starts processes")
@pytest.mark.parametrize("first", ["from meddet_yolo import NmODE2Block", "from meddet_yolo import MedDet"])
def test_any_public_name_may_be_imported_first(first: str) -> None:
    """Our modules import Ultralytics, whose import calls for our modules."""
    python(f"{first}; from ultralytics import YOLO; YOLO('meddet11-n.yaml')")


def test_importing_the_package_works_without_torch_and_ultralytics() -> None:
    python("""
        import sys
        sys.modules["torch"] = sys.modules["ultralytics"] = None  # importing them raises ImportError
        import meddet_yolo
        assert meddet_yolo.resolve_model_yaml("meddet-n").name == "meddet-n.yaml"
    """)


def test_public_names_resolve_to_their_home() -> None:
    assert set(meddet_yolo.__all__) <= set(dir(meddet_yolo))
    for name in meddet_yolo.__all__:
        assert getattr(meddet_yolo, name) is not None
    assert meddet_yolo.NmODE2Detect is NmODE2Detect
    with pytest.raises(AttributeError, match="NmODE3"):
        _ = meddet_yolo.NmODE3  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------- model YAMLs


def test_models_without_our_layers_go_through_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tasks.yaml_model_load("yolo11n.yaml")
    assert config == tasks.yaml_model_load.__wrapped__("yolo11n.yaml")
    torch.manual_seed(0)
    ours, saved = tasks.parse_model(tasks.yaml_model_load("yolo11n.yaml"), 3, False)
    torch.manual_seed(0)
    stock, want = tasks.parse_model.__wrapped__(tasks.yaml_model_load("yolo11n.yaml"), 3, False)
    assert saved == want and str(ours) == str(stock)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), stock.parameters(), strict=True))


def test_the_parser_leaves_its_argument_and_the_stock_classes_alone() -> None:
    config = shipped_config()
    before = repr(config)
    layers, _ = tasks.parse_model(config, 3, False)
    assert repr(config) == before
    assert "NmODE2Detect" not in vars(tasks)
    head = layers[-1]
    assert type(head) is NmODE2Detect and head.legacy is False
    tasks.parse_model(tasks.yaml_model_load("yolov8n.yaml"), 3, False)  # sets Detect.legacy of the class
    assert head.legacy is False and Detect.legacy is True
    assert NmODE2Detect(2, ch=(16, 32)).legacy is False
    for row in config["backbone"] + config["head"]:
        if row[2] == "C3k2":
            row[2], row[3] = "C2f", row[3][:2]
    legacy = tasks.parse_model(config, 3, False)[0][-1]
    assert legacy.legacy is True and isinstance(legacy.cv3[0][0], Conv)


def test_routing_attributes_are_carried_over() -> None:
    head = DetectionModel("meddet-n.yaml", verbose=False).model[-1]
    assert (head.i, head.f) == (23, [16, 19, 22])
    assert head.np == sum(p.numel() for p in head.parameters())
    assert head.type == "meddet_yolo.nn.heads.NmODE2Detect"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nc", {"branch": ["cls"]}], "unknown option 'branch', did you mean 'branches'"),
        (["nc", {"solvr": "closed"}], "unknown option 'solvr', did you mean 'solver'"),
        (["nc", {"inject": "act"}, 3], "not of the form"),
        ([], "not of the form"),
        (["nc", {"inject": "cnv"}], "inject='cnv'"),
    ],
)
def test_bad_head_rows_are_named(args: list, message: str) -> None:
    config = shipped_config()
    config["head"][-1][3] = args
    with pytest.raises(ValueError, match=message):
        DetectionModel(config, verbose=False)


def test_a_repeated_head_is_refused() -> None:
    config = shipped_config()
    config["head"][-1][1] = 2
    with pytest.raises(ValueError, match=r"row 23 .* cannot be repeated, got 2"):
        DetectionModel(config, verbose=False)


def test_options_may_be_left_out() -> None:
    config = shipped_config()
    config["head"][-1][3] = ["nc"]
    head = DetectionModel(config, nc=2, verbose=False).model[-1]
    assert (head.branches, head.inject, head.nc) == (("cls", "reg"), "act", 2)


def test_the_model_table_shows_our_head(log: pytest.LogCaptureFixture) -> None:
    DetectionModel("meddet-n.yaml", verbose=True)
    lines = [r.getMessage() for r in log.records]
    rows = [line for line in lines if "ultralytics.nn.modules" in line or "meddet_yolo" in line]
    assert len([line for line in lines if line[:3].strip().isdigit()]) == 24
    assert "meddet_yolo.nn.heads.NmODE2Detect" in rows[-1] and "inject=gate" in rows[-1]
    assert not any("head.Detect" in line for line in lines)
    assert not any("Assuming scale" in line for line in lines)


def test_a_failing_build_still_logs_what_came_before(log: pytest.LogCaptureFixture) -> None:
    config = shipped_config()
    config["head"][3][1:] = [1, "Conv", [64, "no size"]]
    with pytest.raises(SyntaxError):
        DetectionModel(config, verbose=True)
    assert any("C2PSA" in r.getMessage() for r in log.records)
    assert not LOGGER.filters or all("hold" not in repr(f) for f in LOGGER.filters)


# ---------------------------------------------------------------------------------------------------- shipped files


def test_bare_names_resolve() -> None:
    assert registry.resolve_model_yaml("meddet-n") == MODELS_DIR / "meddet-n.yaml"
    assert registry.resolve_model_yaml("meddet11-s.yaml") == MODELS_DIR / "meddet11-s.yaml"
    assert registry.resolve_model_yaml(Path("meddet-x.yml")) == MODELS_DIR / "meddet-x.yaml"


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolo26n", "sub/meddet-n.yaml", "./meddet-n.yaml", "meddet-n.pt", ""])
def test_other_names_are_none_of_ours(name: str) -> None:
    assert registry.resolve_model_yaml(name) is None


@pytest.mark.parametrize("load", [YOLO, DetectionModel, registry.resolve_model_yaml])
def test_unknown_names_list_what_is_shipped(load: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"meddet-q\.yaml.*meddet-l\.yaml.*meddet11-s\.yaml"):
        load("meddet-q.yaml")


def test_a_local_file_of_the_same_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (MODELS_DIR / "meddet-n.yaml").read_text().replace("t_end: 1.0", "t_end: 2.0")
    (tmp_path / "meddet-n.yaml").write_text(text)
    assert DetectionModel("meddet-n.yaml", verbose=False).model[-1].ode["t_end"] == 2.0


@pytest.mark.parametrize("name", ["own.yaml", "2n data/meddet-m.yaml", "yolo11n-mine.yaml"])
def test_copies_under_any_path_keep_their_scale(
    name: str, tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics reads scales from names like yolo11n, and rewrites the first digit-and-letter of a path it misses."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text((MODELS_DIR / "meddet-s.yaml").read_text())
    model = DetectionModel(str(path), verbose=False)
    assert model.yaml["scale"] == "s"
    assert model.model[0].conv.out_channels == 32  # 64 channels at width 0.5
    assert not any("Assuming scale" in r.getMessage() for r in log.records)


def test_large_scales_get_their_blocks() -> None:
    """Ultralytics changes C3k2 at m, l and x: the scale must reach it."""
    with torch.device("meta"):
        layers = tasks.parse_model(tasks.yaml_model_load("meddet-m.yaml"), 3, False)[0]
        stock = tasks.parse_model(tasks.yaml_model_load("yolo26m.yaml"), 3, False)[0]
    assert str(layers[:-1]) == str(stock[:-1])


# ---------------------------------------------------------------------------------------------------- weights


def stock_weights(name: str, nc: int, names: list[str] | None = None) -> DetectionModel:
    model = DetectionModel(name, nc=nc, verbose=False)
    if names:
        model.names = dict(enumerate(names))
    return model


@pytest.mark.parametrize(("ours", "stock"), [("meddet-n.yaml", "yolo26n.yaml"), ("meddet11-n.yaml", "yolo11n.yaml")])
def test_stock_weights_load_completely(ours: str, stock: str, log: pytest.LogCaptureFixture) -> None:
    source = stock_weights(stock, 3, ["a", "b", "c"])
    config = tasks.yaml_model_load(ours)
    model = DetectionModel(config, nc=3, verbose=False)
    model.load(source)
    message = log.records[-1].getMessage()
    want, n = source.state_dict(), len(model.state_dict())
    assert message.startswith(f"MedDet: {len(want)}/{n} tensors transferred from the pretrained weights;")
    given = model.state_dict()
    assert all(torch.equal(given[k], want[k]) for k in want)
    gates = [v for k, v in given.items() if "nmode_" in k and k.endswith(".out.weight")]
    assert gates and not any(v.any() for v in gates)  # closed: the model computes what the stock one does
    assert model.names == source.names  # as Ultralytics has it where the weights are complete

    config["head"][-1][3][1]["inject"] = "act"
    model = DetectionModel(config, nc=3, verbose=False)
    model.load(source)
    message = log.records[-1].getMessage()
    assert message.startswith(f"MedDet: {len(want)}/{len(want)} tensors transferred from the pretrained weights;")
    started = {k for k, v in model.state_dict().items() if not torch.equal(v, want[k])}
    norms = {f"model.23.{m}" for m, _ in model.model[-1].named_modules() if m.endswith("1.bn")}  # before nmODE²
    assert started and {k.rpartition(".")[0] for k in started} <= norms


def test_what_was_not_transferred_is_named(log: pytest.LogCaptureFixture) -> None:
    config = shipped_config()
    config["head"][-1][3][1]["inject"] = "conv"
    model = DetectionModel(config, nc=2, verbose=False)
    model.load(stock_weights("yolo26n.yaml", 80))
    report = registry.transfer_report(model, stock_weights("yolo26n.yaml", 80))
    message = log.records[-1].getMessage()
    assert message == f"MedDet: {report}"
    assert all(f"model.23.{m} (18)" in message for m in ("nmode_reg", "nmode_cls", "one2one_nmode_reg"))
    assert "model.23.cv3 (6), model.23.one2one_cv3 (6) (other shape in the weights)" in message
    assert report.total == len(model.state_dict()) and report.transferred == report.total - 4 * 18 - 12
    assert set(report.reshaped) == {
        f"model.23.{b}.{i}.2.{p}" for b in ("cv3", "one2one_cv3") for i in range(3) for p in ("weight", "bias")
    }


def test_rows_matched_by_class_name_count_as_transferred_in_part() -> None:
    model = stock_weights("meddet-n.yaml", 2, ["disc", "hernia"])
    source = stock_weights("yolo26n.yaml", 3, ["cat", "hernia", "disc"])
    model.load(source, verbose=False)
    report = registry.transfer_report(model, {"ema": None, "model": source})
    assert len(report.adapted) == 12 and not report.reshaped
    assert report.missing and all("nmode_" in name for name in report.missing)
    assert "model.23.cv3 (6), model.23.one2one_cv3 (6) in part" in str(report)


def test_weights_of_another_layout_are_warned_of(log: pytest.LogCaptureFixture) -> None:
    stock_weights("meddet-n.yaml", 2).load(stock_weights("yolov8n.yaml", 2))
    assert log.records[-1].levelno == logging.WARNING and "more layers" in log.records[-1].getMessage()
    assert "in part" not in log.records[-1].getMessage()


def test_a_first_convolution_for_grey_images_counts_as_transferred_in_part() -> None:
    config = shipped_config()
    model = DetectionModel(config, ch=1, nc=2, verbose=False)
    source = stock_weights("yolo26n.yaml", 2)
    model.load(source, verbose=False)
    assert registry.transfer_report(model, source).adapted == ("model.0.conv.weight",)


def test_stock_models_load_without_our_report(log: pytest.LogCaptureFixture) -> None:
    stock_weights("yolo26n.yaml", 2).load(stock_weights("yolo26n.yaml", 3))
    assert not any("MedDet" in r.getMessage() for r in log.records)


# ---------------------------------------------------------------------------------------------------- checkpoints


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


def test_shipped_files_are_valid_yaml() -> None:
    assert all(YAML.load(p)["nc"] == 80 for p in MODELS_DIR.glob("*.yaml"))
