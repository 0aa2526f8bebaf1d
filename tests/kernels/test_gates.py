"""Gates and latches against token-by-token float64: opened by tokens, by prompts, or never."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.batch import Batch, Positions, Tokenized
from steerkit.kernels import place
from steerkit.kernels.reference import apply, pack
from steerkit.program import Gate, Group, Latch, Opcode, Program


def stream(batch: Batch, seed: int = 0, dtype: Any = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*batch.tokens.shape, 16, generator=g, dtype=torch.float64).to(dtype)


def run(
    programs: Sequence[Program], h: Tensor, batch: Batch, slots: Any, latches: Any = None
) -> Tensor:
    return apply(
        pack([Program(), *programs], h.device, h.dtype),
        h,
        absolute=batch.absolute,
        prompt_len=batch.prompt_len,
        row=batch.rows,
        slot=slots,
        latches=latches,
    )


def unit(i: int = 0) -> Tensor:
    return torch.eye(16, dtype=torch.float64)[i]


def plus(gate: Gate | None, latches: Sequence[Latch] = (), rule: Any = "all") -> Program:
    """Add 1 along axis 1."""
    row = unit(1)[None]
    return Program(
        (
            Group(
                (Opcode.CONSTANT,),
                row,
                torch.zeros(1).double(),
                row,
                torch.tensor([[1.0, 0, 0]]).double(),
                (Positions.of(rule),),
                (gate,),
            ),
        ),
        tuple(latches),
    )


def latched(pooled: Any = "last_prompt", threshold: float = 0.0, **fields: Any) -> Program:
    gate = Gate(unit(), threshold, latch="name", **fields)
    return plus(gate, [Latch("name", gate, pooled)])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("slots", [[1] * 5, [0, 1, 0, 1, 1], [1, 2, 3, 0, 2]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_row_equals_its_gated_program_token_by_token(
    direct: Any, random_batch: Any, random_program: Any, gated: bool, slots: Any, dtype: Any
) -> None:
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 5e-3}[dtype]
    for seed in range(6):
        batch = random_batch(seed)
        programs = [
            random_program(seed * 10 + i, groups=1 + i, gated=gated or i == 1, latched=not gated)
            for i in range(3)
        ]
        h = stream(batch, seed, dtype)
        out = run(programs, h, batch, slots)
        wanted = direct([[Program(), *programs][s] for s in slots], h, batch)
        assert float((out.double() - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 10, [3, 1, 6], [9, 1]])
def test_gated_programs_mean_the_same_in_any_chunks(
    random_batch: Any, random_program: Any, gated: bool, chunks: list[int]
) -> None:
    slots = [1, 2, 0, 1, 2]
    for seed in range(6):
        batch = random_batch(seed)
        programs = [random_program(seed + i, groups=2, gated=gated, latched=True) for i in range(2)]
        h = stream(batch, seed)
        packed = pack([Program(), *programs], "cpu", h.dtype)
        state, parts, start = batch.state(slots), [], 0
        for size in chunks:
            part = h[:, start : start + size]
            parts.append(
                apply(
                    packed,
                    part,
                    absolute=state.absolute(part.shape[1]),
                    prompt_len=state.prompt_len,
                    row=state.row,
                    slot=slots,
                    latches=state.latches,
                )
            )
            state, start = state.advanced(part.shape[1]), start + size
        whole = run(programs, h, batch, slots)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("slots", [[1] * 5, [1, 0, 2, 2, 0]])
def test_the_path_of_accelerators_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, random_batch: Any, random_program: Any, slots: list[int]
) -> None:
    for seed in range(4):
        batch = random_batch(seed)
        h = stream(batch)
        h[~batch.mask] = float("nan")
        programs = [random_program(seed + i, groups=2, gated=True, latched=True) for i in range(2)]
        here = run(programs, h, batch, slots)
        with monkeypatch.context() as patch:
            patch.setattr(place, "_span", lambda touched: (0, touched.shape[1], False))
            there = run(programs, h, batch, slots)
        torch.testing.assert_close(there, here, rtol=0, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("measure", ["cosine", "projection"])
def test_a_token_gate_at_its_threshold(above: bool, measure: Any) -> None:
    h = torch.zeros(1, 5, 16, dtype=torch.float64)
    # Projections -1, 0.5, 0.5 (cosines -1, 0.5, 1), and the zero vector; then a NaN.
    h[0, 0, 0], h[0, 1, 0], h[0, 2, 0] = -1, 0.5, 0.5
    h[0, 1, 2] = 0.75**0.5
    h[0, 4] = float("nan")
    batch = Batch.collate([Tokenized((1,) * 5)], pad_id=0)
    out = run([plus(Gate(unit(), 0.5, measure, above))], h, batch, [1])
    assert (out[0, :4, 1] == 1).tolist() == ([0, 1, 1, 0] if above else [1, 0, 0, 1])
    assert out[0, 4].isnan().all()
    torch.testing.assert_close(out[0, :4, [0, 2]], h[0, :4, [0, 2]], rtol=0, atol=0)


def test_a_gate_that_never_opens_leaves_every_bit(random_batch: Any) -> None:
    batch = random_batch(1)
    h = torch.full((*batch.tokens.shape, 16), -0.0)
    never = Gate(unit(), 2.0, "cosine")
    for program in (
        plus(never),
        latched(threshold=2.0, measure="cosine"),
        latched("mean_prompt", threshold=2.0, measure="cosine"),
        plus(never).then(plus(never)),
    ):
        out = run([program], h, batch, [1] * 5)
        assert torch.equal(out.view(torch.int32), h.view(torch.int32))


def test_open_tokens_are_fewer_the_higher_the_threshold(random_batch: Any) -> None:
    batch = random_batch(2)
    h = stream(batch)
    for make in (
        lambda t: plus(Gate(unit(), t, "cosine")),
        lambda t: latched("mean_prompt", t),
        lambda t: latched("last_prompt", t),
    ):
        before = None
        for threshold in (-3.0, -0.3, -0.1, 0.0, 0.1, 0.3, 3.0):
            moved = (run([make(threshold)], h, batch, [1] * 5) != h).any(-1)
            assert before is None or not (moved & ~before).any()
            before = moved
        assert before is not None and not before.any()


@pytest.mark.parametrize("pooled", ["last_prompt", "mean_prompt"])
def test_a_latch_is_decided_by_its_own_rows_prompt_and_kept(pooled: str) -> None:
    items = [Tokenized((1,) * 3, (2, 2)), Tokenized((1,), (2, 2)), Tokenized((1,) * 3, (2, 2))]
    batch = Batch.collate(items, pad_id=0)
    h = torch.zeros(3, 5, 16, dtype=torch.float64)
    # Row 0 on average above 1 and at its end below; row 1 (padded) above; row 2 the reverse.
    h[0, :3, 0] = torch.tensor([5.0, 0, 0])
    h[1, 2, 0] = 2
    h[2, :3, 0] = torch.tensor([-5.0, 0, 2])
    h[1, :2], h[0, 3:, 0], h[2, 3:, 0] = float("nan"), 99, -99
    out = run([latched(pooled, 1.0)], h, batch, [1] * 3)
    opened = [False, True, True] if pooled == "last_prompt" else [True, True, False]
    assert (out[:, 2:, 1] == 1).tolist() == [[o] * 3 for o in opened]
    # Never before the last token of the prompt, as a chunk of it could not have known.
    assert (out[[0, 2], :2, 1] == 0).all()


def test_a_register_is_written_once_and_for_its_slots_rows_alone(random_batch: Any) -> None:
    batch = random_batch(3)
    h = stream(batch)
    low, known = latched(threshold=-9.0), {}
    run([low, Program()], h, batch, [1, 1, 0, 2, 1], known)
    assert known["name"].tolist() == [1, 1, 0, 0, 1] and known["name"].dtype == torch.int8
    # A recomputation of the same requests does not decide again.
    run([latched(threshold=9.0)], h, batch, [1] * 5, known)
    assert known["name"].tolist() == [1, 1, -1, -1, 1]


def test_the_groups_of_a_site_use_what_its_own_latch_reads_before_them(random_batch: Any) -> None:
    batch = random_batch(0)
    h = torch.zeros(*batch.tokens.shape, 16, dtype=torch.float64)
    raised = plus(None)
    gate = Gate(unit(1), 0.5, latch="late")
    program = raised.then(plus(gate, [Latch("late", gate)]))
    out = run([program], h, batch, [1] * 5)
    assert (out[batch.mask][:, 1] == 1).all(), "the latch read the incoming 0, not the raised 1"
    token = raised.then(plus(Gate(unit(1), 0.5)))
    assert (run([token], h, batch, [1] * 5)[batch.mask][:, 1] == 2).all()


def test_a_latch_alone_changes_nothing_but_decides_for_a_later_site(random_batch: Any) -> None:
    batch = random_batch(4)
    h = stream(batch)
    gate = Gate(unit(), 0.0, latch="name")
    known: dict[str, Tensor] = {}
    assert run([Program(latches=(Latch("name", gate),))], h, batch, [1] * 5, known) is h
    out = run([plus(gate)], torch.zeros_like(h), batch, [1] * 5, known)
    assert torch.equal(out[:, -1, 1] == 1, known["name"] > 0)
    assert torch.equal(run([plus(gate)], h, batch, [1] * 5), h), "undecided is closed"


def test_gradients_pass_through_open_gates_and_untouched_tokens(
    random_batch: Any, random_program: Any
) -> None:
    batch = random_batch(6, n=3)
    programs = [
        random_program(i, groups=2, d_model=16, prompts=3, gated=True, latched=True)
        for i in range(2)
    ]
    h = stream(batch).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(programs, x, batch, [1, 0, 2]), (h,))
    poisoned = stream(batch)
    poisoned[~batch.mask] = float("nan")
    poisoned.requires_grad_()
    run(programs, poisoned, batch, [1, 2, 2])[batch.mask].sum().backward()
    assert poisoned.grad is not None and torch.isfinite(poisoned.grad).all()


def test_gates_of_pairs_close_both(random_program: Any, random_batch: Any, direct: Any) -> None:
    batch = random_batch(1)
    h = stream(batch)
    for opcode in (Opcode.TURN, Opcode.KEEP_NORM, Opcode.ACTIVATION):
        program = random_program(5, opcodes=[opcode], gated=True, latched=True, rules=["all"])
        wanted = direct([program] * 5, h, batch)
        torch.testing.assert_close(run([program], h, batch, [1] * 5), wanted, rtol=0, atol=1e-13)


def test_norms_are_kept_where_a_sum_is_short() -> None:
    # |h|^2 + 2xp + x^2 in float32 is wrong by percents here.
    g = torch.Generator().manual_seed(0)
    rest = torch.randn(16, generator=g, dtype=torch.float64).index_fill_(0, torch.tensor([0]), 0)
    h = (-100 * unit() + 0.1 * rest / rest.norm())[None, None].float()
    batch = Batch.collate([Tokenized((1,))], pad_id=0)
    row = unit()[None]
    keep = replace(
        plus(None).groups[0],
        opcodes=(Opcode.KEEP_NORM,),
        read=row,
        write=row,
        params=torch.tensor([[100.0, 0, 0]]).double(),
    )
    out = run([Program((keep,))], h, batch, [1])[0, 0].double()
    added = h[0, 0].double() + 100 * unit()
    torch.testing.assert_close(
        out, added * (h[0, 0].double().norm() / added.norm()), rtol=1e-6, atol=1e-4
    )
    cancelled = torch.zeros(1, 1, 16)
    cancelled[0, 0, 0] = -100
    assert torch.equal(run([Program((keep,))], cancelled, batch, [1]), cancelled)


@pytest.mark.parametrize("slots", [[1] * 5, [1, 0, 2, 2, 0]])
def test_no_value_is_looked_at_on_another_device(
    random_batch: Any, random_program: Any, slots: list[int]
) -> None:
    # Tensors on the meta device have none: looking raises.
    batch = random_batch(0)
    programs = [
        random_program(i, groups=2, rules=["all", "prompt"], gated=True, latched=True)
        for i in range(2)
    ]
    h = stream(batch, dtype=torch.bfloat16).to("meta")
    known: dict[str, Tensor] = {}
    out = apply(
        pack([Program(), *programs], "meta", h.dtype),
        h,
        absolute=batch.absolute.to("meta"),
        prompt_len=batch.prompt_len.to("meta"),
        row=batch.rows.to("meta"),
        slot=slots,
        latches=known,
    )
    assert out.shape == h.shape and out.dtype == h.dtype and out.device.type == "meta"
    assert {f"{slot - 1}/{n}" for slot in set(slots) - {0} for n in range(2)} <= set(known)
