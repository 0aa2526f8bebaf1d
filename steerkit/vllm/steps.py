"""One forward pass of a batch: which tokens are steered, and what happens to them where."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from steerkit.compiled.latches import SITE, Decided, LatchTable, decide
from steerkit.kernels.device import DeviceTable
from steerkit.kernels.static import Rows, prepare, rows_program
from steerkit.site import Site
from steerkit.vllm.layers import boundary
from steerkit.vllm.sums import MORE, Chosen, Sums, Tokens

RUN = 16
"""Tokens of one program that, on average, are worth a turn of their own."""


@dataclass
class Seats:
    """The state of steered requests (`steerkit.batch.RequestState`), a seat each."""

    slot: Int[Tensor, "seat"]
    prompt_len: Int[Tensor, "seat"]
    registers: Int8[Tensor, "seat register"]
    sums: Float[Tensor, "seat register d_model"]


@dataclass(frozen=True)
class Span:
    """A request whose latches this pass may decide: its seat and its tokens."""

    seat: int
    first: int
    """Of its tokens among the steered ones of the pass."""
    end: int


class PackedStep:
    """The steered tokens of one pass over a packed stream `[token d_model]`.

    Only they are looked at: a pass in which few requests are steered costs as little.

    Args:
        table: of the programs.
        latches: beside it.
        seats: the requests.
        token: place of each steered token in the stream.
        seat: its request.
        absolute: its position in its own request.
        deciding: requests whose prompts run in this pass, and that have latches.
    """

    def __init__(
        self,
        table: DeviceTable,
        latches: LatchTable,
        seats: Seats,
        token: Int[Tensor, "steered"],
        seat: Int[Tensor, "steered"],
        absolute: Int[Tensor, "steered"],
        deciding: Sequence[Span] = (),
    ) -> None:
        self._table, self._latches, self._seats = table, latches, seats
        self._token, self._seat, self._absolute = token, seat, absolute
        self._deciding = deciding
        self._sites: dict[int, list[int]] = {}
        for number, site in enumerate(table.sites):
            self._sites.setdefault(boundary(site), []).append(number)
        # On the host: which programs stand in this pass, and where they only add.
        owner = seat.numpy(force=True)
        slot = seats.slot.numpy(force=True)[owner]
        self._tokens = Tokens(
            place=token.numpy(force=True),
            seat=owner,
            absolute=absolute.numpy(force=True),
            slot=slot,
            prompt_len=seats.prompt_len.numpy(force=True)[owner],
        )
        slots = np.unique(slot)
        self._sums = Sums.of(table)
        self._sums.follow(table, slots.tolist())
        rules = self._sums.rules[:, slots]
        self._more: list[bool] = (rules == MORE).any(1).tolist()
        self._rules = [row.tobytes() for row in rules]
        self._waiting = {
            table.number(site)
            for held in (slots.tolist() if deciding else ())
            for site, program in table.programs(held).items()
            if program.latches
        }
        self._runs = _runs(slot, self._tokens.place)
        self._chosen: dict[bytes, Chosen | None] = {}
        self._prepared: tuple[Rows, list[bool]] | None = None

    def stream(self, hidden: Tensor, residual: Tensor | None) -> Float[Tensor, "steered d_model"]:
        """The stream at the steered tokens."""
        part = hidden[self._token]
        return part if residual is None else part + residual[self._token]

    def _prepare(self) -> tuple[Rows, list[bool]]:
        """What acts where, as far as registers say by now, and where anything does."""
        if self._prepared is None:
            seats = self._seats
            rows = prepare(
                self._table.tensors,
                self._seat,
                self._absolute,
                seats.slot,
                seats.prompt_len,
                seats.registers,
            )
            self._prepared = rows, (rows.active != 0).any(1).tolist()
        return self._prepared

    def at(self, hidden: Tensor, residual: Tensor | None, place: int) -> None:
        """Run the programs of a boundary's sites: reads see the sum, writes go to `hidden`."""
        for number in self._sites.get(place, ()):
            self._visit(hidden, residual, number)

    def at_site(self, hidden: Tensor, residual: Tensor | None, site: Site) -> None:
        """Run the programs of one site."""
        if site in self._table.sites:
            self._visit(hidden, residual, self._table.number(site))

    def _visit(self, hidden: Tensor, residual: Tensor | None, number: int) -> None:
        """What happens at one site."""
        if number in self._waiting:
            self._decide(hidden, residual, number)
        self._run(hidden, residual, number)

    def _run(self, hidden: Tensor, residual: Tensor | None, number: int) -> None:
        if self._more[number]:
            self._run_programs(hidden, residual, number)
            return
        key = self._rules[number]
        if key not in self._chosen:
            self._chosen[key] = self._sums.choose(number, self._tokens, self._seats.registers)
        chosen = self._chosen[key]
        if chosen is not None:
            chosen.add(hidden, self._sums.vectors[number])

    def _run_programs(self, hidden: Tensor, residual: Tensor | None, number: int) -> None:
        rows, live = self._prepare()
        if not live[number]:
            return
        active = rows.active[number]
        for first, end in self._runs:
            place = int(self._tokens.place[first])
            together = slice(place, place + end - first)
            mine = rows.slot[first], active[first:end], number
            self._run_tokens(hidden, residual, together, *mine)
        if not self._runs:
            acting = active.nonzero()[:, 0]
            mine = rows.slot[acting], active[acting], number
            self._run_tokens(hidden, residual, self._token[acting], *mine)

    def _run_tokens(
        self,
        hidden: Tensor,
        residual: Tensor | None,
        token: Int[Tensor, "some"] | slice,
        slot: Int[Tensor, "*some"],
        active: Int[Tensor, "some"],
        number: int,
    ) -> None:
        """Run a site's programs on some tokens of the stream."""
        tensors = self._table.tensors
        x = hidden[token].to(tensors.numbers.dtype)
        rest = None if residual is None else residual[token].to(x.dtype)
        h = x if rest is None else x + rest
        steered = rows_program(h, slot, active, tensors, number)
        if rest is not None:
            # A closed gate leaves the stream its bits, and so each of its halves.
            moved = (steered != h).any(-1, keepdim=True)
            steered = torch.where(moved, steered - rest, x)
        hidden[token] = steered.to(hidden.dtype)

    def _decide(self, hidden: Tensor, residual: Tensor | None, number: int) -> None:
        """Decide the latches that wait at this site, of requests whose prompts run now."""
        seats, changed = self._seats, False
        for span in self._deciding:
            one = slice(span.seat, span.seat + 1)
            if not bool((self._latches.codes[seats.slot[one], :, SITE] == number).any()):
                continue
            mine = slice(span.first, span.end)
            token = self._token[mine]
            h = hidden[token] if residual is None else hidden[token] + residual[token]
            decided = decide(
                Decided(seats.registers[one], seats.sums[one]),
                self._latches,
                number,
                h[None],
                seats.slot[one],
                self._absolute[None, mine],
                seats.prompt_len[one],
            )
            changed = changed or not torch.equal(decided.registers, seats.registers[one])
            seats.registers[one], seats.sums[one] = decided.registers, decided.sums
        if changed:
            self._prepared = None
            self._chosen.clear()


def _runs(slot: Int[np.ndarray, "token"], place: Int[np.ndarray, "token"]) -> list[tuple[int, int]]:
    """Neighbouring tokens of one slot, where runs of them are long; none where they are short."""
    breaks = np.flatnonzero((np.diff(slot) != 0) | (np.diff(place) != 1)) + 1
    ends = [0, *breaks.tolist(), len(slot)]
    if len(slot) < RUN * (len(ends) - 1) and len(ends) > 2:
        return []
    return list(pairwise(ends))


class Watched(PackedStep):
    """The same, and keeps what came in and went out at every site, by position.

    For one steered request at a time, in the process of its engine (`watching`).
    """

    seen: dict[Site, dict[int, tuple[Tensor, Tensor]]]

    def _visit(self, hidden: Tensor, residual: Tensor | None, number: int) -> None:
        before = self.stream(hidden, residual)
        super()._visit(hidden, residual, number)
        after = self.stream(hidden, residual)
        kept = self.seen.setdefault(self._table.sites[number], {})
        for i, position in enumerate(self._absolute.tolist()):
            kept[position] = before[i].clone(), after[i].clone()
