"""Weights of stock models in ours, and what the log says of them."""

import logging
from collections.abc import Iterator

import pytest
import torch
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from meddet_yolo import registry
from tests.registry._helpers import shipped_config, stock_weights


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Ultralytics' logger says; it does not propagate by itself."""
    LOGGER.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger=LOGGER.name)
    yield caplog
    LOGGER.removeHandler(caplog.handler)


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
