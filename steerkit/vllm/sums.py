"""Slots that only add at a site: by far the commonest programs, and known before the pass runs.

What a token gets there is one vector of its slot, wherever its request's position rule holds
and its latch, if it waits for one, has opened. That is answered on the host, once a pass, for
all sites whose slots follow the same rules; at the site itself nothing is left but a sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from steerkit.batch import Positions
from steerkit.kernels.device import DeviceTable
from steerkit.serving.additions import acting, added, when_adding

NOTHING, MORE = 0, -1
"""Rules of slots that do nothing at a site, and of slots that do more than adding there."""


class Rule(NamedTuple):
    """When a slot adds its vector: at these positions, behind this register or none (-1)."""

    positions: Positions
    register: int


class Tokens(NamedTuple):
    """The tokens of steered requests in one pass, on the host, in the order of the stream."""

    place: Int[np.ndarray, "token"]
    """In the stream."""
    seat: Int[np.ndarray, "token"]
    """Of their requests."""
    absolute: Int[np.ndarray, "token"]
    """Positions in their own requests."""
    slot: Int[np.ndarray, "token"]
    """Programs of their requests."""
    prompt_len: Int[np.ndarray, "token"]
    """Of their requests."""


@dataclass(frozen=True)
class Chosen:
    """Which tokens of a pass get a vector, and of which slot."""

    place: Int[Tensor, "chosen"]
    slot: Int[Tensor, "chosen"]
    length: int
    """Of a stream that has no other tokens; 0 where the pass has steered tokens without one."""

    def add(
        self, hidden: Float[Tensor, "token d_model"], vectors: Float[Tensor, "slot d_model"]
    ) -> None:
        """Add each token's vector, in place; the sum is rounded once."""
        added = vectors.index_select(0, self.slot)
        if self.length == len(hidden):
            hidden += added
        else:
            hidden[self.place] = (hidden[self.place] + added).to(hidden.dtype)


class Sums:
    """What the slots of a table add, where they do no more.

    Args:
        table: whose slots are written elsewhere, at any time between passes.
    """

    def __init__(self, table: DeviceTable) -> None:
        n_slots, n_sites = table.tensors.numbers.shape[:2]
        with torch.inference_mode(False):
            self.vectors = table.tensors.numbers.new_zeros(n_sites, n_slots, table.d_model)
        """One vector a site and slot, `[site slot d_model]`."""
        self.rules = np.zeros((n_sites, n_slots), np.int64)
        """Numbers of rules, `[site slot]`; `NOTHING`, or `MORE`."""
        self._numbers: dict[Rule, int] = {}
        self._known = [0] * n_slots

    @staticmethod
    def of(table: DeviceTable) -> "Sums":
        """Those of a table, made once."""
        if table not in _known:
            _known[table] = Sums(table)
        return _known[table]

    def follow(self, table: DeviceTable, slots: Sequence[int]) -> None:
        """Take in what was written to these slots of the table since."""
        if len(self._numbers) > 2 * self.rules.size + 64:
            # Rules of slots that are long written over.
            self._numbers.clear()
            self._known = [0] * len(self._known)
        for slot in slots:
            if self._known[slot] != table.edits[slot]:
                self._read(table, slot)
                self._known[slot] = table.edits[slot]

    def _read(self, table: DeviceTable, slot: int) -> None:
        self.rules[:, slot] = NOTHING
        strength, latches = table.tensors.strength[slot], table.latches(slot)
        for site, program in table.programs(slot).items():
            groups = acting(program)
            if not groups:
                continue
            number, when = table.number(site), when_adding(groups)
            if when is None:
                self.rules[number, slot] = MORE
                continue
            rule = Rule(when.rule, latches.index(when.latch) if when.latch else -1)
            self.rules[number, slot] = self._numbers.setdefault(rule, len(self._numbers) + 1)
            self.vectors[number, slot] = added(groups).to(self.vectors) * strength

    def choose(
        self, number: int, tokens: Tokens, registers: Int8[Tensor, "seat register"]
    ) -> Chosen | None:
        """The tokens that get something at a site, none of whose slots does more; None for none."""
        mine = self.rules[number][tokens.slot]
        on = np.zeros(len(mine), bool)
        for rule, n in self._numbers.items():
            here = mine == n
            if here.any():
                on |= here & _within(rule, tokens, registers)
        if not on.any():
            return None
        every = bool(on.all())
        return Chosen(
            torch.from_numpy(tokens.place if every else tokens.place[on]).to(registers.device),
            torch.from_numpy(tokens.slot if every else tokens.slot[on]).to(registers.device),
            len(on) if every else 0,
        )


# Tables come and go as they grow; what is kept beside one goes with it.
_known: WeakKeyDictionary[DeviceTable, Sums] = WeakKeyDictionary()


def _within(
    rule: Rule, tokens: Tokens, registers: Int8[Tensor, "seat register"]
) -> Bool[np.ndarray, "token"]:
    """The tokens at which a rule holds, whatever their slots."""
    at, end, seat = map(torch.from_numpy, (tokens.absolute, tokens.prompt_len, tokens.seat))
    on = rule.positions.select(at[:, None], end, seat)[:, 0].numpy()
    if rule.register >= 0:
        # Terms that a latch gates never act before the last token of the prompt.
        opened = registers[:, rule.register].numpy(force=True) > 0
        on = on & opened[tokens.seat] & (tokens.absolute >= tokens.prompt_len - 1)
    return on
