"""K2 under Triton's interpreter: what it computes, what it must never touch, its gradient."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.batch import Positions
from steerkit.kernels import dispatch, static
from steerkit.kernels.layout import Capacity
from steerkit.program import Gate, Group, Opcode, Program
from steerkit.site import Site

pytestmark = pytest.mark.usefixtures("interpreter")

# The interpreter cuts bfloat16 off where a GPU rounds: twice the error.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}


def run(table: Any, h: Tensor, requests: Any) -> Tensor:
    out = dispatch.rows_program(h, requests.rows(table), table.tensors, 0, path="triton")
    assert dispatch.last_path("rows_program") == "triton"
    return out


def error(out: Tensor, wanted: Tensor) -> float:
    return float((out.double() - wanted).norm() / wanted.norm().clamp(min=1e-300))


def rank_one(opcode: Opcode, v: Tensor, params: Any, gate: Gate | None = None) -> Program:
    zero, row = torch.zeros(1, dtype=torch.float64), v[None].double()
    table = torch.tensor([params], dtype=torch.float64)
    return Program((Group((opcode,), row, zero, row, table, (Positions(),), (gate,)),))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [1, 3, 33])
def test_random_programs_equal_token_by_token(
    oracle: Any,
    requests_of: Any,
    program_of: Any,
    table_of: Any,
    stream_of: Any,
    dtype: Any,
    tokens: int,
) -> None:
    for seed in range(2):
        programs = [
            program_of(
                10 * seed + i, groups=1 + i % 3, terms=1 + 2 * i, gates=("", "cosine", "projection")
            )
            for i in range(4)
        ]
        requests = requests_of(seed, tokens, [1, 0, 2, 3, 4])
        h = stream_of(tokens, seed=seed, dtype=dtype)
        out = run(table_of(programs, dtype), h, requests)
        assert out.dtype == dtype
        assert error(out, oracle([Program(), *programs], h, requests)) < TOLERANCE[dtype]


@pytest.mark.parametrize("d_model", [1, 5, 123, 1000, 4096, 5120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_width_fills_its_output_and_nothing_else(
    requests_of: Any,
    program_of: Any,
    table_of: Any,
    stream_of: Any,
    guarded: Any,
    bits_of: Any,
    d_model: int,
    dtype: Any,
) -> None:
    from steerkit.kernels.fused.launch import opcode_bits
    from steerkit.kernels.fused.steer_rows import _launch

    programs = [program_of(i, terms=2, d_model=d_model) for i in range(2)]
    table, exact = table_of(programs, dtype), table_of(programs)
    for tokens in (0, 3, 17):
        requests, h = requests_of(1, tokens, [1, 2, 0]), stream_of(tokens, d_model, dtype=dtype)
        rows = requests.rows(table)
        # Behind the last token stand a slot and bits that must not be looked at.
        slot = torch.cat([rows.slot, torch.full((40,), 10**9)])[:tokens]
        active = torch.cat([rows.active[0], torch.full((40,), -1)])[:tokens]
        out, whole = guarded(tokens, d_model, dtype)
        before = whole.clone()
        bits = opcode_bits(table.capacity.opcodes)
        _launch(h, out, slot, active, list(table.tensors), 0, bits)
        assert not out.isnan().any()
        wanted = static.rows_program(h.double(), slot, active, exact.tensors, 0)
        if tokens:
            assert error(out, wanted) < TOLERANCE[dtype]
        out.copy_(torch.full_like(out, torch.nan))
        assert torch.equal(bits_of(whole), bits_of(before))


def test_257_tokens_at_257_slots_each_as_if_alone(
    requests_of: Any, program_of: Any, table_of: Any, stream_of: Any
) -> None:
    programs = [program_of(i, terms=1 + i % 2, d_model=7, rules=["all"]) for i in range(257)]
    table = table_of(programs)
    requests = requests_of(0, 257, torch.randperm(258).tolist())
    h = stream_of(257, 7)
    out = run(table, h, requests)
    rows = requests.rows(table)
    for token in range(0, 257, 8):
        slot = int(rows.slot[token])
        if slot:
            alone = table_of([programs[slot - 1]])
            one = torch.ones(1).long()
            got = static.rows_program(h[[token]], one, rows.active[0][[token]], alone.tensors, 0)
            torch.testing.assert_close(out[[token]], got, rtol=0, atol=1e-13)
        else:
            assert torch.equal(out[token], h[token])


@pytest.mark.parametrize("layout", ["rows", "columns", "transposed", "batch"])
def test_any_memory_layout(
    oracle: Any, requests_of: Any, program_of: Any, table_of: Any, stream_of: Any, layout: str
) -> None:
    programs = [program_of(i) for i in range(2)]
    requests, table = requests_of(2, 12, [1, 0, 2]), table_of(programs)
    h = {
        "rows": stream_of(24, 16)[::2],
        "columns": stream_of(12, 40)[:, 3:35:2],
        "transposed": stream_of(16, 12).T,
        "batch": stream_of(12, 16),
    }[layout]
    wanted = oracle([Program(), *programs], h, requests)
    torch.testing.assert_close(run(table, h, requests), wanted, rtol=0, atol=1e-13)
    rows = requests.rows(table)
    if layout == "batch":
        square = static.Rows(rows.slot.view(3, 4), rows.active.view(1, 3, 4))
        h = h.clone().view(3, 4, 16)
        dispatch.rows_program_(h, square, table.tensors, 0, path="triton")
        h = h.view(12, 16)
    else:
        dispatch.rows_program_(h, rows, table.tensors, 0, path="triton")
    assert dispatch.last_path("rows_program_") == "triton"
    torch.testing.assert_close(h, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("in_place", [False, True])
def test_poison_stays_where_it_is(
    requests_of: Any,
    program_of: Any,
    table_of: Any,
    stream_of: Any,
    bits_of: Any,
    dtype: Any,
    poison: float,
    in_place: bool,
) -> None:
    table = table_of([program_of(i, rules=["prompt"], gates=[""]) for i in range(3)], dtype)
    # Nothing at all in unused slots, nor in slots whose strength is 0, is looked at.
    table.set_strength(3, 0.0)
    for part in (table.tensors.read, table.tensors.write, table.tensors.numbers):
        part[[0, 3]] = poison
    requests = requests_of(2, 32, [1, 0, 2, 3])
    rows, clean = requests.rows(table), stream_of(32, dtype=dtype)
    touched = rows.active[0] != 0
    assert touched.any() and not touched.all()
    poisoned = torch.where(touched[:, None], clean, poison)
    poisoned[(~touched).nonzero()[0]] = -0.0

    def result(h: Tensor) -> Tensor:
        if not in_place:
            return run(table, h, requests)
        h = h.clone()
        dispatch.rows_program_(h, rows, table.tensors, 0, path="triton")
        return h

    out, wanted = result(poisoned), result(clean)
    assert torch.isfinite(wanted).all()
    assert torch.equal(bits_of(out[touched]), bits_of(wanted[touched]))
    assert torch.equal(bits_of(out[~touched]), bits_of(poisoned[~touched]))
    assert not torch.equal(wanted[touched], clean[touched])


def test_a_closed_gate_keeps_the_bits(requests_of: Any, table_of: Any, bits_of: Any) -> None:
    v = torch.eye(16)[0].double()
    table = table_of([rank_one(Opcode.CONSTANT, v, (1, 0, 0), Gate(v, 1.0))])
    h = torch.full((9, 16), -0.0).double()
    assert torch.equal(bits_of(run(table, h, requests_of(0, 9, [1]))), bits_of(h))


def test_permuting_tokens_permutes_the_result(
    requests_of: Any, program_of: Any, table_of: Any, stream_of: Any
) -> None:
    table = table_of([program_of(i, groups=2) for i in range(3)], torch.float32)
    requests, h = requests_of(5, 40, [1, 2, 0, 3]), stream_of(40, dtype=torch.float32)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    out = run(table, h, requests)
    assert torch.equal(run(table, h[order], requests.at(order)), out[order])


def test_ablating_twice_changes_nothing_and_clamps_meet_their_edges(
    requests_of: Any, table_of: Any, stream_of: Any
) -> None:
    v = stream_of(1)[0]
    v = v / v.norm()
    requests, h = requests_of(0, 30, [1]), 3 * stream_of(30, seed=1)
    touched = (requests.request >= 0) & (requests.absolute >= 0)
    ablate = table_of([rank_one(Opcode.AFFINE, v, (-1, 0, 0))])
    once = run(ablate, h, requests)
    assert float((once[touched] @ v).abs().max()) < 1e-14
    torch.testing.assert_close(run(ablate, once, requests), once, rtol=0, atol=1e-14)
    clamped = run(table_of([rank_one(Opcode.CLAMP, v, (-0.5, 1, 1))]), h, requests)
    edges = (h[touched] @ v).clamp(-0.5, 1)
    torch.testing.assert_close(clamped[touched] @ v, edges, rtol=0, atol=1e-14)
    kept = run(table_of([rank_one(Opcode.KEEP_NORM, v, (4, 0, 0))]), h, requests)
    torch.testing.assert_close(kept.norm(dim=-1), h.norm(dim=-1), rtol=1e-14, atol=0)
    assert (kept[touched] != h[touched]).all()


def test_a_tiny_residual_beside_a_large_component_is_not_lost(
    requests_of: Any, table_of: Any, stream_of: Any
) -> None:
    # |h|^2 - (h.r)^2 would lose it: 2% wrong where the norm of what stands there is 1e-6.
    v = torch.eye(16)[0].double()
    h = 1e-3 * stream_of(20, dtype=torch.float32)
    h[:, 0] = 1
    program = rank_one(Opcode.KEEP_NORM, v, (-1, 0, 0))
    requests = requests_of(0, 20, [1])
    requests.absolute.clamp_(min=0)
    requests.request.clamp_(min=0)
    out = run(table_of([program], torch.float32), h, requests)
    aside = h.double().clone()
    aside[:, 0] = 0
    wanted = aside * (h.double().norm(dim=-1) / aside.norm(dim=-1))[:, None]
    assert error(out, wanted) < 1e-6


@pytest.mark.parametrize("measure", ["cosine", "projection"])
@pytest.mark.parametrize("above", [True, False])
def test_gates_are_monotone_in_the_threshold(
    requests_of: Any, table_of: Any, stream_of: Any, measure: Any, above: bool
) -> None:
    v = torch.eye(16)[0].double()
    requests, h = requests_of(0, 40, [1]), stream_of(40)
    acted = []
    for threshold in sorted((-2.0, -0.3, 0.0, 0.3, 2.0), reverse=not above):
        gate = Gate(v, threshold, measure, above)
        table = table_of([rank_one(Opcode.CONSTANT, v, (9, 0, 0), gate)])
        acted.append((run(table, h, requests) != h).any(-1))
    for wider, narrower in pairwise(acted):
        assert not (narrower & ~wider).any()
    assert int(acted[0].sum()) > int(acted[2].sum()) > 0


def test_a_table_without_reads_or_gates(
    oracle: Any, requests_of: Any, program_of: Any, table_of: Any, stream_of: Any
) -> None:
    programs = [program_of(i, opcodes=[Opcode.CONSTANT], gates=[""]) for i in range(2)]
    table = table_of(programs)
    assert table.tensors.read.numel() == table.tensors.gate.numel() == 0
    requests, h = requests_of(0, 20, [1, 2]), stream_of(20)
    wanted = oracle([Program(), *programs], h, requests)
    torch.testing.assert_close(run(table, h, requests), wanted, rtol=0, atol=1e-14)


def test_sixteen_terms_in_one_pass(
    oracle: Any, requests_of: Any, program_of: Any, table_of: Any, stream_of: Any
) -> None:
    program = program_of(0, terms=16, groups=2, gates=("", "cosine"))
    requests, h = requests_of(0, 16, [1]), stream_of(16, dtype=torch.float32)
    out = run(table_of([program], torch.float32), h, requests)
    assert error(out, oracle([Program(), program], h, requests)) < 1e-6


def test_other_sites_of_the_table(
    oracle: Any, requests_of: Any, program_of: Any, stream_of: Any
) -> None:
    from steerkit.kernels.device import DeviceTable

    sites, programs = [Site(i) for i in range(3)], [program_of(i) for i in range(3)]
    table = DeviceTable(sites, 16, Capacity.fitting(programs, slots=2), dtype=torch.float64)
    table.write_slot(2, dict(zip(sites, programs, strict=True)))
    requests, h = requests_of(0, 20, [2, 1]), stream_of(20)
    rows = requests.rows(table)
    for site, program in enumerate(programs):
        out = dispatch.rows_program(h, rows, table.tensors, site, path="triton")
        wanted = oracle([Program(), Program(), program], h, requests)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-13)


def the_op(table: Any, requests: Any, h: Tensor) -> tuple[Any, ...]:
    from steerkit.kernels.fused.launch import opcode_bits

    rows = requests.rows(table)
    bits = opcode_bits(table.capacity.opcodes)
    return (h, rows.slot, rows.active[0].clone(), *table.tensors, 0, bits)


def test_gradients_of_the_stream_and_the_table(
    requests_of: Any, program_of: Any, table_of: Any, stream_of: Any
) -> None:
    from steerkit.kernels.fused.steer_rows import steer_rows

    table = table_of([program_of(i, terms=3, d_model=4) for i in range(2)])
    # Open edges of clamps have no finite difference.
    table.tensors.numbers.clamp_(-5, 5)
    given = list(the_op(table, requests_of(3, 5, [1, 2, 0]), stream_of(5, 4)))
    for i in (0, 3, 4, 6, 8):
        given[i] = given[i].clone().requires_grad_()
    assert torch.autograd.gradcheck(steer_rows, given, fast_mode=True)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_the_operators_are_sound(
    requests_of: Any, program_of: Any, table_of: Any, stream_of: Any, grad: bool
) -> None:
    from steerkit.kernels.fused.steer_rows import steer_rows, steer_rows_

    table = table_of([program_of(i, d_model=4) for i in range(2)])
    given = the_op(table, requests_of(3, 6, [1, 2, 0]), stream_of(6, 4))
    torch.library.opcheck(steer_rows, (given[0].requires_grad_(grad), *given[1:]))
    if not grad:
        torch.library.opcheck(steer_rows_, given)


def test_a_captured_step_replays_with_whatever_the_tables_hold_by_then(
    requests_of: Any, program_of: Any, table_of: Any, stream_of: Any
) -> None:
    """What a CUDA graph does: the same launches on the same addresses, nothing else."""
    programs = [program_of(i, groups=2, gates=("", "cosine", "a:")) for i in range(6)]
    table = table_of(programs[:2], capacity=Capacity.fitting(programs))
    requests = requests_of(0, 12, [1, 2, 0], ["a:"])
    given, buffer, out = requests.given(table), stream_of(12), torch.empty(12, 16).double()

    def launches() -> None:
        rows = dispatch.prepare(table.tensors, *given, path="triton")
        out.copy_(dispatch.rows_program(buffer, rows, table.tensors, 0, path="triton"))

    static_tensors = (*given, buffer, out, *table.tensors)
    captured = [part.data_ptr() for part in static_tensors]
    (site,) = table.sites
    for step in range(6):
        table.write_slot(1 + step % 2, {site: programs[step]})
        table.set_strength(1 + step % 2, step / 3)
        given[2].copy_(given[2].roll(1))
        given[4].copy_(table.registers(requests.latches, given[2].tolist()))
        buffer.copy_(stream_of(12, seed=step))
        assert [part.data_ptr() for part in static_tensors] == captured
        launches()
        fresh = static.prepare(table.tensors, *given)
        wanted = static.rows_program(buffer, fresh.slot, fresh.active[0], table.tensors, 0)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-13)
