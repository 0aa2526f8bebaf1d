"""K3 under Triton's interpreter: what each token does, against the rules written out."""

from typing import Any

import pytest
import torch

from steerkit.errors import InterventionError
from steerkit.kernels import dispatch
from steerkit.kernels.device import DeviceTable
from steerkit.kernels.layout import Capacity
from steerkit.program import Program
from steerkit.site import Site

pytestmark = pytest.mark.usefixtures("interpreter")


def holds(rule: Any, t: int, n: int) -> bool:
    """Whether a position rule holds at token t of a prompt of n."""
    places = [i if i >= 0 else n + i for i in rule.indices]
    named = {
        "all": range(99),
        "prompt": range(n),
        "last_prompt": [n - 1],
        "generated": range(n, 99),
    }
    return t in (places if rule.rule == "indices" else named[rule.rule])


def a_table(program_of: Any) -> tuple[DeviceTable, list[dict[Site, Program]]]:
    sites = [Site(i) for i in range(3)]
    gates = ("", "cosine", "a:", "b:")
    slots = [
        {site: program_of(10 * i + site.layer, terms=4, groups=2, gates=gates) for site in sites}
        for i in range(3)
    ]
    del slots[1][sites[2]]
    programs = [program for slot in slots for program in slot.values()]
    table = DeviceTable(sites, 16, Capacity.fitting(programs, slots=3), dtype=torch.float64)
    for number, slot in enumerate(slots, 1):
        table.write_slot(number, slot)
    return table, slots


@pytest.mark.parametrize("path", ["triton", "torch"])
@pytest.mark.parametrize("tokens", [0, 1, 3, 33, 257])
def test_bits_say_which_terms_may_act(
    program_of: Any, requests_of: Any, tokens: int, path: Any
) -> None:
    from steerkit.kernels.layout import fold

    table, slots = a_table(program_of)
    table.set_strength(3, 0.0)
    requests = requests_of(tokens, tokens, [1, 2, 0, 2, 3, 1], ["a:", "b:"])
    rows = dispatch.prepare(table.tensors, *requests.given(table), path=path)
    assert dispatch.last_path("prepare") == path
    assert rows.active.shape == (3, tokens) and rows.active.dtype == torch.int64
    for token in range(tokens):
        owner, t = int(requests.request[token]), int(requests.absolute[token])
        real = owner >= 0 and t >= 0
        slot, n = (int(requests.slot[owner]), int(requests.prompt_len[owner])) if real else (0, 0)
        assert int(rows.slot[token]) == slot
        for number, site in enumerate(table.sites):
            wanted = 0
            program = slots[slot - 1].get(site) if slot in (1, 2) else None
            for g, group in enumerate(program.groups if program else ()):
                folded = fold(group)
                for j, (rule, gate) in enumerate(zip(folded.positions, folded.gates, strict=True)):
                    latched = gate is not None and gate.latch
                    free = not latched or (
                        t >= n - 1 and int(requests.latches[gate.latch][owner]) > 0
                    )
                    if holds(rule, t, n) and free:
                        wanted |= 1 << (g * table.capacity.terms + j)
            assert int(rows.active[number, token]) == wanted, (token, number)


def test_no_registers_means_every_latch_is_closed(program_of: Any, requests_of: Any) -> None:
    table, _ = a_table(program_of)
    requests = requests_of(0, 30, [1, 2, 3], ["a:"])
    *given, registers = requests.given(table)
    zeros = torch.zeros_like(registers)
    for path in ("triton", "torch"):
        without = dispatch.prepare(table.tensors, *given, path=path)
        assert torch.equal(
            without.active, dispatch.prepare(table.tensors, *given, zeros, path=path).active
        )


def test_any_integers_and_shapes_will_do(program_of: Any, requests_of: Any) -> None:
    table, _ = a_table(program_of)
    requests = requests_of(0, 24, [1, 2, 3], ["a:"])
    request, absolute, slot, prompt_len, registers = requests.given(table)
    wanted = dispatch.prepare(
        table.tensors, request, absolute, slot, prompt_len, registers, path="torch"
    )
    got = dispatch.prepare(
        table.tensors,
        request.int().view(6, 4).T.contiguous().T,
        absolute.int().view(6, 4),
        slot.int(),
        prompt_len.int(),
        registers,
        path="triton",
    )
    assert torch.equal(got.slot.view(-1), wanted.slot)
    assert torch.equal(got.active.view(3, -1), wanted.active)


@pytest.mark.parametrize("path", ["triton", "torch"])
@pytest.mark.parametrize("wrong", [-1, 4, 10**9])
def test_slots_outside_the_table_are_refused(
    program_of: Any, requests_of: Any, path: Any, wrong: int
) -> None:
    table, _ = a_table(program_of)
    requests = requests_of(0, 9, [1, 2, 3])
    requests.slot[1] = wrong
    request, absolute, slot, prompt_len = (
        requests.request,
        requests.absolute,
        requests.slot,
        requests.prompt_len,
    )
    with pytest.raises(InterventionError, match=rf"slot {wrong}; this table has slots 0\.\.3"):
        dispatch.prepare(table.tensors, request, absolute, slot, prompt_len, path=path)


@pytest.mark.filterwarnings("ignore")
def test_the_operator_is_sound(program_of: Any, requests_of: Any) -> None:
    from steerkit.kernels.fused.rows_prep import rows_prep

    table, _ = a_table(program_of)
    given = requests_of(0, 9, [1, 2, 3], ["a:"]).given(table)
    torch.library.opcheck(rows_prep, (*given, table.tensors.codes, table.tensors.strength))
