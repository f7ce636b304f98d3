"""Hooks of the documentation site: files of the repository that pages link to become part of the site.

Pages in `docs/` link to files beside that folder, such as `../benchmarks/results/x.md`, so that the links work wherever
the repository is read. On the site such a file stands at `repository/` with its own path: Markdown as a page, anything
else as it is. A link to a file that does not exist stays as it was, so that a strict build fails.

The notebook becomes a page with the outputs that are kept in it, and can be downloaded from there.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
_OUTSIDE = "repository/"
_RECORDS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks/results").glob("*.md"))
_NOTEBOOK, _NOTEBOOK_PAGE = "tutorial.ipynb", "notebook.md"  # in docs/, and where it stands on the site
_ALWAYS = ("CHANGELOG.md", *_RECORDS)  # named by the navigation, and listed on the page of results


def linked_files(path: str) -> set[str]:
    """Files that a Markdown file links to, relative to the root of the repository.

    Args:
        path: The Markdown file, relative to the root of the repository.

    Returns:
        Existing files, each as a path with forward slashes.

    Examples:
        >>> "LICENSE" in linked_files("README.md")
        True
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    targets = {posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in _LINK.findall(text)}
    return {target for target in targets if (ROOT / target).is_file()}


def _outside(pages: set[str]) -> set[str]:
    """Files outside `docs/` that are reached from pages, over any number of links."""
    found: set[str] = set(_ALWAYS)
    queue = [*pages, *_ALWAYS]
    while queue:
        page = queue.pop()
        new = {file for file in linked_files(page) if not file.startswith("docs/")} - found
        found |= new
        queue += [file for file in new if file.endswith(".md")]
    return found


def notebook_page(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    r"""Turn a notebook into a page.

    Args:
        notebook: What its file holds, in version 4 of the format.

    Returns:
        The page in Markdown, and the content of its pictures by their paths in the site.

    Examples:
        >>> cell = {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["2"]}}]}
        >>> print(notebook_page({"cells": [cell]})[0].partition("\n\n")[0])
        ```python
        1 + 1
        ```
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            kind = next((kind for kind in ("image/png", "image/jpeg") if kind in data), None)
            if kind is None:
                parts.append("```text\n" + "".join(data["text/plain"]).rstrip() + "\n```")
            else:
                name = f"images/notebook-{len(pictures) + 1}.{kind.partition('/')[2]}"
                pictures[name] = base64.b64decode("".join(data[kind]))
                parts.append(f"![what the cell above shows]({name})")
    parts.append(f'<a href="{_NOTEBOOK}" download>Download this notebook</a>')
    return "\n\n".join(parts) + "\n", pictures


def on_files(files: Any, *, config: Any) -> Any:
    """Add the files outside `docs/` to those of the site."""
    from mkdocs.structure.files import File, InclusionLevel

    pages = {f"docs/{file.src_uri}" for file in files.documentation_pages()}
    for path in sorted(_outside(pages)):
        file = File.generated(config, _OUTSIDE + path, abs_src_path=str(ROOT / path))
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    page, pictures = notebook_page(json.loads((ROOT / "docs" / _NOTEBOOK).read_text(encoding="utf-8")))
    for path, content in {_NOTEBOOK_PAGE: page, **pictures}.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turn links that cross the edge of `docs/` into links of the site."""
    uri = page.file.src_uri
    path = uri.removeprefix(_OUTSIDE) if uri.startswith(_OUTSIDE) else f"docs/{uri}"
    if path == "docs/results.md":
        others = [record for record in _RECORDS if record not in linked_files(path)]
        markdown += "".join(f"\n- [{posixpath.basename(record)}](../{record})" for record in others) + "\n"

    def place(target: str) -> str:
        if target == f"docs/{_NOTEBOOK}":
            return _NOTEBOOK_PAGE
        return target.removeprefix("docs/") if target.startswith("docs/") else _OUTSIDE + target

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[0]))
        if not (ROOT / target).is_file():
            return match[0]
        return posixpath.relpath(place(target), posixpath.dirname(uri) or ".")

    return _LINK.sub(rewritten, markdown)
