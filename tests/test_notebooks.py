"""Every notebook runs from the first cell to the last, and is kept without outputs."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One interpreter for all notebooks: to import the libraries takes as long as some of them."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    folder = str(tmp_path_factory.mktemp("kernel"))
    with pytest.MonkeyPatch.context() as patch:
        # Figures are made and serialised, but no window and no browser is looked for.
        patch.setenv("PLOTLY_RENDERER", "json")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("IPYTHONDIR", folder)
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        manager = AsyncKernelManager()
        # The interpreter that runs the tests, whatever kernels are installed.
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        manager._kernel_spec = KernelSpec(argv=command, display_name="tests", language="python")
        run_sync(manager.start_kernel)(env=dict(os.environ), cwd=folder)
        yield manager
        run_sync(manager.shutdown_kernel)(now=True)


# The kernel's client leaves its sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@every_notebook
def test_it_runs(path, tmp_path, kernel):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    # Nothing that another notebook has named is there.
    fresh = nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}")
    notebook.cells.insert(0, fresh)
    client = NotebookClient(notebook, km=kernel, timeout=600)
    try:
        client.execute()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    kinds = {kind for o in shown for kind in o.get("data", {})}
    assert "text/html" in kinds, "results show themselves as cards and tables"
    assert any("plotly" in kind or kind == "application/json" for kind in kinds)
    assert not [o for o in shown if o.output_type == "error"]
