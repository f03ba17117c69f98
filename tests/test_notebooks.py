"""The notebooks hold no outputs, and run from top to bottom on a CPU."""

import json
import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

from tests.recipes import shrunken

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


def read(path: pathlib.Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_parses_and_keeps_no_output(path):
    notebook = read(path)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert not cell.outputs and cell.execution_count is None
        compile(cell.source, path.name, "exec")


@pytest.mark.slow
def test_the_tour_runs(tmp_path, monkeypatch):
    corpus = shrunken.write_corpus(tmp_path / "corpus")
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RLM_TOUR_WORKDIR", str(tmp_path / "run"))
    few = ["--config.warmup_steps=1", "--config.memory.tune_tokens=257"]
    flags = " ".join([*shrunken.flags(corpus), *few])
    monkeypatch.setenv("RLM_TOUR_FLAGS", flags)
    notebook = read(ROOT / "colab" / "tour.ipynb")
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "colab")}}
    )
    client.execute(env=os.environ | {"JAX_PLATFORMS": "cpu"})
    made = json.loads((tmp_path / "run" / "report.json").read_text())
    assert made["system"] == "trime"
    outputs = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "image/png" in outputs and "foreign" in outputs and "iframe" in outputs
