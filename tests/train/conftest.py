"""What tests of training share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from ultralytics.utils import LOGGER


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What Ultralytics' logger says; it does not propagate to pytest's own collector."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)
