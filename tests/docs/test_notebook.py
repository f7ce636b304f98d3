"""The notebook of the docs runs, and holds the outputs of a run, without traces of the machine that made them."""

from __future__ import annotations

import json
import re

import pytest

from tests.docs.notebook import NOTEBOOK, execute, outputs


def test_kept_outputs_are_those_of_one_run_and_small():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run `python -m tests.docs.notebook`"
    kinds = {kind for output in outputs(notebook) for kind in output.get("data", {output["output_type"]: ""})}
    assert {"stream", "image/jpeg"} <= kinds and "error" not in kinds
    assert NOTEBOOK.stat().st_size < 300_000


def test_no_path_of_a_machine_is_kept():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    texts = [cell["source"] for cell in notebook["cells"]]
    for output in outputs(notebook):
        texts += [output.get("text", []), output.get("data", {}).get("text/plain", [])]
    text = "\n".join("".join(part) for part in texts)
    assert not re.findall(r"(?<![\w.<])/\w+/[\w/.-]+|\b[A-Z]:\\\w+", text)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_notebook_runs(tmp_path):
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package)
    executed = execute(tmp_path)
    found = outputs(executed)
    (picture,) = [output["data"]["image/jpeg"] for output in found if "image/jpeg" in output.get("data", {})]
    assert picture.startswith("/9j/")  # a JPEG's first bytes
    scores = "".join(found[-1]["text"])
    assert re.search(r"student +teacher\s+mAP50-95 +0\.\d+ .*0\.\d+", scores), scores
    assert (tmp_path / "notebook" / "evaluation" / "report.html").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"notebook"}
