"""Every fenced command and Python example of the README and the pages runs, page by page, on tiny data.

What does not run stands in `NOT_RUN` with its reason; a new block runs or its test fails. That the keys and names of
all of them exist is tested in `test_blocks.py`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ultralytics import settings

from meddet_yolo.trt.openvino_session import default_precision
from tests.docs.blocks import PAGES, Block, blocks
from tests.docs.running import run_command, run_python, shown, smaller
from tests.docs.workplace import fill

# A pattern of commands (or of a Python example's text), and why they do not run here.
NOT_RUN = {
    r"^(\./quickstart|\./run-tests)": "makes a virtual environment: the network and minutes",
    r"^pip install": "the network",
    r"^docker ": "Docker: the images' test builds them where it is",
    r"^meddet (export|evaluate|predict) .*(format=engine|best\.engine)": "TensorRT or a GPU: tests of the engines",
    r"build_engine\(": "TensorRT or a GPU: tests of the engines",
    r"^meddet compare data=d\.yaml student=meddet11-p\.yaml": "trains 40 models: tests of it run small ones",
    r"^meddet reproduce paper": "trains 20 models: its own test trains some of them",
    r"^python benchmarks/": "ten minutes to hours",
}
# Names that a Python example takes from the text around it.
NAMES: dict[str, dict[str, object]] = {"runner.md": {"files": ["image.png"]}}


def reason(text: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, text)), None)


def work(page: Path) -> list[tuple[Block, list[str]]]:
    """What is to be run of a page in its order: commands as words, Python examples without."""
    found: list[tuple[Block, list[str]]] = []
    for block in blocks(page):
        found += [(block, words) for words in block.commands() if reason(" ".join(words)) is None]
        if block.language == "python" and reason(block.text) is None:
            found.append((block, []))
    return found


def test_what_does_not_run_is_still_there():
    texts = [text for page in PAGES for b in blocks(page) for text in (b.text, *(" ".join(c) for c in b.commands()))]
    assert not [pattern for pattern in NOT_RUN if not any(re.search(pattern, text) for text in texts)]


@pytest.fixture(scope="session")
def workplace(made_once: Callable[[str, Callable[[Path], None]], Path], tiny_teachers: list[Path]) -> Path:
    for package in ("pydicom", "highdicom", "nibabel", "onnxruntime", "onnxslim", "openvino"):
        pytest.importorskip(package)

    def make(folder: Path) -> None:
        from meddet_yolo import MedDet

        fill(folder, tiny_teachers)
        exported = Path(MedDet(str(folder / "student.pt")).export(format="onnx", imgsz=64))
        for file in folder.glob(f"{exported.name}*"):
            shutil.copy(file, folder / file.name.replace("student", "best"))

    return made_once("examples", make)


def interrupt_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a training as Ctrl+C does after its first epoch, where the README resumes one."""
    from meddet_yolo import DistillTrainer

    save = DistillTrainer.save_model

    def save_and_stop(trainer: DistillTrainer) -> None:
        save(trainer)
        raise KeyboardInterrupt

    words = "meddet train model=meddet11-p.yaml teachers=large.pt data=d.yaml save_dir=runs/detect/train"
    with monkeypatch.context() as patch:
        patch.setattr(DistillTrainer, "save_model", save_and_stop)
        assert run_command([*smaller(words.split()), "epochs=2"], patch)[0] == 130


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if work(page)], ids=lambda page: page.name)
def test_page_runs(page, workplace, tmp_path, monkeypatch):
    """From its first block to its last, in one folder; where a page shows an error, that error comes."""
    folder = tmp_path / "work"
    shutil.copytree(workplace, folder, ignore=shutil.ignore_patterns("only"))
    if (own := workplace / "only" / page.stem).is_dir():
        shutil.copytree(own, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("ultralytics.cfg.TESTS_RUNNING", False)  # it would write beside its own package
    monkeypatch.setitem(settings, "runs_dir", str(folder / "runs"))
    for block, words in work(page):
        if not words:
            output = run_python(block, NAMES.get(page.name, {}))
            assert output or "print(" not in block.text, f"{block} prints nothing"
            continue
        if "precision=bf16" in words and default_precision() != "bf16":
            continue  # this CPU has no bfloat16
        if "resume=True" in words:
            interrupt_training(monkeypatch)
        code, output = run_command(smaller(words), monkeypatch)
        expected = shown(block, words)
        place = f"{block}: {' '.join(words)}"
        if words[0] == "ls":
            assert output.split() == expected.split(), place
        complaints = re.findall(r"(?:WARNING|meddet: error:) .*?(?= WARNING | \.\.\. |$)", expected)
        assert (code != 0) == ("meddet: error:" in expected), place
        assert not [text for text in complaints if text not in " ".join(output.replace("⚠️", "").split())], place
