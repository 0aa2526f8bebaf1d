"""Which view holds which slots of a compiled model's table."""

import weakref
from collections.abc import Mapping, Sequence

from steerkit.compiled.latches import LatchTable
from steerkit.errors import InterventionError
from steerkit.kernels.device import DeviceTable
from steerkit.program import Program, ProgramTable
from steerkit.site import Site

ADVICE = "give model.compile a larger Capacity, or use the eager model"


class Slots:
    """Slot assignments. A view's slots come back when the view is gone.

    Args:
        table: of the compiled model.
        latches: beside it.
        room: slots that views may hold: 1 to `room`.
    """

    def __init__(self, table: DeviceTable, latches: LatchTable, room: int) -> None:
        self._table, self._latches = table, latches
        self._free = list(range(room, 0, -1))
        # Emptied when slots are handed over, so that what is gone gives back what it still has.
        self._held: weakref.WeakKeyDictionary[ProgramTable, list[int]]
        self._held = weakref.WeakKeyDictionary()
        self._live: set[int] = set()
        self.room = room

    def hold(self, view: ProgramTable) -> None:
        """Assign slots to a view and write its programs there.

        Raises:
            InterventionError: more slots than are free, or programs that do not fit.
        """
        wanted = len(view.slots)
        if wanted > len(self._free):
            raise InterventionError(
                f"this view takes {wanted} slots of a compiled model that has {self.room}, "
                f"{len(self._free)} of them free; let go of other views (del), or {ADVICE}"
            )
        given = [self._free.pop() for _ in range(wanted)]
        try:
            for slot, programs in zip(given, view.slots, strict=True):
                self.write(slot, programs)
        except InterventionError:
            self._free.extend(given)
            raise
        self._keep(view, given)

    def hand_over(self, view: ProgramTable, later: ProgramTable) -> list[int]:
        """Give a view's slots to its successor, and write what is different there.

        Returns:
            The slots that ask other latches than before.
        """
        given = list(self.of(view)[1:])
        changed = [
            slot
            for before, after, slot in zip(view.slots, later.slots, given, strict=True)
            if after is not before and self.write(slot, after)
        ]
        self._held.pop(view).clear()
        self._keep(later, given)
        return changed

    def of(self, view: ProgramTable | None) -> tuple[int, ...]:
        """Slots of the table by slots of the view; 0 is 0.

        Raises:
            InterventionError: a view that has none any more.
        """
        if view is None:
            return (0,)
        if view not in self._held:
            raise InterventionError(
                "this view no longer holds its slots: they were handed over by `edited`; use "
                "the view that it returned"
            )
        return (0, *self._held[view])

    def write(self, slot: int, programs: Mapping[Site, Program]) -> bool:
        """Put programs into a slot; whether it now asks other latches than before."""
        before = self._table.latches(slot)
        try:
            self._table.write_slot(slot, programs)
        except InterventionError as error:
            raise InterventionError(f"{error} (on a compiled model: {ADVICE})") from error
        self._latches.write_slot(slot, programs)
        (self._live.add if any(programs.values()) else self._live.discard)(slot)
        return self._table.latches(slot) != before

    def steered(self, slots: Sequence[int]) -> bool:
        """Whether any of these slots has a program."""
        return not self._live.isdisjoint(slots)

    def _keep(self, view: ProgramTable, given: list[int]) -> None:
        self._held[view] = given
        weakref.finalize(view, _give_back, self._free, given).atexit = False


def _give_back(free: list[int], given: list[int]) -> None:
    free.extend(given)
    given.clear()
