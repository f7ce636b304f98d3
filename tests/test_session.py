"""The test session itself: folders that are made once, and files that no test should leave behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def conftest(pytestconfig: pytest.Config) -> Any:
    return pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))


@pytest.mark.parametrize("name", ["best.onnx", "runs/detect/x.pt", "cfg/models/new.yaml"])
def test_a_new_file_in_the_checkout_fails_the_session(conftest, tmp_path, name):
    (tmp_path / "kept.py").touch()
    check = conftest.LitterCheck(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    session = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    check.pytest_sessionfinish(session)
    assert session.exitstatus == pytest.ExitCode.TESTS_FAILED
    assert check.new == [name]


@pytest.mark.parametrize("name", [".ruff_cache/x", ".venv-meddet/bin/python", "trt/__pycache__/a.pyc", "x.egg-info/y"])
def test_what_tools_keep_is_no_litter(conftest, tmp_path, name):
    check = conftest.LitterCheck(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    session = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    check.pytest_sessionfinish(session)
    assert session.exitstatus == pytest.ExitCode.OK


def test_a_shared_folder_is_filled_once_and_again_only_after_a_failure(made_once, request):
    name, calls = f"of-{request.node.name}", []

    def failing(folder: Path) -> None:
        calls.append("failed")
        (folder / "half").touch()
        raise OSError("no space")

    def filling(folder: Path) -> None:
        calls.append("filled")
        (folder / "whole").touch()

    with pytest.raises(OSError, match="no space"):
        made_once(name, failing)
    folder = made_once(name, filling)
    assert made_once(name, failing) == folder
    assert calls == ["failed", "filled"]
    assert [file.name for file in folder.iterdir()] == ["whole"]
