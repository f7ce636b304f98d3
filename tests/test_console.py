from __future__ import annotations

import pytest
from ultralytics.utils import LOGGER

from meddet_yolo.console import quiet


def test_log_level_is_put_back() -> None:
    before = LOGGER.level
    with pytest.raises(RuntimeError), quiet():
        assert LOGGER.level > before
        raise RuntimeError
    assert LOGGER.level == before
