"""Fenced blocks of Markdown files."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: page, number of its first line, language and text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Commands of a shell block, split into words, without comments; of a console block what follows `$`."""
        if self.language not in {"sh", "bash", "console"}:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        parted = (part.strip() for line in lines for part in line.split(" && "))
        return [words for words in (shlex.split(part, comments=True) for part in parted) if words]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, without the indentation of the fence."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        body = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        found.append(Block(page, text.count("\n", 0, match.start()) + 2, match[2], body))
    return found
