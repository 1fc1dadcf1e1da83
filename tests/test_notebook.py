"""docs/notebook.ipynb runs from top to bottom, and prints what it shows."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"
STABLE = "stable"
"""Tag of cells whose text is the same on every machine and in every version of the code."""


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell: nbformat.NotebookNode) -> str:
    parts = [output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"]
    return "\n".join(line.rstrip() for line in "".join(parts).splitlines())


def test_cells_are_short_and_have_clean_outputs() -> None:
    cells = code_cells(nbformat.read(NOTEBOOK, as_version=4))
    assert max(len(cell.source.splitlines()) for cell in cells) <= 20
    for cell in cells:
        assert cell.outputs or cell.source.startswith("import"), cell.id
        assert all(output.output_type != "error" for output in cell.outputs), cell.id
        assert "/home/" not in str(cell.outputs) and "site-packages" not in str(cell.outputs), cell.id


@pytest.mark.torch
@pytest.mark.slow
def test_it_runs_and_prints_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    committed = nbformat.read(NOTEBOOK, as_version=4)
    executed = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(executed):
        cell.outputs = []
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(executed, timeout=600, kernel_name="python3", resources=resources).execute()
    for before, after in zip(code_cells(committed), code_cells(executed), strict=True):
        if STABLE in before.metadata.get("tags", ()):
            assert text_of(after) == text_of(before), after.id
    by_user = text_of(code_cells(executed)[-1]).splitlines()
    assert len(by_user) == 2 and by_user[0] != by_user[1]
    for line, liked in zip(by_user, ("blue", "red"), strict=True):
        profile, _, scores = line.partition(" {")
        values = ast.literal_eval("{" + scores)  # the cell's own line: a mapping of response to score
        assert liked in profile and max(values, key=values.get) == f"take the {liked} one"
