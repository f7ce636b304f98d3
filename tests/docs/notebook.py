"""Executing the notebook of the docs: `python -m tests.docs.notebook` renews the outputs that are kept in it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "tutorial.ipynb"


def execute(folder: Path) -> Any:
    """Return the notebook with new outputs, run in a process of its own that works in `folder`."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(folder)}})
    return client.execute()


def outputs(notebook: Any) -> list[Any]:
    """All outputs of the notebook's cells."""
    return [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        renewed = execute(Path(folder))
    renewed.metadata = {"kernelspec": renewed.metadata["kernelspec"]}
    for cell in renewed.cells:
        if cell.cell_type == "code":  # warnings are of what is installed on one machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(renewed, NOTEBOOK)
