from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

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
    assert describe(RecursionError("maximum recursion depth exceeded")) == "a file is nested too deeply"
    name = 300 * "x"
    with pytest.raises(OSError) as error:
        Path(name).read_text()
    assert describe(error.value) == f"a name is too long for this file system: {name[:60]}..."


@given(st.text())
def test_any_message_becomes_one_line(text: str) -> None:
    line = describe(ValueError(text))
    assert line
    assert len(line.splitlines()) == 1


def run_offline(code: str, **environment: str) -> str:
    """Run code in a fresh process without the settings of these tests, whose network tells when it is used."""
    watched = """
        import socket
        def asked(*args, **kwargs):
            raise SystemExit(f"the network was used: {args}")
        socket.getaddrinfo = socket.socket.connect = asked
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("YOLO_O") and k != "YOLO_AUTOINSTALL"}
    command = [sys.executable, "-c", textwrap.dedent(watched) + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env={**kept, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_uses_no_network_and_sends_nothing():
    said = run_offline("""
        from meddet_yolo import cli
        assert cli.main(["version"]) == 0
        assert cli.main(["info", "model=yolo11n.yaml", "imgsz=64"]) == 0
        from ultralytics.utils import AUTOINSTALL, events
        from meddet_yolo.console import may_fetch
        print("telemetry", events.events.enabled, "installs", AUTOINSTALL, "fetches what is asked for", may_fetch())
    """)
    assert said.splitlines()[-1] == "telemetry False installs False fetches what is asked for True"


def test_an_environment_that_says_offline_keeps_it():
    said = run_offline(
        """
        from meddet_yolo import cli
        cli.main(["version"])
        from meddet_yolo.console import may_fetch
        print(may_fetch())
    """,
        YOLO_OFFLINE="true",
    )
    assert said.splitlines()[-1] == "False"
