import pytest
from ultralytics.engine import trainer
from ultralytics.utils import checks, downloads

from meddet_yolo import MedDet
from meddet_yolo.registry.network import wrap_check_amp


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    for name in ("is_url", "safe_download", "attempt_download_asset"):
        monkeypatch.setattr(downloads, name, lambda *a, **k: pytest.fail("asked the network"))


def test_no_font_is_fetched(tmp_path, monkeypatch):
    assert checks.check_font("NoSuchFont.ttf") is None
    assert checks.check_font("DejaVuSans.ttf").is_file()
    from ultralytics.utils import plotting

    assert plotting.check_font is checks.check_font


def test_mixed_precision_is_tried_with_no_detector_that_would_be_fetched(tmp_path):
    assert trainer.check_amp.__wrapped__ is checks.check_amp.__wrapped__
    weights = tmp_path / "yolo26n.pt"
    with pytest.raises(ConnectionError):
        wrap_check_amp(lambda model: MedDet(weights))(None)
