"""Variants of a batch: the same rows, each time with something else changed on the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from steerkit.batch import Batch
from steerkit.kernels.place import Place
from steerkit.kernels.reference import steer
from steerkit.models.steering import acting, planned
from steerkit.program import ProgramTable
from steerkit.site import Site

Change = Callable[[Site, Tensor, tuple[int, ...], Batch], Tensor]
"""`change(site, stream, variants, batch)`: the stream of these variants' rows, changed.

`stream` is `[variant * row, pos, d_model]`, variant after variant; `batch` holds those rows.
The same object back: nothing changed.
"""


@dataclass(frozen=True)
class Variants:
    """What each variant of a batch changes, and where.

    Attributes:
        acts: at each site, the variants that change something there.
        change: how.
        n: how many variants there are; one that acts nowhere is the plain batch.
    """

    acts: Mapping[Site, frozenset[int]]
    change: Change
    n: int


def of_slots(table: ProgramTable | None, slots: Sequence[int]) -> Variants | None:
    """Slots as variants, each live from the first site where its program acts.

    None where some slot decides a condition on its prompt, which is remembered by row.
    """
    active = acting(table, frozenset(slots))[0] if table is not None else ()
    if any(at[slot].latches for _, at in active for slot in slots):
        return None
    programs = dict(active)

    def change(site: Site, stream: Tensor, who: tuple[int, ...], batch: Batch) -> Tensor:
        rows = tuple(slots[v] for v in who for _ in range(len(batch) // len(who)))
        plan = planned(programs[site], stream.device, stream.dtype, rows)
        here = Place(lambda: batch.absolute, batch.prompt_len, batch.rows, whole=not batch.padded)
        if stream.device != batch.mask.device:
            here = here.to(stream.device)
        return steer(plan, stream, here, {})

    acts = {site: frozenset(i for i, slot in enumerate(slots) if at[slot]) for site, at in active}
    return Variants(acts, change, len(slots))
