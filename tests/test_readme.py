"""The README and the page on distilling say what the code does: tables and commands are held against it."""

import re
from pathlib import Path

from meddet_yolo.distill.config import DistillConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DISTIL = (ROOT / "docs" / "distil.md").read_text(encoding="utf-8")


def keys_table() -> str:
    """The table of distillation keys, made of the options' defaults and docstrings."""
    defaults, meanings = DistillConfig.defaults(), DistillConfig.meanings()
    assert list(meanings) == list(defaults)
    rows = [f"| `{name}` | `{defaults[name]}` | {text} |" for name, text in meanings.items()]
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows])


def between(mark: str, text: str = README) -> str:
    return text.split(f"<!-- {mark}: begin -->\n")[1].split(f"<!-- {mark}: end -->")[0].strip()


def test_every_distillation_key_is_described_with_its_default():
    assert between("keys", DISTIL) == keys_table()


def test_benchmarks_have_a_place():
    assert "benchmarks/results" in between("benchmarks")


def test_local_links_and_scripts_exist():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", README) + re.findall(r"^\./([\w-]+)", README, re.MULTILINE)
    assert {"quickstart", "run-tests", "LICENSE"} <= set(targets)
    assert not [t for t in targets if not (ROOT / t).exists()]


def test_python_example_names_what_exists():
    import meddet_yolo

    names = re.findall(r"from meddet_yolo import (\w+)", README)
    assert names
    assert all(hasattr(meddet_yolo, name) for name in names)


def test_it_says_what_it_is_not():
    assert "no medical device" in README
