"""The table of programs that an engine runs: made small, and made anew when more is asked for.

Where no graph has written the table's addresses down, its size need not be guessed: a table of
additions at one site has no reads, no gates and one site. It grows with what requests bring,
and has at most one slot a request of a batch, so that it can never be full.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from steerkit.compiled.latches import LatchTable
from steerkit.errors import InterventionError
from steerkit.kernels.device import DeviceTable
from steerkit.kernels.layout import Capacity
from steerkit.program import Program
from steerkit.site import Site

LIMIT = Capacity(slots=1, terms=16, groups=3, indices=16, latches=8)
"""The most that one request may bring to a site (latches: to all of them)."""
FIRST = 4
"""Slots of the first table."""


def check(programs: Mapping[Site, Program]) -> Capacity:
    """What the programs of one request need.

    Raises:
        InterventionError: more than the limit.
    """
    for site, program in programs.items():
        if any(rule.rule == "mask" for group in program.groups for rule in group.positions):
            raise InterventionError(
                f"this steering has a mask of positions at {site}, a row for each of its prompts; "
                "a request in vLLM knows only itself: use a rule or indices"
            )
    need = Capacity.fitting(list(programs.values()), slots=1)
    for name in ("terms", "groups", "indices", "latches"):
        if getattr(need, name) > getattr(LIMIT, name):
            what = {"terms": "terms of one group at a site", "groups": "groups at a site"}
            raise InterventionError(
                f"this steering needs {getattr(need, name)} {what.get(name, name)}, and a request "
                f"in vLLM has room for {getattr(LIMIT, name)}; use fewer interventions, or the "
                "Hugging Face engine"
            )
    return need


class Room:
    """Slots of a table by what they hold; the least recently used ones are given up first.

    Args:
        d_model: width of the stream.
        slots: the most programs at a time.
        device: where the stream is.
        dtype: of the stream.
    """

    def __init__(
        self, d_model: int, slots: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._d_model, self._most, self._device, self._dtype = d_model, slots, device, dtype
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._programs: dict[str, Mapping[Site, Program]] = {}
        self.table: DeviceTable | None = None
        self.latches: LatchTable | None = None

    def slot(self, key: str, programs: Mapping[Site, Program], used: Collection[str]) -> int:
        """The slot of a program, which is put there if it is new.

        Args:
            key: names the program.
            programs: by site; not empty.
            used: keys that must stay.

        Raises:
            InterventionError: every slot is in use.
        """
        if key not in self._slots:
            taken = set(self._slots.values())
            if len(taken) == self._most:
                idle = next((k for k in self._slots if k not in used), None)
                if idle is None:
                    raise InterventionError(f"all {self._most} slots of the table are in use")
                taken.discard(self._slots.pop(idle))
                del self._programs[idle]
            slot = next(n for n in range(1, self._most + 1) if n not in taken)
            self._fit(slot, programs)
            self._slots[key], self._programs[key] = slot, programs
            self._write(slot, programs)
        self._slots.move_to_end(key)
        return self._slots[key]

    def _write(self, slot: int, programs: Mapping[Site, Program]) -> None:
        assert self.table is not None and self.latches is not None
        self.table.write_slot(slot, programs)
        self.latches.write_slot(slot, programs)

    def _fit(self, slot: int, programs: Mapping[Site, Program]) -> None:
        """Make a table with room for these programs at a slot, if this one has none."""
        need = replace(check(programs), slots=slot)
        sites = set(programs)
        if self.table is not None:
            have = self.table.capacity
            need = Capacity(
                slots=max(need.slots, have.slots),
                terms=max(need.terms, have.terms),
                groups=max(need.groups, have.groups),
                indices=max(need.indices, have.indices),
                latches=max(need.latches, have.latches),
                gates=need.gates or have.gates,
                opcodes=need.opcodes | have.opcodes,
            )
            sites |= set(self.table.sites)
            if need == have and len(sites) == len(self.table.sites):
                return
            if need.slots > have.slots:
                need = replace(need, slots=max(need.slots, 2 * have.slots))
        need = replace(need, slots=min(max(need.slots, FIRST), self._most))
        self.table = DeviceTable(
            sorted(sites), self._d_model, need, device=self._device, dtype=self._dtype
        )
        self.latches = LatchTable(self.table)
        for key, held in self._slots.items():
            self._write(held, self._programs[key])
