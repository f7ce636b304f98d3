"""Our layers in model YAMLs, and shipped files by their names."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER, YAML

from meddet_yolo import registry
from meddet_yolo.cfg import MODELS_DIR
from meddet_yolo.nn.heads import NmODE2Detect
from tests.registry._helpers import shipped_config


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Ultralytics' logger says; it does not propagate by itself."""
    LOGGER.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger=LOGGER.name)
    yield caplog
    LOGGER.removeHandler(caplog.handler)


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


def test_shipped_files_are_valid_yaml() -> None:
    assert all(YAML.load(p)["nc"] == 80 for p in MODELS_DIR.glob("*.yaml"))
