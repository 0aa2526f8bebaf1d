"""The plain torch executor against token-by-token float64, and what it must never touch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.batch import Batch, Positions, RequestState
from steerkit.errors import InterventionError
from steerkit.kernels import place, reference
from steerkit.kernels.reference import apply, pack
from steerkit.program import Group, Opcode, Program

TOLERANCE = {
    torch.float64: 1e-14,
    torch.float32: 1e-6,
    torch.float16: 5e-4,
    torch.bfloat16: 5e-3,
}


def stream(batch: Batch, seed: int = 0, d_model: int = 16, dtype: Any = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*batch.tokens.shape, d_model, generator=g, dtype=torch.float64).to(dtype)


def run(programs: Any, h: Tensor, batch: Batch, slots: Any) -> Tensor:
    packed = pack([Program(), *programs], h.device, h.dtype)
    return apply(
        packed,
        h,
        absolute=batch.absolute,
        prompt_len=batch.prompt_len,
        row=batch.rows,
        slot=slots if isinstance(slots, Tensor) else torch.tensor(slots),
    )


def rank_one(opcode: Opcode, params: Any, rule: Any = "all", d_model: int = 16) -> Program:
    unit = torch.zeros(1, d_model, dtype=torch.float64)
    unit[0, 0] = 1
    numbers = torch.tensor([params], dtype=torch.float64)
    rules = (Positions.of(rule),)
    return Program((Group((opcode,), unit, torch.zeros(1).double(), unit, numbers, rules),))


def bits(x: Tensor) -> Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("slots", [[1] * 5, [0, 1, 0, 1, 1], [1, 2, 3, 0, 2], [3, 3, 1, 2, 1]])
def test_every_row_equals_its_program_token_by_token(
    direct: Any, random_batch: Any, random_program: Any, dtype: Any, groups: int, slots: list[int]
) -> None:
    for seed in range(4):
        batch = random_batch(seed)
        programs = [
            random_program(seed * 10 + i, groups=1 + (i + groups) % 3, terms=1 + i)
            for i in range(3)
        ]
        h = stream(batch, seed, dtype=dtype)
        before = h.clone()
        out = run(programs, h, batch, slots)
        wanted = direct([[Program(), *programs][s] for s in slots], h, batch)
        assert out.dtype == dtype
        assert float((out.double() - wanted).norm() / wanted.norm()) < TOLERANCE[dtype]
        assert torch.equal(bits(h), bits(before)), "the input was changed in place"


@pytest.mark.parametrize("opcode", Opcode)
@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("rule", ["all", "last_prompt", "mask"])
def test_each_opcode_alone(
    direct: Any, random_batch: Any, random_program: Any, opcode: Opcode, terms: int, rule: str
) -> None:
    batch = random_batch(3)
    program = random_program(7, terms=terms, opcodes=[opcode], rules=[rule])
    h = stream(batch)
    torch.testing.assert_close(
        run([program], h, batch, [1] * 5), direct([program] * 5, h, batch), rtol=0, atol=1e-13
    )


def test_parallel_terms_read_the_incoming_stream_and_sequential_groups_do_not() -> None:
    # Doubling and then adding 1 is not adding 1 and then doubling, nor both at once.
    batch = Batch.collate([_item(1)], pad_id=0)
    h = torch.zeros(1, 1, 16, dtype=torch.float64)
    h[0, 0, 0] = 3
    double, plus = rank_one(Opcode.AFFINE, (1, 0, 0)), rank_one(Opcode.CONSTANT, (1, 0, 0))
    cases = [
        (7, double.then(plus)),
        (8, plus.then(double)),
        (7, Program.parallel([plus, double])),
    ]
    for wanted, program in cases:
        assert float(run([program], h, batch, [1])[0, 0, 0]) == wanted
    square = Program.parallel([double, double])
    assert float(run([square], h, batch, [1])[0, 0, 0]) == 9, "both read 3"
    assert float(run([double.then(double)], h, batch, [1])[0, 0, 0]) == 12


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_poison_stays_where_it_is(
    random_batch: Any, random_program: Any, dtype: Any, poison: float
) -> None:
    batch = random_batch(1)
    programs = [random_program(i, groups=2, rules=["prompt", "last_prompt"]) for i in range(2)]
    slots = [1, 0, 2, 0, 1]
    clean = stream(batch, dtype=dtype)
    poisoned = clean.clone()
    poisoned[~batch.mask] = poison
    poisoned[1] = poison
    poisoned[batch.answer_mask] = poison
    out, wanted = run(programs, poisoned, batch, slots), run(programs, clean, batch, slots)
    touched = batch.mask & (batch.absolute < batch.prompt_len[:, None])
    touched[[1, 3]] = False
    assert torch.equal(out[touched], wanted[touched])
    assert torch.equal(bits(out[~touched]), bits(poisoned[~touched]))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("slots", [[0, 1, 0, 1, 0], [1, 0, 2, 2, 0]])
def test_untouched_tokens_keep_their_bits(
    random_batch: Any, random_program: Any, dtype: Any, slots: list[int]
) -> None:
    # -0.0 + 0 is +0.0, so a masked sum would be seen here.
    batch = random_batch(2)
    h = torch.full((*batch.tokens.shape, 16), -0.0, dtype=dtype)
    programs = [random_program(i, groups=2, rules=["last_prompt"]) for i in range(2)]
    out = run(programs, h, batch, slots)
    touched = (batch.absolute == batch.prompt_len[:, None] - 1) & (torch.tensor(slots) > 0)[:, None]
    assert torch.equal(bits(out[~touched]), bits(h[~touched]))
    assert (out[touched] != 0).all(), "the steered tokens moved"


def test_each_group_of_a_sequence_keeps_to_its_own_tokens(direct: Any, random_batch: Any) -> None:
    batch = random_batch(1)
    h = stream(batch)
    first, second, third = (
        rank_one(opcode, params, rule)
        for opcode, params, rule in [
            (Opcode.CONSTANT, (1, 0, 0), "prompt"),
            (Opcode.AFFINE, (2, 1, 0), "last_prompt"),
            (Opcode.CLAMP, (-0.5, 0.5, 1), "generated"),
        ]
    )
    programs = [first.then(second), second.then(third).then(first), third]
    for slots in ([1] * 5, [2] * 5, [1, 2, 3, 0, 2]):
        wanted = direct([[Program(), *programs][s] for s in slots], h, batch)
        out = run(programs, h, batch, slots)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-14)


def test_a_short_program_beside_a_long_one_touches_only_its_own_tokens(random_batch: Any) -> None:
    # The second group of the long program must not count as active in the short one's rows.
    batch = random_batch(1)
    h = torch.full((*batch.tokens.shape, 16), -0.0, dtype=torch.float64)
    step = rank_one(Opcode.CONSTANT, (1, 0, 0), "prompt")
    short = rank_one(Opcode.CONSTANT, (1, 0, 0), "generated")
    out = run([step.then(step), short], h, batch, [1, 2, 2, 1, 2])
    prompt = batch.mask & (batch.absolute < batch.prompt_len[:, None])
    untouched = prompt & torch.tensor([0, 1, 1, 0, 1]).bool()[:, None]
    assert torch.equal(bits(out[untouched]), bits(h[untouched]))
    assert (out[prompt & ~untouched][:, 0] == 2).all()


def test_an_addition_takes_no_notice_of_what_a_neighbouring_clamp_cannot_read() -> None:
    batch = Batch.collate([_item(2)], pad_id=0)
    h = torch.zeros(1, 2, 16, dtype=torch.float64)
    h[0, 0, 5] = float("inf")
    add = rank_one(Opcode.CONSTANT, (1, 0, 0))
    clamp = rank_one(Opcode.CLAMP, (3, 4, 1), "last_prompt")
    out = run([Program.parallel([add, clamp])], h, batch, [1])
    assert out[0, :, 0].tolist() == [1, 4]
    assert out[0, 0, 5] == float("inf") and not out.isnan().any()


def test_nothing_to_do_returns_the_stream_itself(random_batch: Any, random_program: Any) -> None:
    batch = random_batch(0)
    h = stream(batch)
    program = random_program(0)
    assert run([program], h, batch, [0] * 5) is h
    assert run([Program(), program], h, batch, [1] * 5) is h
    assert run([Program()], h, batch, [1] * 5) is h
    assert run([rank_one(Opcode.CONSTANT, (1, 0, 0), (50,))], h, batch, [1] * 5) is h


@pytest.mark.parametrize("slots", [[1] * 5, [1, 0, 2, 2, 0]])
def test_the_path_of_accelerators_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, random_batch: Any, random_program: Any, slots: list[int]
) -> None:
    # There the touched columns are never looked up, so every token is computed and put back.
    for seed in range(5):
        batch = random_batch(seed)
        h = stream(batch, dtype=torch.float32)
        h[~batch.mask] = float("nan")
        programs = [random_program(seed + i, groups=1 + i) for i in range(2)]
        here = run(programs, h, batch, slots)
        with monkeypatch.context() as patch:
            patch.setattr(place, "_span", lambda touched: (0, touched.shape[1], False))
            there = run(programs, h, batch, slots)
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6, equal_nan=True)
        untouched = bits(here) == bits(h)
        assert torch.equal(bits(there)[untouched], bits(h)[untouched])


@pytest.mark.parametrize("slots", [[1] * 5, [1, 0, 2, 2, 0]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_large_streams_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, random_batch: Any, random_program: Any, slots: Any, dtype: Any
) -> None:
    # There untouched tokens are copied instead of masked.
    for seed in range(8):
        batch = random_batch(seed)
        h = stream(batch, dtype=dtype)
        h[~batch.mask] = float("nan")
        before = h.clone()
        programs = [random_program(seed + i, groups=1 + i, gated=seed > 4) for i in range(2)]
        small, slope = slopes(programs, h, batch, slots)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "MANY", 0)
            large, other = slopes(programs, h, batch, slots)
        assert torch.equal(bits(large), bits(small)) and torch.equal(bits(h), bits(before))
        assert torch.equal(other, slope) and torch.isfinite(slope).all()


def slopes(programs: Any, h: Tensor, batch: Batch, slots: Any) -> tuple[Tensor, Tensor]:
    """The result, and the gradient of a weighted sum of its real tokens."""
    x = h.clone().requires_grad_()
    out = run(programs, x, batch, slots)
    weights = torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)
    (out[batch.mask] * weights).sum().backward()
    assert x.grad is not None
    return run(programs, h, batch, slots), x.grad


def test_a_slot_does_the_same_alone_and_among_others(
    random_batch: Any, random_program: Any
) -> None:
    batch = random_batch(4)
    h = stream(batch)
    programs = [random_program(i, groups=1 + i % 2, terms=1 + i) for i in range(4)]
    mixed = run(programs, h, batch, [4, 2, 1, 0, 3])
    for row, slot in enumerate([4, 2, 1, 0, 3]):
        alone = run(programs, h, batch, [slot] * 5)
        torch.testing.assert_close(mixed[row], alone[row], rtol=0, atol=1e-14)


def test_permuting_rows_permutes_the_result(random_batch: Any, random_program: Any) -> None:
    batch = random_batch(5)
    h = stream(batch)
    programs = [random_program(i) for i in range(2)]
    slots = torch.tensor([1, 2, 0, 1, 2])
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = Batch(
        batch.tokens[order], batch.mask[order], batch.prompt_len[order], batch.rows[order]
    )
    torch.testing.assert_close(
        run(programs, h[order], shuffled, slots[order]),
        run(programs, h, batch, slots)[order],
        rtol=0,
        atol=1e-14,
    )


@pytest.mark.parametrize("chunks", [[1] * 10, [3, 1, 6], [9, 1], [5, 5]])
@pytest.mark.parametrize("slots", [[1] * 5, [1, 2, 0, 1, 2]])
def test_any_chunking_gives_the_same_stream(
    random_batch: Any, random_program: Any, chunks: list[int], slots: list[int]
) -> None:
    for seed in range(5):
        batch = random_batch(seed)
        programs = [random_program(seed + i, groups=2, terms=4) for i in range(2)]
        h = stream(batch, seed)
        packed = pack([Program(), *programs], "cpu", h.dtype)
        state: RequestState = batch.state(slots)
        parts = []
        start = 0
        for size in chunks:
            part = h[:, start : start + size]
            parts.append(
                apply(
                    packed,
                    part,
                    absolute=state.absolute(part.shape[1]),
                    prompt_len=state.prompt_len,
                    row=state.row,
                    slot=state.slot,
                )
            )
            state = state.advanced(part.shape[1])
            start += size
        whole = run(programs, h, batch, slots)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("slots", [[1] * 3, [1, 0, 2]])
def test_gradients(random_batch: Any, random_program: Any, slots: list[int]) -> None:
    batch = random_batch(6, n=3)
    programs = [random_program(i, groups=2, d_model=5, prompts=3) for i in range(2)]
    h = stream(batch, d_model=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(programs, x, batch, slots), (h,))


@pytest.mark.parametrize("slots", [[1] * 5, [1, 0, 2, 0, 2]])
def test_tables_first_used_in_inference_mode_still_allow_gradients(
    random_batch: Any, random_program: Any, slots: list[int]
) -> None:
    batch = random_batch(0)
    programs = [random_program(99 + i, opcodes=[Opcode.AFFINE]) for i in range(2)]
    h = stream(batch)
    with torch.inference_mode():
        run(programs, h, batch, slots)
    h.requires_grad_()
    run(programs, h, batch, slots).sum().backward()
    assert h.grad is not None and torch.isfinite(h.grad).all()


def test_poisoned_padding_leaves_gradients_finite(random_batch: Any, random_program: Any) -> None:
    batch = random_batch(1)
    h = stream(batch)
    h[~batch.mask] = float("nan")
    h.requires_grad_()
    run([random_program(3, groups=2)], h, batch, [1] * 5)[batch.mask].sum().backward()
    assert h.grad is not None and torch.isfinite(h.grad).all()


@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
def test_any_memory_layout(
    direct: Any, random_batch: Any, random_program: Any, layout: str
) -> None:
    batch = random_batch(2)
    n, width = batch.tokens.shape
    g = torch.Generator().manual_seed(0)
    h = {
        "sliced": torch.randn(n, width + 3, 40, generator=g).double()[:, 2 : width + 2, 3:35:2],
        "transposed": torch.randn(16, width, n, generator=g).double().permute(2, 1, 0),
        "expanded": torch.randn(1, 1, 16, generator=g).double().expand(n, width, 16),
    }[layout]
    for slots in ([1] * 5, [1, 2, 0, 2, 1]):
        programs = [random_program(i, groups=2) for i in range(2)]
        wanted = direct([[Program(), *programs][s] for s in slots], h, batch)
        torch.testing.assert_close(run(programs, h, batch, slots), wanted, rtol=0, atol=1e-13)


def test_low_precision_is_rounded_once(random_batch: Any, random_program: Any) -> None:
    # Exactly what float32 gives, rounded; rounding between groups would differ.
    batch = random_batch(3)
    program = random_program(5, groups=3, rules=["all"])
    h = stream(batch, dtype=torch.bfloat16)
    once = run([program], h.float(), batch, [1] * 5).bfloat16()
    assert torch.equal(run([program], h, batch, [1] * 5), once)


@pytest.mark.parametrize("slot", [3, -1])
def test_a_slot_outside_the_table_is_refused(
    random_batch: Any, random_program: Any, slot: int
) -> None:
    batch = random_batch(0)
    programs = [random_program(0), random_program(1)]
    with pytest.raises(InterventionError, match=rf"row 2 asks for program slot {slot}.*0\.\.2"):
        run(programs, stream(batch), batch, [1, 0, slot, 0, 1])


def test_a_stream_of_another_width_is_refused(random_batch: Any, random_program: Any) -> None:
    batch = random_batch(0)
    with pytest.raises(InterventionError, match=r"width 16 over 5 rows.*shape \(5, \d+, 12\)"):
        run([random_program(0)], stream(batch, d_model=12), batch, [1] * 5)


def test_a_mask_for_fewer_prompts_is_refused_only_for_its_own_rows(random_batch: Any) -> None:
    batch = random_batch(0)
    h = stream(batch)
    short = rank_one(Opcode.CONSTANT, (1, 0, 0), torch.ones(2, 8, dtype=torch.bool))
    other = rank_one(Opcode.CONSTANT, (2, 0, 0))
    inside = [1 if row < 2 else 2 for row in batch.rows.tolist()]
    out = run([short, other], h, batch, inside)
    moved = (out - h)[:, -1, 0]
    torch.testing.assert_close(moved, torch.tensor([float(s) for s in inside]).double())
    with pytest.raises(InterventionError, match="the position mask has 2 rows but prompt 4 ran"):
        run([short, other], h, batch, [1] * 5)


def _item(n: int) -> Any:
    from steerkit.batch import Tokenized

    return Tokenized((1,) * n)
