"""What rows at given slots do at one site: worked out once, not at every pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerkit.batch import Positions
from steerkit.kernels.tables import PackedSite, Terms
from steerkit.program import Latch


@dataclass(frozen=True, eq=False)
class Plan:
    """What rows at certain slots do at one site, found out once for all passes."""

    rows: int
    d_model: int | None
    """Of the stream that the programs were made for; None where all are empty."""
    dtype: torch.dtype
    """What coefficients are computed in."""
    groups: tuple[Terms, ...]
    """What the live rows run, in order; none where no row runs anything."""
    live: Int[Tensor, "live"] | None
    """Rows whose program does something here; None where all do."""
    deciders: tuple[tuple[Latch, Bool[Tensor, "row"]], ...]
    """The latches that some row decides here, and which rows do."""
    gated: bool
    shared: Positions | None
    """The position rule that all terms follow, if it is one."""
    everywhere: bool
    """Whether every term acts at every token that is not padding."""


# Rows of different slots cost row x term x d_model each, so these are bounded like the terms.
@lru_cache(maxsize=256)
def plan_of(packed: PackedSite, slots: tuple[int, ...]) -> Plan:
    """The plan of these rows; cached, so that every pass may ask for it.

    Raises:
        InterventionError: a slot outside the table.
    """
    packed.check_slots(slots)
    live = [i for i, slot in enumerate(slots) if packed.slots[slot]]
    groups = packed.terms(tuple(slots[i] for i in live)) if live else ()
    rules = {rule for terms in groups for rule in terms.rules.distinct}
    one = len(rules) == 1 and all(terms.rules.which is None for terms in groups)
    shared = next(iter(rules)) if one else None
    gated = packed.gated
    # A tensor made under inference_mode could never be saved for a later backward pass.
    with torch.inference_mode(False):
        return Plan(
            rows=len(slots),
            d_model=packed.d_model,
            dtype=packed.dtype,
            groups=groups,
            live=None if len(live) == len(slots) else _rows(tuple(live), packed.device),
            deciders=tuple(_deciders(packed, slots)) if packed.latches else (),
            gated=gated,
            shared=shared,
            everywhere=shared is not None and shared.rule == "all" and not gated,
        )


# One object for all sites with the same live rows: places know them by it.
@lru_cache(maxsize=256)
def _rows(numbers: tuple[int, ...], device: torch.device) -> Int[Tensor, "row"]:
    return torch.tensor(numbers, device=device)


def _deciders(
    packed: PackedSite, slots: tuple[int, ...]
) -> Iterator[tuple[Latch, Bool[Tensor, "row"]]]:
    named = {latch.name: latch for slot in sorted(set(slots)) for latch in packed.latches[slot]}
    for name, latch in named.items():
        mine = [name in {latch.name for latch in packed.latches[slot]} for slot in slots]
        yield latch, torch.tensor(mine, device=packed.device)
