"""The notebook in examples/ runs."""

import os

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    resources = {"metadata": {"path": str(ROOT / "examples")}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    told = [output.get("data", {}).get("text/plain", "") for output in outputs]
    assert "EmbedResult(added=189, unreadable=1)" in told
    assert any("Result(would-move=1)" in text for text in told)
    assert "<table>" in "".join(output.get("data", {}).get("text/html", "") for output in outputs)
