"""Device tables: what fits, what is refused, what an edit touches, and where it all lies."""

from typing import Any

import pytest
import torch

from steerkit.batch import Positions
from steerkit.errors import InterventionError
from steerkit.kernels import device, layout
from steerkit.kernels.device import DeviceTable
from steerkit.kernels.layout import Capacity, fold
from steerkit.kernels.static import prepare
from steerkit.program import Gate, Group, Opcode, Program
from steerkit.site import Site

SITES = [Site(0), Site(1), Site(4)]


def additions(n: int, rule: Any = "all", gates: tuple[Gate | None, ...] = ()) -> Program:
    g = torch.Generator().manual_seed(n)
    write = torch.randn(n, 8, generator=g, dtype=torch.float64)
    params = torch.randn(n, 3, generator=g, dtype=torch.float64)
    rules = (Positions.of(rule),) * n
    zero = torch.zeros(n, dtype=torch.float64)
    return Program((Group((Opcode.CONSTANT,) * n, write, zero, write, params, rules, gates),))


def ablation(rule: Any = "all", gate: Gate | None = None, d_model: int = 8) -> Program:
    v = torch.eye(d_model, dtype=torch.float64)[:1]
    params = torch.tensor([[-1.0, 0, 0]], dtype=torch.float64)
    zero, gates = torch.zeros(1, dtype=torch.float64), (gate,)
    return Program((Group((Opcode.AFFINE,), v, zero, v, params, (Positions.of(rule),), gates),))


def latched(name: str) -> Program:
    return ablation(gate=Gate(torch.eye(8, dtype=torch.float64)[0], 0.0, latch=name))


def a_table(**room: Any) -> DeviceTable:
    return DeviceTable(SITES, 8, Capacity(slots=3, **room))


@pytest.mark.parametrize(
    ("room", "program", "message"),
    [
        ({"terms": 1}, Program.parallel([ablation()] * 2), "2 terms does not fit.*of 1 terms"),
        ({}, ablation().then(ablation()), "sequence of 2 groups does not fit.*of 1 a site"),
        ({"indices": 1}, ablation((0, 3)), "2 position indices does not fit.*of 1"),
        ({"latches": 0}, latched("a"), r"asks for 1 latches \(a\) in a table of 0"),
        ({"gates": False}, ablation(gate=Gate(torch.ones(8), 0.0)), r"Capacity\(gates=True\)"),
        ({"opcodes": frozenset({Opcode.CONSTANT})}, ablation(), r"AFFINE; it has \['CONSTANT'\]"),
        ({}, ablation(torch.ones(2, 3, dtype=torch.bool)), "'mask' names prompts.*eager path"),
        ({}, ablation(d_model=9), "width 9 cannot stand in a table of width 8"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    room: Any, program: Program, message: str
) -> None:
    table = a_table(**room)
    table.write_slot(1, {SITES[0]: additions(1)})
    table.set_strength(1, 0.5)
    before = [part.clone() for part in table.tensors]
    with pytest.raises(InterventionError, match=message):
        table.write_slot(1, {SITES[0]: additions(1), SITES[2]: program})
    assert all(torch.equal(a, b) for a, b in zip(before, table.tensors, strict=True))
    table.write_slot(2, {SITES[1]: additions(2)})


@pytest.mark.parametrize("slot", [0, -1, 4])
def test_slots_outside_the_table_are_refused(slot: int) -> None:
    table = a_table()
    for edit in (
        lambda: table.write_slot(slot, {SITES[0]: ablation()}),
        lambda: table.set_strength(slot, 1.0),
        lambda: table.clear_slot(slot),
    ):
        with pytest.raises(InterventionError, match=rf"slot {slot}: this table has slots 1\.\.3"):
            edit()
    table.check_slots([0, 3, 3, 1])
    if slot:
        with pytest.raises(InterventionError, match=rf"request 1 asks for slot {slot}.*0\.\.3"):
            table.check_slots([1, slot])


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(InterventionError, match="is not among them"):
        a_table().write_slot(1, {Site(9): ablation()})
    with pytest.raises(InterventionError, match="at least one site, each named once"):
        DeviceTable([Site(0), Site(0)], 8)
    with pytest.raises(InterventionError, match="a strength is a finite number; got nan"):
        a_table().set_strength(1, float("nan"))
    with pytest.raises(InterventionError, match="at most 62 terms; got 8 groups of 8"):
        Capacity(terms=8, groups=8)
    with pytest.raises(InterventionError, match="at least one slot, term and group"):
        Capacity(slots=0)


def test_edits_stay_in_place_and_touch_nothing_else() -> None:
    table = a_table(groups=2)
    addresses, nbytes = table.addresses, table.nbytes
    table.write_slot(1, {SITES[0]: additions(1), SITES[2]: ablation().then(ablation("prompt"))})
    table.write_slot(3, {SITES[1]: latched("a")})
    kept = [part.clone() for part in table.tensors]
    table.write_slot(2, {SITES[1]: ablation()})
    table.set_strength(2, 3.0)
    table.clear_slot(2)
    assert table.addresses == addresses and table.nbytes == nbytes
    for part, before in zip(table.tensors, kept, strict=True):
        assert torch.equal(part[[0, 1, 3]], before[[0, 1, 3]])
    assert (table.tensors.codes[2, ..., layout.RULE] == layout.NEVER).all()


def test_a_program_that_shrinks_leaves_no_old_terms_behind() -> None:
    table, fresh = a_table(groups=2), a_table(groups=2)
    big = Program.parallel([ablation((1,)), additions(1), latched("a")]).then(ablation())
    table.write_slot(1, {site: big for site in SITES})
    small = {SITES[1]: additions(1, "generated")}
    for each in (table, fresh):
        each.write_slot(1, small)
    for part, wanted in zip(table.tensors, fresh.tensors, strict=True):
        assert torch.equal(part, wanted)
    assert table.latches(1) == ()


def test_only_what_changed_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    table = a_table()
    first, second = ablation(), additions(1)
    table.write_slot(1, {SITES[0]: first, SITES[2]: second})
    staged: list[object] = []
    stage = DeviceTable._stage
    monkeypatch.setattr(
        DeviceTable, "_stage", lambda s, p, r: (staged.append(p), stage(s, p, r))[1]
    )
    table.write_slot(1, {SITES[0]: first, SITES[2]: second})
    assert staged == []
    third = ablation()
    table.write_slot(1, {SITES[0]: first, SITES[2]: third})
    assert staged == [third]


def test_a_program_is_laid_out_once_for_the_registers_it_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = a_table()
    one, two = ablation(), ablation()
    laid: list[object] = []
    lay = device.record
    monkeypatch.setattr(device, "record", lambda g, *rest: (laid.append(g), lay(g, *rest))[1])
    for _ in range(3):
        for program in (one, two):
            table.write_slot(1, {SITES[0]: program})
            part = table.tensors.write[1, 0, 0, : len(program.groups[0])]
            assert torch.equal(part, program.groups[0].write.to(part.dtype))
    assert laid == [one.groups[0], two.groups[0]]


def test_what_the_capacity_leaves_out_takes_no_memory() -> None:
    full = a_table()
    plain = a_table(gates=False, opcodes=frozenset({Opcode.CONSTANT}))
    assert plain.tensors.read.numel() == plain.tensors.gate.numel() == 0
    assert full.nbytes - plain.nbytes == 2 * full.tensors.write.nbytes
    assert full.nbytes == sum(p.numel() * p.element_size() for p in full.tensors)


def test_additions_fold_into_one_where_they_act_alike() -> None:
    gate = Gate(torch.ones(8, dtype=torch.float64), 0.0)
    for program, terms in [
        (additions(3), 1),
        (additions(3, gates=(gate, None, gate)), 2),
        (Program.parallel([additions(2), additions(2, "prompt"), ablation()]), 3),
        (ablation(), 1),
    ]:
        (group,) = program.groups
        folded = fold(group)
        assert len(folded) == terms
        adds = torch.tensor([op == Opcode.CONSTANT for op in group.opcodes])
        now = torch.tensor([op == Opcode.CONSTANT for op in folded.opcodes])
        torch.testing.assert_close(
            folded.params[now, 0] @ folded.write[now], group.params[adds, 0] @ group.write[adds]
        )
    a_table(terms=1, opcodes=frozenset({Opcode.CONSTANT})).write_slot(1, {SITES[0]: additions(9)})


def test_the_fitting_capacity_fits_and_nothing_smaller_does() -> None:
    programs = [
        Program.parallel([additions(3), ablation((0, 1, -1)), latched("a")]),
        additions(1).then(latched("b")),
    ]
    fit = Capacity.fitting(programs)
    ops = frozenset({Opcode.CONSTANT, Opcode.AFFINE})
    assert fit == Capacity(2, 3, 2, 3, 2, gates=False, opcodes=ops)
    table = DeviceTable(SITES, 8, fit)
    for slot, program in enumerate(programs, 1):
        table.write_slot(slot, {SITES[0]: program})
    assert Capacity.fitting([], slots=5) == Capacity(
        5, 1, 1, 0, 0, gates=False, opcodes=frozenset({Opcode.CONSTANT})
    )


def test_registers_follow_the_slots_of_requests() -> None:
    table = a_table()
    table.write_slot(1, {SITES[0]: latched("a"), SITES[2]: latched("b")})
    table.write_slot(2, {SITES[1]: latched("b")})
    assert table.latches(1) == ("a", "b") and table.latches(2) == ("b",)
    known = {"a": torch.tensor([1, 1, 1, 1]), "b": torch.tensor([0, -1, 1, 1])}
    latches = {name: value.to(torch.int8) for name, value in known.items()}
    got = table.registers(latches, [1, 2, 0, 2])
    assert got.tolist() == [[1, 0], [-1, 0], [0, 0], [1, 0]]
    assert table.registers({}, [1]).tolist() == [[0, 0]]
    with pytest.raises(InterventionError, match="request 0 asks for slot 7"):
        table.registers(latches, [7])


def test_a_latched_term_waits_for_its_register_and_the_end_of_the_prompt() -> None:
    table = a_table()
    table.write_slot(1, {SITES[1]: latched("a")})
    absolute = torch.arange(-1, 5).repeat(3)
    request = torch.arange(3).repeat_interleave(6)
    registers = table.registers({"a": torch.tensor([1, 0, -1], dtype=torch.int8)}, [1, 1, 1])
    length = torch.tensor([3, 3, 3])
    rows = prepare(table.tensors, request, absolute, torch.ones(3).long(), length, registers)
    assert rows.active[1].tolist() == [0, 0, 0, 1, 1, 1] + [0] * 12
    assert not rows.active[[0, 2]].any()
    assert rows.slot.tolist() == [0, 1, 1, 1, 1, 1] * 3
    without = prepare(table.tensors, request, absolute, torch.ones(3).long(), length)
    assert not without.active.any()
