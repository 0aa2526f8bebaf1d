"""Which path is taken, what is said of it, and what is refused."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from steerkit.errors import InterventionError
from steerkit.kernels import dispatch


@pytest.fixture
def case(program_of: Any, table_of: Any, requests_of: Any, stream_of: Any) -> Any:
    table = table_of([program_of(0)])
    return stream_of(6), requests_of(0, 6, [1]).rows(table), table.tensors


def test_a_cpu_takes_torch_by_itself_and_triton_when_told(case: Any, interpreter: None) -> None:
    h, rows, tensors = case
    out = dispatch.rows_program(h, rows, tensors, 0)
    assert dispatch.last_path("rows_program") == "torch"
    other = dispatch.rows_program(h, rows, tensors, 0, path="triton")
    assert dispatch.last_path("rows_program") == "triton"
    torch.testing.assert_close(out, other, rtol=0, atol=1e-14)
    same = h.clone()
    dispatch.rows_program_(same, rows, tensors, 0)
    assert dispatch.last_path("rows_program_") == "torch"
    assert torch.equal(same, out)


def test_what_is_asked_for_by_name_is_not_replaced(
    case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    h, rows, tensors = case
    monkeypatch.setattr(dispatch, "triton_refusal", lambda device, d_model: "not today")
    with pytest.raises(InterventionError, match="path of rows_program is unavailable: not today"):
        dispatch.rows_program(h, rows, tensors, 0, path="triton")
    dispatch.rows_program(h, rows, tensors, 0)


def test_reasons_for_refusing_triton(monkeypatch: pytest.MonkeyPatch, interpreter: None) -> None:
    from steerkit.kernels.fused import launch

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert dispatch.triton_refusal(cpu, 64) is None
    assert "fit into registers" in str(dispatch.triton_refusal(gpu, launch.WIDEST + 1))
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    assert "runs on CUDA" in str(dispatch.triton_refusal(cpu, 64))
    assert dispatch.triton_refusal(gpu, 64) is None
    monkeypatch.setattr(dispatch, "_installed", lambda: False)
    assert "steerkit[gpu]" in str(dispatch.triton_refusal(gpu, 64))


def test_streams_of_another_width_and_lost_gradients_are_refused(case: Any, stream_of: Any) -> None:
    h, rows, tensors = case
    with pytest.raises(InterventionError, match=r"table of width 16.*stream of shape \(6, 9\)"):
        dispatch.rows_program(stream_of(6, 9), rows, tensors, 0)
    with pytest.raises(InterventionError, match="in-place program has no gradient"):
        dispatch.rows_program_(h.requires_grad_(), rows, tensors, 0)


def test_a_compiled_graph_holds_plain_torch_and_no_opaque_operator(case: Any) -> None:
    h, rows, tensors = case
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def step(h: torch.Tensor) -> torch.Tensor:
        return dispatch.rows_program(h, rows, tensors, 0)

    torch._dynamo.reset()
    out = torch.compile(step, fullgraph=True, backend=backend)(h)
    torch.testing.assert_close(out, step(h), rtol=0, atol=0)
    (graph,) = graphs
    assert not [node for node in graph.graph.nodes if "steerkit" in str(node.target)]


def test_without_triton_everything_imports_and_runs(tmp_path: Any) -> None:
    """In a fresh process where importing Triton fails."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from steerkit.kernels import dispatch
from steerkit.kernels.device import DeviceTable
from steerkit.site import Site
table = DeviceTable([Site(0)], 4)
zero = torch.zeros(3, dtype=torch.long)
rows = dispatch.prepare(table.tensors, zero, zero, zero[:1], zero[:1])
h = torch.randn(3, 4)
assert torch.equal(dispatch.rows_program(h, rows, table.tensors, 0), h)
assert dispatch.last_path("rows_program") == "torch"
assert not [name for name in sys.modules if name.startswith("steerkit.kernels.fused")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
