"""What rows at given slots do at one site: worked out once, not at every pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
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
    shift: Float[Tensor, "*row_1 d_model"] | None
    """All that is added, where that is all there is to do at every token of every row."""

    @classmethod
    def of(cls, packed: PackedSite, slots: tuple[int, ...], groups: tuple[Terms, ...]) -> "Plan":
        """The plan of rows at these slots, of which those that have a program run `groups`."""
        live = tuple(i for i, slot in enumerate(slots) if packed.slots[slot])
        rules = {rule for terms in groups for rule in terms.rules.distinct}
        one = len(rules) == 1 and all(terms.rules.which is None for terms in groups)
        shared = next(iter(rules)) if one else None
        everywhere = shared is not None and shared.rule == "all" and not packed.gated
        all_rows = len(live) == len(slots)
        alone = everywhere and all_rows and not packed.latches and len(groups) == 1
        return cls(
            rows=len(slots),
            d_model=packed.d_model,
            dtype=packed.dtype,
            groups=groups,
            live=None if all_rows else row_numbers(live, packed.device),
            deciders=tuple(_deciders(packed, slots)) if packed.latches else (),
            gated=packed.gated,
            shared=shared,
            everywhere=everywhere,
            shift=groups[0].shift if alone else None,
        )


# Rows of different slots cost row x term x d_model each, so these are bounded like the terms.
@lru_cache(maxsize=256)
def plan_of(packed: PackedSite, slots: tuple[int, ...]) -> Plan:
    """The plan of these rows; cached, so that every pass may ask for it.

    Raises:
        InterventionError: a slot outside the table.
    """
    packed.check_slots(slots)
    live = tuple(slot for slot in slots if packed.slots[slot])
    return Plan.of(packed, slots, packed.terms(live) if live else ())


# One object for the same numbers: places know rows by it.
@lru_cache(maxsize=256)
def row_numbers(numbers: tuple[int, ...], device: torch.device) -> Int[Tensor, "row"]:
    """Numbers of rows as a tensor; the same one for the same numbers."""
    # A tensor made under inference_mode could never be saved for a later backward pass.
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)


def _deciders(
    packed: PackedSite, slots: tuple[int, ...]
) -> Iterator[tuple[Latch, Bool[Tensor, "row"]]]:
    rows: dict[str, tuple[Latch, list[int]]] = {}
    for i, slot in enumerate(slots):
        for latch in packed.latches[slot]:
            rows.setdefault(latch.name, (latch, []))[1].append(i)
    for latch, mine in rows.values():
        with torch.inference_mode(False):
            flags = torch.zeros(len(slots), dtype=torch.bool)
            flags[mine] = True
            flags = flags.to(packed.device)
        yield latch, flags
