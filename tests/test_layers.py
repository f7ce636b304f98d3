"""Imports run downwards only, as the house is drawn: lazy ones and those for annotations included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEAVES = (
    "cfg",
    "console",
    "files",
    "plotting",
    "signatures",
    "_moved",
)  # import nothing of the package; any room may import them
GROUND = ("imaging", "distill", "nn", "phantom", "trt")  # import leaves only
FLOORS = {  # a room may import from lower floors only, and so from no room beside it
    **dict.fromkeys(LEAVES, 0),
    **dict.fromkeys(GROUND, 1),
    "commands": 1,
    "data": 2,
    "registry": 3,
    "evaluate": 4,
    **dict.fromkeys(("train", "predict", "export"), 5),
    "model": 6,
    "benchmark": 7,
    **dict.fromkeys(("compare", "quickstart", "arguments"), 8),
    "help": 9,
    "completion": 10,
    "cli": 11,
    "__init__": 12,
}
# Rooms that use less than what lies under them: images for data, calibration images and compilers for export.
ONLY = {"data": {"imaging"}, "export": {"registry", "data", "trt"}}


def module_name(file: Path) -> str:
    """The dotted name that a file is imported by; cfg/ and trt/ are installed inside the package."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "meddet_yolo" else ("meddet_yolo", *parts)
    return ".".join(parts).removesuffix(".__init__")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imported(source: str, modules: set[str]) -> set[str]:
    """The modules among `modules` that a source imports, wherever in it the statement stands."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module and not node.level, f"line {node.lineno}: a relative import; write the whole name"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                yield from inside
                if inside - modules:  # a name in the module itself
                    yield node.module

    return set(names()) & modules


@cache
def imports() -> dict[str, set[str]]:
    """Every module of the package with the modules of the package that it imports."""
    files = {module_name(f): f for top in ("meddet_yolo", "trt", "cfg") for f in sorted((ROOT / top).rglob("*.py"))}
    found = {name: imported(file.read_text(encoding="utf-8"), set(files)) for name, file in files.items()}
    return {name: targets - {name} for name, targets in found.items()}


def arrows(start: str) -> dict[str, set[str]]:
    """The other rooms that a room imports from, each with the statements in question."""
    found: dict[str, set[str]] = {}
    for module, targets in imports().items():
        if room(module) == start:
            for target in targets:
                found.setdefault(room(target), set()).add(f"{module} imports {target}")
    found.pop(start, None)
    return found


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in imports()} == set(FLOORS)


@pytest.mark.parametrize("start", FLOORS)
def test_imports_run_downwards(start: str) -> None:
    upwards = {line for target, lines in arrows(start).items() if FLOORS[target] >= FLOORS[start] for line in lines}
    assert not upwards, "; ".join(sorted(upwards))


@pytest.mark.parametrize("start", ONLY)
def test_some_rooms_use_few_others(start: str) -> None:
    lines = {line for other, found in arrows(start).items() if other not in {*ONLY[start], *LEAVES} for line in found}
    assert not lines, "; ".join(sorted(lines))


def test_no_circle_between_files() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_every_kind_of_import_is_seen() -> None:
    source = """
from typing import TYPE_CHECKING
import meddet_yolo.a
if TYPE_CHECKING:
    from meddet_yolo.b import B
def late():
    from meddet_yolo import c, name
    from meddet_yolo.d import e, other
    """
    modules = {"meddet_yolo", *(f"meddet_yolo.{name}" for name in ("a", "b", "c", "d", "d.e", "f"))}
    assert imported(source, modules) == modules - {"meddet_yolo.f"}
