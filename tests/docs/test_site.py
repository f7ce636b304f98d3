"""The documentation: its links, and the site that is built of it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALSO = ("README.md", "CHANGELOG.md", "benchmarks/README.md")
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in ALSO)]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link that leads nowhere is an error."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip('the site needs mkdocs-material and mkdocstrings: pip install ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_local_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_links_out_of_the_docs_are_rewritten_for_the_site(hooks):
    class File:
        src_uri = "reference/x.md"

    class Page:
        file = File

    text = "[a](../../benchmarks/README.md) [b](../nmode2.md#y) [c](https://x.y/z.md) [d](../../gone.md)"
    rewritten = hooks.on_page_markdown(text, page=Page, config=None, files=None)
    assert rewritten == text.replace("../../benchmarks/", "../repository/benchmarks/")
    File.src_uri = "repository/benchmarks/results/x.md"
    assert hooks.on_page_markdown("[a](../../docs/nmode2.md)", page=Page, config=None, files=None) == (
        "[a](../../../nmode2.md)"
    )


def test_notebook_becomes_a_page_with_its_outputs(hooks):
    class Page:
        class file:
            src_uri = "tutorial.md"

    shown = [{"output_type": "stream", "text": ["a\n", "b\n"]}, {"data": {"image/png": "AAEC", "text/plain": "<...>"}}]
    cells = [
        {"cell_type": "markdown", "source": "# T"},
        {"cell_type": "code", "source": ["x\n", "y"], "outputs": shown},
    ]
    page, pictures = hooks.notebook_page({"cells": cells})
    assert page.startswith("# T\n\n```python\nx\ny\n```\n\n```text\na\nb\n```\n\n![")
    assert pictures == {"images/notebook-1.png": bytes([0, 1, 2])}
    link = hooks.on_page_markdown("[n](tutorial.ipynb)", page=Page, config=None, files=None)
    assert link == "[n](notebook.md)"


def test_every_recorded_result_is_on_the_page_of_results(hooks):
    class Page:
        class file:
            src_uri = "results.md"

    page = hooks.on_page_markdown("[SPIDER](../benchmarks/results/x.md)", page=Page, config=None, files=None)
    page += (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert not [path.name for path in (ROOT / "benchmarks/results").glob("*.md") if f"/{path.name})" not in page]


@pytest.mark.slow
def test_site_is_whole_and_uses_no_network(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {
        "index.html",
        "tutorial.html",
        "notebook.html",
        "reference/distill.html",
        "repository/CHANGELOG.html",
    } <= pages
    assert "repository/benchmarks/results/spider_distillation.html" in pages
    assert not list(site.rglob("site_hooks.py"))
    assert (site / "tutorial.ipynb").is_file() and (site / "images" / "notebook-1.jpeg").is_file()
    tags = re.compile(r"<(?:script|img|iframe|link[^>]*rel=[\"']?(?:stylesheet|preconnect|icon))[^>]*>")
    for path in site.rglob("*.html"):
        found = tags.findall(path.read_text(encoding="utf-8"))
        fetching = [tag for tag in found if re.search("(?:src|href)=.?https?:", tag)]
        assert not fetching, f"{path.name} would fetch {fetching[0]}"
    assert not [path for path in site.rglob("*.css") if "url(http" in path.read_text(encoding="utf-8")]


@pytest.mark.slow
def test_reference_holds_the_docstrings(site):
    text = (site / "reference" / "model.html").read_text(encoding="utf-8")
    assert "meddet_yolo.model.MedDet" in text
    runner = (site / "reference" / "trt.html").read_text(encoding="utf-8")
    assert "open_runner" in runner and "EngineRunner" in runner
