"""Additions chosen on the host are those that the general path makes, and no others."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.batch import Positions
from steerkit.interventions import When
from steerkit.kernels.device import DeviceTable
from steerkit.kernels.layout import Capacity
from steerkit.kernels.static import prepare, rows_program
from steerkit.models.checks import lowered as checked
from steerkit.protocols import ModelInfo
from steerkit.vllm.sums import MORE, NOTHING, Rule, Sums, Tokens, _within

lowered = partial(checked, force=False)
RULES: tuple[Any, ...] = ("all", "prompt", "last_prompt", "generated", [0, 3, -1, -9])


def tokens_of(seed: int, slot: list[int]) -> tuple[Tokens, torch.Tensor]:
    """Some neighbouring tokens of each of a few requests, and the lengths of their prompts."""
    draw = np.random.default_rng(seed)
    n = len(slot)
    length, first = draw.integers(2, 8, n), draw.integers(0, 6, n)
    seat = np.repeat(np.arange(n), draw.integers(1, 6, n))
    absolute = np.concatenate([first[s] + np.arange((seat == s).sum()) for s in range(n)])
    place = 2 * np.arange(len(seat))
    return Tokens(place, seat, absolute, np.array(slot)[seat], length[seat]), torch.from_numpy(
        length
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("register", [-1, 0])
def test_tokens_of_a_rule_are_those_that_positions_select(rule: Any, register: int) -> None:
    registers = torch.tensor([[1], [-1], [0], [1]], dtype=torch.int8)
    some = 0
    for seed in range(20):
        tokens, length = tokens_of(seed, [1, 1, 1, 1])
        seat, at = torch.from_numpy(tokens.seat), torch.from_numpy(tokens.absolute)
        want = Positions.of(rule).select(at[:, None], length[seat], seat)[:, 0]
        if register >= 0:
            want &= (registers[seat, 0] > 0) & (at >= length[seat] - 1)
        got = _within(Rule(Positions.of(rule), register), tokens, registers)
        assert got.tolist() == want.tolist()
        some += int(want.sum())
    assert some


@pytest.fixture
def table(info: ModelInfo, direction: Any) -> DeviceTable:
    """Slots that add, by several rules, and one that does more at one of its sites."""
    d = [direction(seed=seed) for seed in range(4)]
    made = [
        (sk.Add(d[0], 1.5), sk.Add(d[1], -0.5)),
        (sk.Add(d[1], 2.0, positions="generated"), sk.Add(d[2], sites="resid_pre@0")),
        (sk.Add(d[3], positions=[0, -2]).when(When(d[0], above=-1.0, on="last_prompt")),),
        (sk.Add(d[0], sites="resid_pre@0"), sk.Ablate(d[1])),
        (sk.Add(d[0]), sk.Add(d[1], positions="prompt")),
        (sk.Add(d[0]).when(When(d[1], above=0.0, on="token")),),
    ]
    programs = [lowered(one, info) for one in made]
    sites = sorted({site for one in programs for site in one})
    need = Capacity.fitting([p for one in programs for p in one.values()], slots=len(made))
    found = DeviceTable(sites, info.d_model, need, dtype=torch.float64)
    for slot, one in enumerate(programs, 1):
        found.write_slot(slot, one)
    return found


def test_the_sum_is_what_the_general_path_makes_of_the_stream(table: DeviceTable) -> None:
    sums = Sums.of(table)
    assert Sums.of(table) is sums
    draw = torch.Generator().manual_seed(0)
    registers = torch.tensor([[1], [1], [1], [-1], [1]], dtype=torch.int8)
    changed = 0
    for seed, slot in enumerate([[1, 2, 3, 3, 0], [2, 2, 2, 2, 2], [1] * 5, [3, 0, 3, 0, 3]] * 3):
        if seed == 4:
            table.set_strength(1, 0.25)
        if seed == 8:
            table.write_slot(2, dict(table.programs(1)))
        tokens, length = tokens_of(seed, slot)
        sums.follow(table, sorted(set(slot)))
        seat = torch.from_numpy(tokens.seat)
        rows = prepare(
            table.tensors,
            seat,
            torch.from_numpy(tokens.absolute),
            torch.tensor(slot),
            length,
            registers,
        )
        for number in range(len(table.sites)):
            hidden = torch.randn(2 * len(seat), table.d_model, generator=draw, dtype=torch.float64)
            want = hidden.clone()
            mine = torch.from_numpy(tokens.place)
            want[mine] = rows_program(
                hidden[mine], rows.slot, rows.active[number], table.tensors, number
            )
            chosen = sums.choose(number, tokens, registers)
            before = hidden.clone()
            if chosen is not None:
                chosen.add(hidden, sums.vectors[number])
            assert torch.allclose(hidden, want, atol=1e-14, rtol=1e-14)
            # Whom nothing is added to keeps its bits.
            assert torch.equal((hidden != before).any(-1), (want != before).any(-1))
            changed += int((want != before).any())
    assert changed > 12


def test_slots_that_do_more_than_adding_are_left_to_the_general_path(table: DeviceTable) -> None:
    sums = Sums.of(table)
    sums.follow(table, range(7))
    first, own = table.number(table.sites[0]), table.number(table.sites[-1])
    assert str(table.sites[0]) == "resid_pre@0"
    assert (sums.rules[first, [0, 1, 3, 5, 6]] == NOTHING).all()
    assert sums.rules[first, 2] == sums.rules[first, 4] > 0
    # An ablation, two rules at one site, and a gate on the token itself.
    assert (sums.rules[own, [4, 5, 6]] == MORE).all() and (sums.rules[own, 1:4] > 0).all()
    # An emptied slot forgets.
    table.clear_slot(4)
    sums.follow(table, [4])
    assert (sums.rules[:, 4] == NOTHING).all()


def test_in_half_precision_the_sum_is_rounded_once(info: ModelInfo, direction: Any) -> None:
    programs = lowered([sk.Add(direction(), 0.01)], info)
    table = DeviceTable(list(programs), info.d_model, Capacity(slots=1), dtype=torch.bfloat16)
    table.write_slot(1, programs)
    sums = Sums.of(table)
    sums.follow(table, [1])
    exact = torch.randn(6, info.d_model, generator=torch.Generator().manual_seed(1))
    for every in (True, False):
        hidden = exact.bfloat16()
        want = hidden.clone()
        n = 6 if every else 3
        want[:n] = (want[:n].float() + sums.vectors[0, 1]).bfloat16()
        at = np.arange(n)
        one = np.ones(n, int)
        chosen = sums.choose(0, Tokens(at, 0 * one, at, one, one), torch.zeros(1, 0).char())
        assert chosen is not None
        chosen.add(hidden, sums.vectors[0])
        assert torch.equal(hidden, want) and not torch.equal(hidden, exact.bfloat16())


def test_rules_of_requests_that_are_gone_are_forgotten(info: ModelInfo, direction: Any) -> None:
    """A server that runs for months meets any number of position lists."""
    programs = lowered([sk.Add(direction(), positions=[0])], info)
    table = DeviceTable(list(programs), info.d_model, Capacity(slots=2), dtype=torch.float64)
    sums = Sums.of(table)
    at, one = np.arange(4), np.ones(4, int)
    for place in range(300):
        held = 1 + place % 2
        table.write_slot(
            held, lowered([sk.Add(direction(), positions=[place % 4, place + 9])], info)
        )
        sums.follow(table, [1, 2])
        tokens = Tokens(at, 0 * one, at, held * one, 4 * one)
        chosen = sums.choose(0, tokens, torch.zeros(1, 0).char())
        assert chosen is not None and chosen.place.tolist() == [place % 4]
    assert len(sums._numbers) < 80
