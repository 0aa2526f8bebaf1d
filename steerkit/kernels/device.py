"""Programs in static tensors: made once, edited in place, read by graphs that are never remade."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from steerkit.errors import InterventionError
from steerkit.kernels.layout import Capacity, Record, blank, record, registers_of
from steerkit.program import Program
from steerkit.site import Site


@dataclass(frozen=True, eq=False)
class TableTensors:
    """All that executors read. Every record of a term lies at `[slot, site, group, term]`.

    `read` and `gate` have width 0 where the capacity has no room for them. The columns of
    `numbers` and `codes` are named in `layout`.
    """

    read: Float[Tensor, "slot site group term d_model_or_0"]
    write: Float[Tensor, "slot site group term d_model"]
    gate: Float[Tensor, "slot site group term d_model_or_0"]
    numbers: Float[Tensor, "slot site group term number"]
    codes: Int[Tensor, "slot site group term code"]
    strength: Float[Tensor, "slot"]
    """Multiplies what a slot's programs change; 0 leaves the slot's tokens their bits."""
    capacity: Capacity

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.read, self.write, self.gate, self.numbers, self.codes, self.strength))


class DeviceTable:
    """The programs of a few slots at a few sites, at addresses that never change.

    An engine makes one table, at its full size, before it compiles or captures anything. Then,
    once for each step, inside the graph,

        rows = static.prepare(table.tensors, request, absolute, slot, prompt_len, registers)

    and at each site

        h = static.rows_program(h, rows.slot, rows.active[n], table.tensors, n)

    with `n = table.number(site)`. Slots of requests, their registers, strengths, vectors and
    whole programs are then edited in place between steps: nothing is traced or captured anew.
    On CUDA without a compiler, `dispatch` offers the same two as Triton kernels.

    Args:
        sites: where programs can stand, in forward order.
        d_model: width of the stream.
        capacity: what there is room for.
        device: where the stream is.
        dtype: of the stream. The table, and what is computed with it, is float64 for
            float64 and else float32.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        d_model: int,
        capacity: Capacity | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.sites = tuple(sites)
        self._numbers = {site: n for n, site in enumerate(self.sites)}
        self.d_model = d_model
        self.capacity = capacity = capacity or Capacity()
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise InterventionError(
                f"a table is made for at least one site, each named once; got {self.sites}"
            )
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        room = (capacity.slots + 1, len(self.sites), capacity.groups)
        self._blank = blank(capacity, d_model, compute)
        self._rooms: dict[tuple[int, int, int], tuple[Tensor, ...]] = {}
        self._staged: WeakKeyDictionary[Program, tuple[dict[str, int], Record]]
        self._staged = WeakKeyDictionary()
        # A tensor made under inference_mode could not be edited outside of it.
        with torch.inference_mode(False), torch.no_grad():
            read, write, gate, numbers, codes = (
                torch.from_numpy(part).to(device) for part in self._empty(*room)
            )
            self.tensors = TableTensors(
                read=read,
                write=write,
                gate=gate,
                numbers=numbers,
                codes=codes,
                strength=torch.ones(capacity.slots + 1, dtype=compute, device=device),
                capacity=capacity,
            )
        self.edits = [0] * (capacity.slots + 1)
        """How often each slot was written; whoever keeps something beside it looks here."""
        self._programs: list[dict[Site, Program]] = [{} for _ in range(capacity.slots + 1)]
        self._registers: list[dict[str, int]] = [{} for _ in range(capacity.slots + 1)]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes."""
        return sum(part.nbytes for part in self.tensors)

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the tensors lie: what a captured graph has written down."""
        return tuple(part.data_ptr() for part in self.tensors)

    def number(self, site: Site) -> int:
        """Which site this is in the table's order."""
        number = self._numbers.get(site)
        if number is None:
            raise InterventionError(
                f"this table was made for {', '.join(map(str, self.sites))}; {site} is not among "
                "them: name every site when the table is made"
            )
        return number

    def check_slots(self, slots: Sequence[int]) -> None:
        """Refuse requests that point outside the table. For the host, where slots are given."""
        for row, slot in enumerate(slots):
            self._check(slot, f"request {row} asks for", lowest=0)

    def write_slot(self, slot: int, programs: Mapping[Site, Program]) -> None:
        """Put one program a site into a slot, at strength 1; other sites become empty there.

        All or nothing: what does not fit leaves the slot as it was. Sites whose program stays
        the same object are not copied again.

        Raises:
            InterventionError: no such slot or site, another width, more terms, groups, indices
                or latches than there is room for, or a position mask.
        """
        self._check(slot, "programs cannot be written to", lowest=1)
        live = {site: program for site, program in programs.items() if program}
        before = self._programs[slot]
        changed = {s for s in (*live, *before) if live.get(s) is not before.get(s)}
        registers = registers_of(live.values(), self.capacity)
        if registers != self._registers[slot]:
            changed |= live.keys()
        if changed:
            numbers = [self.number(site) for site in changed]
            first, end = min(numbers), max(numbers) + 1
            sites = [live.get(site) for site in self.sites[first:end]]
            staged = [self._stage(site, registers) for site in sites]
            with torch.no_grad():
                for part, *new in zip(self._room(slot, first, end), *staged, strict=True):
                    if new[0].size:
                        whole = np.stack(new) if len(new) > 1 else new[0][None]
                        part.copy_(torch.from_numpy(whole))
        self._programs[slot], self._registers[slot] = live, registers
        self.set_strength(slot, 1.0)

    def clear_slot(self, slot: int) -> None:
        """Empty a slot: its tokens keep their bits."""
        self.write_slot(slot, {})

    def set_strength(self, slot: int, strength: float) -> None:
        """Multiply what a slot's programs change; no trace and no copy of a vector.

        For programs of one group this goes from h (0) to their result (1) in a straight line.
        Groups that run in order are each scaled so.
        """
        self._check(slot, "a strength cannot be set at", lowest=1)
        if not math.isfinite(strength):
            raise InterventionError(f"a strength is a finite number; got {strength} at slot {slot}")
        with torch.no_grad():
            self.tensors.strength[slot].fill_(strength)
        self.edits[slot] += 1

    def programs(self, slot: int) -> Mapping[Site, Program]:
        """The programs of a slot, by site; empty ones are left out."""
        self._check(slot, "there are no programs at", lowest=0)
        return self._programs[slot]

    def latches(self, slot: int) -> tuple[str, ...]:
        """Names of the latches that a slot's gates ask, in the order of its registers."""
        self._check(slot, "there are no latches at", lowest=0)
        return tuple(self._registers[slot])

    def registers(
        self, latches: Mapping[str, Int8[Tensor, "request"]], slots: Sequence[int]
    ) -> Int8[Tensor, "request register"]:
        """Registers of requests by number, as executors take them, from registers by name.

        Latches are decided where the prompts run (on the eager path, in `RequestState.latches`);
        a register is 0 until then, afterwards 1 (open) or -1 (closed). Rows stand in the order
        of `slots`; copy them into the buffer that a graph reads.
        """
        self.check_slots(slots)
        device = self.tensors.strength.device
        out = torch.zeros(len(slots), self.capacity.latches, dtype=torch.int8, device=device)
        for slot in set(slots):
            rows = torch.tensor([i for i, s in enumerate(slots) if s == slot], device=device)
            for name, number in self._registers[slot].items():
                if name in latches:
                    out[rows, number] = latches[name].to(device, torch.int8)[rows]
        return out

    def _check(self, slot: int, what: str, *, lowest: int) -> None:
        if not lowest <= slot <= self.capacity.slots:
            raise InterventionError(
                f"{what} slot {slot}: this table has slots {lowest}..{self.capacity.slots}"
                f"{' (0 = unsteered)' if lowest == 0 else ', and slot 0 stays empty'}; "
                "make it with Capacity(slots=...) at least that"
            )

    def _room(self, slot: int, first: int, end: int) -> tuple[Tensor, ...]:
        """Where a slot's records of neighbouring sites lie; kept, as slicing takes its time."""
        at = slot, first, end
        if at not in self._rooms:
            if len(self._rooms) >= 1024:
                self._rooms.clear()
            *parts, _ = self.tensors
            self._rooms[at] = tuple(part[slot, first:end] for part in parts)
        return self._rooms[at]

    def _empty(self, *room: int) -> Record:
        """Records of terms that there are not, `[*room term ...]`."""
        out = Record(*(np.empty((*room, *part.shape), part.dtype) for part in self._blank))
        for new, part in zip(out, self._blank, strict=True):
            new[...] = part
        return out

    def _stage(self, program: Program | None, registers: dict[str, int]) -> Record:
        """The records `[group term ...]` of one site, on the host; kept while the program lives."""
        if program is None:
            return self._empty(self.capacity.groups)
        known = self._staged.get(program)
        if known is not None and known[0] == registers:
            return known[1]
        out = self._empty(self.capacity.groups)
        groups = [group for group in program.groups if len(group)]
        if len(groups) > self.capacity.groups:
            raise InterventionError(
                f"a sequence of {len(groups)} groups does not fit into a table of "
                f"{self.capacity.groups} a site; make it with Capacity(groups=...) at least "
                "that, or apply the interventions together in one call"
            )
        for g, group in enumerate(groups):
            if group.d_model != self.d_model:
                raise InterventionError(
                    f"a program of width {group.d_model} cannot stand in a table of width "
                    f"{self.d_model}; was the direction taken on this model?"
                )
            record(group, self.capacity, registers, Record(*(part[g] for part in out)))
        self._staged[program] = registers, out
        return out
