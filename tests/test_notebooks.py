"""Every notebook runs from the first cell to the last, and is kept without outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def test_there_are_notebooks():
    found = [p.stem for p in NOTEBOOKS]
    assert found[:3] == ["01_explore", "02_refusal_direction", "03_layer_search"]
    assert found[3:6] == ["04_concepts", "05_sae_features", "06_audit"]
    assert "08_datasets" in found


@every_notebook
def test_outputs_are_stripped(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


# The kernel's client leaves its sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@every_notebook
def test_it_runs(path, tmp_path, monkeypatch):
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    # Figures are made and serialised, but no window and no browser is looked for.
    monkeypatch.setenv("PLOTLY_RENDERER", "json")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    manager = AsyncKernelManager()
    # The interpreter that runs the tests, whatever kernels are installed.
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=command, display_name="tests", language="python")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, km=manager, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=dict(os.environ))
    shown = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    kinds = {kind for o in shown for kind in o.get("data", {})}
    assert "text/html" in kinds, "results show themselves as cards and tables"
    assert any("plotly" in kind or kind == "application/json" for kind in kinds)
    assert not [o for o in shown if o.output_type == "error"]
