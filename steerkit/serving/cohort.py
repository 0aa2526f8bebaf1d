"""The requests of a call at one site: whichever of them share a pass are picked, not rebuilt.

Under continuous batching the rows of a pass change whenever a request begins or ends. What a
set of rows does is expensive to put together from its programs, and cheap to pick out of what
all requests of the call do.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerkit.batch import Positions
from steerkit.kernels.place import Place, Selection
from steerkit.kernels.plan import Plan, plan_of, row_numbers
from steerkit.kernels.tables import PackedSite, Rules, Terms
from steerkit.program import Opcode

RECENT = 4
"""Sets of rows that a site remembers: those that decode, and those that came with them."""

LINEAR = frozenset({Opcode.CONSTANT, Opcode.AFFINE})
"""Opcodes without edges and parameters of their own: by far the commonest."""


class Cohort:
    """What the rows of a pass do at one site, picked from what all requests of a call do."""

    def __init__(self, packed: PackedSite, slots: Sequence[int]) -> None:
        self._packed = packed
        live = sorted({slot for slot in slots if packed.slots[slot]})
        self._row = {slot: i for i, slot in enumerate(live)}
        self._groups = packed.terms(tuple(live)) if len(live) > 1 else ()
        self._which = tuple(
            ((0,) * terms.read.shape[-2],) * len(live)
            if terms.rules.which is None
            else tuple(map(tuple, terms.rules.which.tolist()))
            for terms in self._groups
        )
        self._recent: OrderedDict[tuple[int, ...], Plan] = OrderedDict()

    def plan(self, slots: tuple[int, ...]) -> Plan:
        """The plan of rows at these slots."""
        found = self._recent.get(slots)
        if found is None:
            rows = tuple(self._row[slot] for slot in slots if slot in self._row)
            one = len(set(rows)) < 2
            found = plan_of(self._packed, slots) if one else self._picked(slots, rows)
            self._recent[slots] = found
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(slots)
        return found

    def _picked(self, slots: tuple[int, ...], rows: tuple[int, ...]) -> Plan:
        device = self._packed.device
        index = row_numbers(rows, device)
        groups = []
        for terms, which in zip(self._groups, self._which, strict=True):
            followed = tuple(which[row] for row in rows)
            # Groups that only other requests have are left out.
            if max(map(max, followed)) >= 0:
                kept = _rules(terms.rules.distinct, followed, device)
                if terms.gates is None and terms.kinds <= LINEAR:
                    # All that these terms are run by.
                    named = ("read", "bias", "write", "where")
                    parts = {name: _pick(getattr(terms, name), index) for name in named}
                    picked = replace(terms, rules=kept, **parts)
                else:
                    picked = replace(_pick(terms, index), rules=kept)
                still = kept.which is None and picked.gates is None
                if still and picked.kinds == {Opcode.CONSTANT}:
                    # Other requests follow other rules; these can be added without a look.
                    picked = replace(picked, shift=picked.bias @ picked.write)
                groups.append(picked)
        return Plan.of(self._packed, slots, tuple(groups))


class PassPlace(Place):
    """Where the rows of one pass stand; sites whose rows follow the same rules share answers."""

    def __init__(
        self,
        absolute: Callable[[], Int[Tensor, "row pos"]],
        prompt_len: Int[Tensor, "row"],
        row: Int[Tensor, "row"],
        *,
        whole: bool = False,
    ) -> None:
        super().__init__(absolute, prompt_len, row, whole=whole)
        self._by_rules: dict[Rules, Tensor] = {}
        self._by_groups: dict[tuple[Rules, ...], Selection] = {}

    def active(self, rules: Rules) -> Bool[Tensor, "row pos term_or_1"]:
        """Where the terms of a group act."""
        if rules not in self._by_rules:
            self._by_rules[rules] = super().active(rules)
        return self._by_rules[rules]

    def selection(
        self, groups: Sequence[Terms], shared: Positions | None, *, look: bool
    ) -> Selection:
        """Where these groups act, as far as it is a matter of positions."""
        key = tuple(terms.rules for terms in groups)
        if key not in self._by_groups:
            self._by_groups[key] = super().selection(groups, shared, look=look)
        return self._by_groups[key]


def _pick(value: Any, rows: Int[Tensor, "row"]) -> Any:
    """The given rows of every tensor in a structure whose tensors all have a row axis."""
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, Mapping):
        return {key: _pick(part, rows) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, Rules):
        return replace(
            value,  # type: ignore[type-var]
            **{part.name: _pick(getattr(value, part.name), rows) for part in fields(value)},
        )
    return value


# Sites often follow the same rules: one object for all of them, by which answers are shared.
@lru_cache(maxsize=256)
def _rules(
    distinct: tuple[Positions, ...], which: tuple[tuple[int, ...], ...], device: torch.device
) -> Rules:
    """The rules that these rows follow, and who follows which; -1 is never."""
    followed = sorted({rule for row in which for rule in row if rule >= 0})
    number = {rule: i for i, rule in enumerate(followed)}
    kept = [[number.get(rule, -1) for rule in row] for row in which]
    rows = []
    for rule in followed:
        # A mask is asked about its own requests only; other rules are as quick for all rows.
        mine = tuple(i for i, row in enumerate(which) if rule in row)
        everyone = distinct[rule].rule != "mask" or len(mine) == len(which)
        rows.append(None if everyone else row_numbers(mine, device))
    alike = all(rule == 0 for row in kept for rule in row)
    return Rules(
        tuple(distinct[rule] for rule in followed),
        None if alike else torch.tensor(kept, device=device),
        tuple(rows),
    )
