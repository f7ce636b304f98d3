"""Completion in the shells themselves, those that this machine has."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest

from meddet_yolo.commands import MODES, OWN_COMMANDS, keys_of
from meddet_yolo.completion import SHELLS, completion
from meddet_yolo.distill.method import METHODS


def needs(shell: str) -> str:
    """Return where a shell is, or skip the test."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a few files to name, and the scripts beside it."""
    place = tmp_path_factory.mktemp("completion") / "work"
    (place / "runs").mkdir(parents=True)
    for name in ("a.pt", "best.pt", "with space.pt", "data.yaml"):
        (place / name).touch()
    for shell in SHELLS:
        (place.parent / f"script.{shell}").write_text(completion(shell))
    return place


ASK = {  # what is offered at the end of each line, a line `@@` after each
    "bash": """source "$1"; for line in "${@:2}"; do
        COMP_LINE=$line COMP_POINT=${#line}; _meddet; printf '%s\\n' "${COMPREPLY[@]}" @@; done""",
    "fish": "source $argv[1]; for line in $argv[2..-1]; complete -C $line | string split -f1 \\t; echo @@; end",
}


@cache
def ask(shell: str, lines: tuple[str, ...], folder: Path) -> list[list[str]]:
    """Return what bash or fish offers at the end of lines."""
    before = {"bash": ["--norc", "-c", ASK["bash"], "bash"], "fish": ["--no-config", "-c", ASK["fish"]]}[shell]
    command = [needs(shell), *before, str(folder.parent / f"script.{shell}"), *lines]
    environment = {**os.environ, **dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(folder.parent))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    offered: list[list[str]] = [[]]
    for word in done.stdout.splitlines():
        if word == "@@":
            offered.append([])
        elif word:
            offered[-1].append(word)
    if shell == "fish":  # gives whole words where bash gives what follows the `=`
        leads = [line.split(" ")[-1].rpartition("=") for line in lines]
        offered = [[w.removeprefix(a + b) for w in words] for words, (a, b, _) in zip(offered, leads, strict=False)]
    return [sorted(words) for words in offered[: len(lines)]]


CASES = [
    ("meddet ev", ["evaluate"]),
    ("meddet help qui", ["quickstart"]),
    ("meddet completion f", ["fish"]),
    ("meddet train dist_", ["dist_weight="]),
    ("meddet detect train model=a.pt mri_noise_g", ["mri_noise_ghosting=", "mri_noise_gibbs="]),
    ("meddet train guard=", ["detection", "none", "reconstruction"]),
    ("meddet train distill=c", sorted(name for name in METHODS if name.startswith("c"))),
    ("meddet train distill=[mgd,c", sorted(f"[mgd,{name}" for name in METHODS if name.startswith("c"))),
    ("meddet train model=meddet11-", ["meddet11-n.yaml", "meddet11-p.yaml", "meddet11-s.yaml"]),
    ("meddet train model=yolo11s", ["yolo11s.yaml"]),
    ("meddet val model=b", ["best.pt"]),
    ("meddet val --model=b", ["best.pt"]),
    ("meddet train teachers=[a.pt,b", ["[a.pt,best.pt"]),
    ("meddet train data=d", ["data.yaml"]),
    ("meddet train data=cdh", ["cdh1848.yaml"]),
    ("meddet train cfg=pa", ["paper.yaml"]),
    ("meddet predict source=ru", ["runs/"]),
    ("meddet export format=op", ["openvino"]),
    ("meddet convert format=c", ["coco", "csv"]),
    ("meddet train amp=", ["False", "True"]),
    ("meddet evaluate rounds=", []),
]


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[line for line, _ in CASES])
def test_words_and_files_are_offered(shell, number, folder):
    offered = ask(shell, tuple(line for line, _ in CASES), folder)
    assert offered[number] == CASES[number][1]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_every_command_and_every_key_of_ours_is_offered(shell, folder):
    commands, *keys = ask(shell, ("meddet ", *(f"meddet {command} " for command in OWN_COMMANDS)), folder)
    assert {*MODES, *OWN_COMMANDS, "help", "settings", "cfg", "completion"} <= set(commands)
    for command, offered in zip(OWN_COMMANDS, keys, strict=True):
        assert {f"{name}=" for name, key in keys_of(command).items() if key.ours} <= set(offered)


def press_tab(shell: str, arguments: list[str], line: str, folder: Path) -> str:
    """Type a line and Tab into an interactive shell, let it run the line, and return what `meddet` was given."""
    script = folder.parent / f"script.{shell}"
    setup = "autoload -U compinit; compinit -u -D; " if shell == "zsh" else ""
    program = needs(shell)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(program, [shell, *arguments], {**os.environ, "HOME": str(folder), "TERM": "dumb", "PS1": "$ "})
    seen = ""

    def read_until(pattern: str) -> re.Match[str]:
        nonlocal seen
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if found := re.search(pattern, seen):
                return found
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 4096).decode(errors="replace")
        pytest.fail(f"{shell} does not answer: {seen[-500:]!r}")

    try:
        os.write(terminal, f'{setup}meddet() {{ echo "<$*>"; }}; source {script}; echo ready$((1 + 1))\n'.encode())
        read_until("ready2")
        os.write(terminal, f"{line}\t".encode())
        time.sleep(0.3)  # Tab is worked on before what follows is read
        os.write(terminal, b"\n")
        return read_until(r"<([^$<>]*)>")[1]
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("meddet eval", "evaluate"),
        ("meddet train distill_sch", "train distill_schedule="),
        ("meddet train distill=respo", "train distill=response"),
        ("meddet train teachers=a.pt,be", "train teachers=a.pt,best.pt"),
    ],
)
def test_tab_completes_a_line_as_it_is_typed(shell, line, given, folder):
    arguments = ["-f", "-i"] if shell == "zsh" else ["--norc", "--noprofile", "-i"]
    assert press_tab(shell, arguments, line, folder).strip() == given
