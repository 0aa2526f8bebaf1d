"""What the sites of one pass share gives what each would find out alone."""

from typing import Any

import pytest
import torch

from steerkit.batch import Batch, Positions, Tokenized
from steerkit.kernels.place import Place
from steerkit.kernels.plan import plan_of
from steerkit.kernels.reference import pack, steer
from steerkit.program import Group, Opcode, Program

PARAMS = {
    Opcode.CONSTANT: (1.5, 0.0, 0.0),
    Opcode.AFFINE: (-1.0, 0.5, 0.0),
    Opcode.CLAMP: (-0.25, 0.5, 1.0),
    Opcode.ACTIVATION: (2.0, 0.25, 0.5),
    Opcode.KEEP_NORM: (2.0, 0.0, 0.0),
}


def term(opcode: Opcode, rule: Any, seed: int) -> Program:
    g = torch.Generator().manual_seed(seed)
    read, write = torch.randn(2, 1, 16, generator=g, dtype=torch.float64).unbind()
    if opcode == Opcode.KEEP_NORM:
        read = write = write / write.norm()
    return Program(
        (
            Group(
                (opcode,),
                read,
                torch.zeros(1, dtype=torch.float64),
                write,
                torch.tensor([PARAMS[opcode]], dtype=torch.float64),
                (Positions.of(rule),),
            ),
        )
    )


def batch(*lengths: int) -> Batch:
    items = [Tokenized(tuple(range(1, n)), (9,)) for n in lengths]
    return Batch.collate(items, pad_id=0)


def place_of(given: Batch, *, whole: bool) -> Place:
    return Place(lambda: given.absolute, given.prompt_len, given.rows, whole=whole)


@pytest.mark.parametrize("slots", [(1, 1, 1), (1, 2, 1), (0, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("opcode", PARAMS)
@pytest.mark.parametrize("rule", ["all", "prompt"])
def test_knowing_that_there_is_no_padding_changes_no_bit(
    rule: str, opcode: Opcode, dtype: torch.dtype, slots: tuple[int, ...]
) -> None:
    given = batch(6, 6, 6)
    h = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    programs = [term(opcode, rule, 1), term(opcode, rule, 2).then(term(Opcode.AFFINE, rule, 3))]
    plan = plan_of(pack([Program(), *programs], "cpu", dtype), slots)
    looked, known = (steer(plan, h, place_of(given, whole=w), {}) for w in (False, True))
    assert torch.equal(known, looked) and not torch.equal(known, h)


def test_positions_are_not_worked_out_where_nothing_asks_for_them() -> None:
    def absolute() -> torch.Tensor:
        raise AssertionError("asked for")

    h = torch.randn(1, 4, 16, dtype=torch.float64)
    place = Place(absolute, torch.tensor([3]), torch.tensor([0]), whole=True)
    plan = plan_of(pack([Program(), term(Opcode.CONSTANT, "all", 0)], "cpu", h.dtype), (1,))
    torch.testing.assert_close(
        steer(plan, h, place, {}), h + 1.5 * plan.groups[0].write, rtol=0, atol=1e-15
    )
    later = plan_of(pack([Program(), term(Opcode.CONSTANT, "prompt", 0)], "cpu", h.dtype), (1,))
    with pytest.raises(AssertionError, match="asked for"):
        steer(later, h, place, {})


@pytest.mark.parametrize("slots", [(1, 1, 1), (1, 0, 1)])
def test_a_rule_is_asked_once_a_pass(
    monkeypatch: pytest.MonkeyPatch, slots: tuple[int, ...]
) -> None:
    given, asked, select = batch(4, 6, 5), [], Positions.select

    def counted(self: Positions, *args: Any) -> torch.Tensor:
        asked.append(self.rule)
        return select(self, *args)

    monkeypatch.setattr(Positions, "select", counted)
    shared, h = place_of(given, whole=False), torch.randn(3, 6, 16, dtype=torch.float64)
    plans = [
        plan_of(pack([Program(), term(Opcode.AFFINE, rule, seed)], "cpu", h.dtype), slots)
        for seed, rule in enumerate(["all", "prompt", "all", "all", "prompt"])
    ]
    together = [steer(plan, h, shared, {}) for plan in plans]
    assert asked == ["all", "prompt"]
    alone = [steer(plan, h, place_of(given, whole=False), {}) for plan in plans]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
