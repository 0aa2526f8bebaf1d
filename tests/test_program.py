"""Programs: joined, stacked, tabled, and refused where malformed."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from steerkit.batch import Positions
from steerkit.errors import InterventionError
from steerkit.program import Gate, Group, Latch, Opcode, Program, ProgramTable, join
from steerkit.site import Site


def group(n: int = 1, value: float = 1.0, **fields: Any) -> Group:
    known: dict[str, Any] = {
        "opcodes": (Opcode.CONSTANT,) * n,
        "read": torch.zeros(n, 4).double(),
        "offset": torch.zeros(n).double(),
        "write": torch.full((n, 4), value).double(),
        "params": torch.ones(n, 3).double(),
        "positions": (Positions(),) * n,
    }
    return Group(**{**known, **fields})


def writes(program: Program) -> list[list[float]]:
    return [g.write[:, 0].tolist() for g in program.groups]


def test_stacking_keeps_order_and_joining_merges() -> None:
    a, b, c = (Program((group(value=v),)) for v in (1.0, 2.0, 3.0))
    assert writes(a.then(b).then(c)) == [[1], [2], [3]]
    assert writes(Program.parallel([a, b, c])) == [[1, 2, 3]]
    assert writes(Program.parallel([a.then(b), c])) == [[1, 3], [2]]
    assert writes(Program.parallel([c, Program(), a.then(b)])) == [[3, 1], [2]]


def test_join_keeps_every_field_of_every_term() -> None:
    a = group(1, 1.0, opcodes=(Opcode.CLAMP,), positions=(Positions("prompt"),))
    b = group(2, 2.0, offset=torch.tensor([5.0, 6.0]).double())
    both = join([a, b])
    assert len(both) == 3 and both.d_model == 4
    assert both.opcodes == (Opcode.CLAMP, Opcode.CONSTANT, Opcode.CONSTANT)
    assert both.offset.tolist() == [0, 5, 6]
    assert [p.rule for p in both.positions] == ["prompt", "all", "all"]


def test_a_program_without_terms_does_nothing() -> None:
    assert not Program()
    assert not Program((group(0),))
    assert not Program.parallel([])
    assert Program((group(0), group(1)))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"read": torch.zeros(1, 5)}, r"'read' has shape \(1, 5\), expected \(1, 4\)"),
        ({"params": torch.zeros(1, 2)}, r"'params' has shape \(1, 2\), expected \(1, 3\)"),
        ({"offset": torch.zeros(2)}, r"'offset' has shape \(2,\), expected \(1,\)"),
        ({"write": torch.full((1, 4), float("inf"))}, "'write' is not finite"),
        ({"read": torch.full((1, 4), float("nan"))}, "'read' is not finite"),
        ({"params": torch.full((1, 3), float("nan"))}, "'params' is not finite"),
        ({"params": torch.full((1, 3), float("inf"))}, "'params' is not finite"),
        ({"positions": ()}, "1 terms need 1 position rules; got 0"),
    ],
)
def test_malformed_groups(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InterventionError, match=text):
        group(**fields)


def test_only_the_edges_of_clamps_may_be_infinite() -> None:
    edges = torch.tensor([[-float("inf"), float("inf"), 1.0]])
    clamp = group(opcodes=(Opcode.CLAMP,), params=edges)
    with pytest.raises(InterventionError, match="'params' is not finite"):
        replace(clamp, params=edges.flip(1))


def test_tables_count_slots_from_1_and_list_live_sites_in_order() -> None:
    a, b = Program((group(),)), Program((group(),))
    early, late = Site(0, "attn_out"), Site(1)
    table = ProgramTable(({late: a}, {early: b, late: Program()}, {Site(5): Program()}))
    assert len(table) == 4
    assert table.sites == (early, late)
    assert [p is a for p in table.at(late)] == [False, True, False, False]
    assert [bool(p) for p in table.at(early)] == [False, False, True, False]
    assert not any(table.at(Site(3)))


def unit(i: int = 0) -> torch.Tensor:
    return torch.eye(4, dtype=torch.float64)[i]


def test_joining_keeps_gates_and_fills_in_open_ones() -> None:
    gate = Gate(unit(), 0.5)
    both = join([group(1), group(2, gates=(gate, None))])
    assert both.gates == (None, gate, None)
    assert join([group(1), group(1)]).gates == ()
    with pytest.raises(InterventionError, match="2 terms need 2 gates or none; got 1"):
        group(2, gates=(gate,))


def test_latches_of_one_name_are_kept_once_and_count_as_something_to_do() -> None:
    a, b = (Latch(name, Gate(unit(), 0.0, latch=name)) for name in "ab")
    first, second = Program((group(),), (a,)), Program((), (b, a))
    assert [latch.name for latch in first.then(second).latches] == ["a", "b"]
    assert [latch.name for latch in Program.parallel([first, second]).latches] == ["a", "b"]
    assert Program(latches=(a,)) and ProgramTable(({Site(1): Program(latches=(a,))},)).sites


def test_a_gate_needs_its_latch_at_the_same_site_or_before() -> None:
    gate = Gate(unit(), 0.0, latch="a")
    gated = Program((group(gates=(gate,)),))
    latch = Program(latches=(Latch("a", gate),))
    ProgramTable(({Site(1): latch, Site(2): gated}, {Site(2): latch.then(gated)}))
    for slots in (
        ({Site(1): gated, Site(2): latch},),
        ({Site(2): gated},),
        ({Site(1): latch}, {Site(2): gated}),
    ):
        with pytest.raises(InterventionError, match=r"slot \d at resid_post@\d waits .* 'a'"):
            ProgramTable(slots)


TURN = (Opcode.TURN, Opcode.TURN)


def turns(*y: float) -> torch.Tensor:
    return torch.tensor([[0.0, step, 1.0] for step in y]).double()


def test_turns_come_in_pairs_that_act_together() -> None:
    group(2, opcodes=TURN, params=turns(1, -1))
    for steps in ((1, 1), (-1, 1), (0, 0), (2, -2)):
        with pytest.raises(InterventionError, match="term 0 turns without its partner"):
            group(2, opcodes=TURN, params=turns(*steps))
    with pytest.raises(InterventionError, match="term 0 turns without its partner"):
        group(2, opcodes=(Opcode.TURN, Opcode.AFFINE), params=turns(1, -1))
    with pytest.raises(InterventionError, match="do not act at the same tokens"):
        rules = (Positions("prompt"), Positions())
        group(2, opcodes=TURN, params=turns(1, -1), positions=rules)
    with pytest.raises(InterventionError, match="do not act at the same tokens"):
        group(2, opcodes=TURN, params=turns(1, -1), gates=(Gate(unit(), 0.0), None))


def test_an_addition_that_keeps_the_norm_reads_along_its_unit_write_row() -> None:
    row = unit()[None]
    keep: dict[str, Any] = {"opcodes": (Opcode.KEEP_NORM,), "read": row, "write": row}
    group(**keep)
    for change in ({"read": unit(1)[None]}, {"offset": torch.ones(1)}, {"write": 2 * row}):
        with pytest.raises(InterventionError, match="term 0 keeps the norm"):
            group(**{**keep, **change})
