"""Every fenced command and Python example of the README and the pages: their keys and names exist."""

import re
from importlib import import_module

import pytest

from meddet_yolo import arguments, cli
from tests.docs.blocks import PAGES, ROOT, blocks

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block, words) for block in BLOCKS for words in block.commands()]
MEDDET = [(block, words) for block, words in COMMANDS if words[0] == "meddet"]
OTHERS = [(block, words) for block, words in COMMANDS if words[0] != "meddet"]


def named(pairs: list[tuple[object, list[str]]]) -> list[object]:
    return [
        pytest.param(block, words, id=f"{block}-{words[1] if len(words) > 1 else words[0]}") for block, words in pairs
    ]


def test_pages_have_commands_in_fenced_blocks():
    """An indented block would escape the tests below."""
    assert len(MEDDET) > 40
    for page in PAGES:
        stray = re.findall(
            r"^    (?:\$ )?(?:meddet|pip|python|from) .*$", page.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert not stray, f"{page.name}: put {stray[0].strip()!r} into a fenced block"


@pytest.mark.parametrize(("block", "words"), named(MEDDET))
def test_every_meddet_command_has_keys_that_exist(block, words):
    args, _ = arguments.take_trust(words[1:])
    positional, options = arguments.parse(args)
    mode = positional[0]
    cfg = options.pop("cfg", None)
    if mode in arguments.MODES:
        assert positional == [mode]
        if cfg in {"default.yaml", "paper.yaml"}:
            options = {**arguments.read_recipe(cfg), **options}
        cli._check_keys(mode, {**options})
        return
    if mode in {"help", "version", "settings", "checks", "completion"}:
        return
    arguments.check_own(mode, positional[1:], options)


@pytest.mark.parametrize(("block", "words"), named(OTHERS))
def test_every_other_command_names_what_exists(block, words):
    program = words[0]
    if program == "pip":
        extras = re.findall(r"^\.\[([\w,]+)\]$", "\n".join(words), re.MULTILINE)
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(
            re.search(rf"^{extra} = \[", project, re.MULTILINE) for group in extras for extra in group.split(",")
        )
    elif program == "python" and words[1] == "-m":
        import_module(words[2])
    elif program == "python":
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        options = [word[2:].replace("-", "_") for word in words[2:] if word.startswith("--")]
        assert not [option for option in options if not re.search(rf'"(__)?{option}"', script.replace("-", "_"))]
    elif program == "docker":
        assert "-f" not in words or (ROOT / words[words.index("-f") + 1]).is_file()
    elif "/" in program:
        assert (ROOT / program).is_file()
    else:
        assert program in {"ls", "mkdocs", "git", "ray"}, f"what is {program!r}?"


PYTHON = [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON)
def test_every_python_example_imports_what_exists(block):
    compile(block.text, str(block), "exec")
    for module, names in re.findall(r"^from (meddet_yolo[\w.]*) import ([\w, ]+)", block.text, re.MULTILINE):
        assert all(hasattr(import_module(module), name.strip()) for name in names.split(","))
