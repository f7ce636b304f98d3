"""Imports run downwards only: the four ground-floor rooms know nothing of one another, nor of what stands above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = ("nn", "distill", "data", "trt")
FLOORS = {  # a file may import from its own floor's room and from lower floors
    **dict.fromkeys((*GROUND, "cfg", "console"), 0),
    "evaluate": 1,
    "registry": 2,
    "backend": 2,
    "predictor": 2,
    "exporter": 2,
    "trainer": 3,
    "model": 4,
    "benchmark": 5,
    "quickstart": 5,
    "cli": 6,
}
# The door to Ultralytics installs the engines' back end, and finds shipped model files for those who look at models.
DOOR = {("evaluate", "registry"), ("registry", "backend")}


def sources() -> list[tuple[str, Path]]:
    files = [(p.relative_to(ROOT / "meddet_yolo").parts[0].removesuffix(".py"), p) for p in package_files()]
    return [(room, p) for room, p in files if room in FLOORS] + [("trt", p) for p in (ROOT / "trt").glob("*.py")]


def package_files() -> list[Path]:
    return sorted((ROOT / "meddet_yolo").rglob("*.py"))


def imported_rooms(file: Path) -> set[str]:
    names: list[str] = []
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []  # names for annotations are no dependency
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "meddet_yolo":
            names += [f"meddet_yolo.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return {name.split(".")[1] for name in names if name.startswith("meddet_yolo.")}


def test_every_room_has_a_floor() -> None:
    rooms = {p.relative_to(ROOT / "meddet_yolo").parts[0].removesuffix(".py") for p in package_files()}
    assert rooms - {"__init__"} <= set(FLOORS)


@pytest.mark.parametrize(
    ("room", "file"), sources(), ids=lambda value: value.name if isinstance(value, Path) else value
)
def test_imports_run_downwards(room: str, file: Path) -> None:
    for other in imported_rooms(file) - {room, "cfg", "console"}:
        if (room, other) in DOOR:
            continue
        assert other in FLOORS, f"{file.name} imports meddet_yolo.{other}, which is on no floor"
        assert FLOORS[other] < FLOORS[room], f"{file.name} in {room}/ imports from {other}"
