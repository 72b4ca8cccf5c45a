"""The notebooks of examples/ run from their first cell to their last."""

import json

import pytest
from streams import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NAMES = [notebook.name for notebook in NOTEBOOKS]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_kept_without_outputs(notebook):
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert cells
    assert [(cell["outputs"], cell["execution_count"]) for cell in cells] == [([], None)] * len(
        cells
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(one, marks=[] if one.stem == "forgetting" else [pytest.mark.long])
        for one in NOTEBOOKS
    ],
    ids=NAMES,
)
def test_a_notebook_runs(notebook, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = nbclient.NotebookClient(
        nbformat.read(notebook, as_version=4),
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    client.execute()
