from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ultralytics.utils import LOGGER

from meddet_yolo.console import describe, quiet


def test_log_level_is_put_back() -> None:
    before = LOGGER.level
    with pytest.raises(RuntimeError), quiet():
        assert LOGGER.level > before
        raise RuntimeError
    assert LOGGER.level == before


def test_long_messages_are_cut_and_cleaned() -> None:
    text = describe(RuntimeError("\x1b[31mbad\x1b[0m ❌ file\n" + "and so on\n" * 100))
    assert text.startswith("bad file and so on")
    assert len(text) < 400
    assert "MEDDET_TRACEBACK=1" in text
    assert "\n" not in text
    assert describe(KeyError("x")) == "KeyError: 'x'"
    assert describe(ValueError()) == "ValueError"


@given(st.text())
def test_any_message_becomes_one_line(text: str) -> None:
    line = describe(ValueError(text))
    assert line
    assert len(line.splitlines()) == 1
