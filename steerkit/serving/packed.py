"""A packed stream: the next tokens of many requests end to end, each under its own program.

A pass of a continuously batched network has one row, `[1, T, d_model]`, that holds a stretch
of each request. Executors want rows that are requests. So stretches of similar length become
the rows of small batches, padded to the longest on the right: decoding requests are rows of
one token, and their batch is the stream itself in another shape. Sites where programs only add
need no rows (`additions.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.errors import HookError
from steerkit.kernels.gates import decide
from steerkit.kernels.reference import pack, steer
from steerkit.models.hooks import Visit
from steerkit.models.steering import Session
from steerkit.program import Program, ProgramTable
from steerkit.serving.additions import Additions, Chosen, Rows, Stretch, additions
from steerkit.serving.cohort import Cohort, PassPlace
from steerkit.site import Site


@dataclass(frozen=True, eq=False)
class Part:
    """Stretches of similar length as the rows of a batch."""

    requests: Int[Tensor, "row"]
    """Number of each row's request."""
    slots: tuple[int, ...]
    place: PassPlace
    """Where their tokens stand in their requests."""
    places: Int[Tensor, "row pos"] | None
    """Where in the packed stream each token stands (anywhere, for padding); None where the
    rows are the whole stream, in order."""
    registers: dict[str, Tensor]
    """What was decided about these requests."""
    loaded: dict[str, Tensor]
    """The registers as they were before the pass."""

    def rows(self, stream: Float[Tensor, "one token d_model"]) -> Float[Tensor, "row pos d_model"]:
        """The rows of this part, out of the packed stream."""
        if self.places is None:
            return stream.view(*self.place.absolute.shape, -1)
        return stream[0][self.places]

    def put(
        self,
        stream: Float[Tensor, "one token d_model"],
        rows: Float[Tensor, "row pos d_model"],
    ) -> None:
        """Write the real tokens of the rows back into the stream, in place."""
        assert self.places is not None
        real = self.place.absolute >= 0
        stream[0, self.places[real]] = rows[real]


@dataclass
class PackedSession(Session):
    """A session whose stream is packed: latches belong to requests, for as long as it lasts.

    `prompt_len` and `slots` have an entry a request, in the order of the caller's prompts;
    both are frozen, whatever a scheduler later calls the prompt.
    """

    prompt_len: tuple[int, ...] = ()
    _stretches: tuple[Stretch, ...] = ()
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _tokens: int = 0
    _made: tuple[Part, ...] | None = None
    _chosen: dict[Rows, Chosen] = field(default_factory=dict)
    """What was chosen in this pass; what was chosen last is taken again where it is the same."""
    _before: dict[Rows, Chosen] = field(default_factory=dict)
    _opened: dict[str, dict[int, bool]] = field(default_factory=dict)
    _idle: frozenset[int] = field(default_factory=frozenset)

    def steer(self, table: ProgramTable | None, slots: Sequence[int]) -> None:
        """Plan the programs of each request's slot; a site where none acts gets no hook."""
        super().steer(table, slots)
        if table is not None:
            programs = [table.at(site) for site in table.sites]
            self._idle = frozenset(s for s in range(len(table)) if not any(p[s] for p in programs))

    def begin_packed(self, stretches: Sequence[Stretch], device: torch.device) -> None:
        """Begin a pass over these stretches, which stand in the stream in this order."""
        self._stretches, self._device = tuple(stretches), device
        self._tokens = sum(stretch.length for stretch in stretches)
        self._made = None
        self._before, self._chosen = {**self._before, **self._chosen}, {}
        self._opened = {}

    @property
    def _parts(self) -> tuple[Part, ...]:
        """The stretches of this pass as rows, put together when first asked for."""
        if self._made is None:
            self._made = self._grouped()
        return self._made

    def _grouped(self) -> tuple[Part, ...]:
        stretches, device = self._stretches, self._device
        if len({stretch.length for stretch in stretches}) == 1:
            return (self._part(stretches, None, device),)
        # Powers of two: at most half of what is gathered is padding.
        similar: dict[int, list[tuple[Stretch, int]]] = {}
        first = 0
        for stretch in stretches:
            if self.slots[stretch.request] not in self._idle:
                similar.setdefault((stretch.length - 1).bit_length(), []).append((stretch, first))
            first += stretch.length
        return tuple(
            self._part([s for s, _ in group], [at for _, at in group], device)
            for group in similar.values()
        )

    def end_packed(self) -> None:
        """End the pass: what was decided in it is remembered for each request."""
        for part in self._made or ():
            for name, mine in part.registers.items():
                if part.loaded.get(name) is mine:
                    continue
                if name not in self.latches:
                    self.latches[name] = mine.new_zeros((len(self.slots), *mine.shape[1:]))
                self.latches[name][part.requests] = mine
        self._made = None

    @property
    def _prompting(self) -> bool:
        """Whether the pass holds tokens of a prompt: nothing else decides a latch."""
        return any(s.start < self.prompt_len[s.request] for s in self._stretches)

    def _decide(self, cohort: Cohort, stream: Float[Tensor, "one token d_model"]) -> None:
        """Decide the latches of a site on the incoming stream."""
        for part in self._parts:
            plan, place = cohort.plan(part.slots), part.place
            rows = part.rows(stream) if plan.deciders else stream
            for latch, mine in plan.deciders:
                decide(
                    latch, mine, rows, place.absolute, place.prompt_len, part.registers, plan.dtype
                )

    def _open(self, latch: str, request: int) -> bool:
        """Whether it was decided that a latch is open, in this pass or before."""
        if latch not in self._opened:
            states = (
                dict(enumerate((self.latches[latch] > 0).tolist())) if latch in self.latches else {}
            )
            for part in self._made or ():
                if latch in part.registers:
                    mine = (part.registers[latch] > 0).tolist()
                    states.update(zip(part.requests.tolist(), mine, strict=True))
            self._opened[latch] = states
        return self._opened[latch].get(request, False)

    def _choose(self, rows: Rows) -> Chosen:
        """Which tokens of this pass get which vectors, at every site with these rows."""
        found = self._chosen.get(rows)
        if found is None:
            tokens, which = rows.choose(self._stretches, self.slots, self.prompt_len, self._open)
            found = self._before.get(rows)
            # The same requests decode: what was gathered for them is there.
            if found is None or (found.tokens, found.which, found.length) != (
                tokens,
                which,
                self._tokens,
            ):
                found = Chosen.of(tokens, which, self._tokens)
            self._chosen[rows] = found
        return found

    def _part(
        self, stretches: Sequence[Stretch], firsts: Sequence[int] | None, device: torch.device
    ) -> Part:
        def column(values: Sequence[int]) -> Int[Tensor, "row"]:
            return torch.tensor(values, device=device)

        numbers = [stretch.request for stretch in stretches]
        longest = max(stretch.length for stretch in stretches)
        steps = torch.arange(longest, device=device)
        absolute = column([stretch.start for stretch in stretches])[:, None] + steps
        places = None
        if firsts is not None:
            padding = steps >= column([stretch.length for stretch in stretches])[:, None]
            absolute = absolute.masked_fill(padding, -1)
            # Padding repeats the row's first token; no term acts there, and it is not put back.
            places = (column(firsts)[:, None] + steps).where(~padding, column(firsts)[:, None])
        requests = column(numbers)
        place = PassPlace(
            lambda: absolute,
            column([self.prompt_len[number] for number in numbers]),
            requests,
            whole=len({stretch.length for stretch in stretches}) == 1,
        )
        loaded = {name: held[requests] for name, held in self.latches.items()}
        return Part(
            requests=requests,
            slots=tuple(self.slots[number] for number in numbers),
            place=place,
            places=places,
            registers=dict(loaded),
            loaded=loaded,
        )

    def _steering(self, site: Site, programs: tuple[Program, ...]) -> Visit:
        cohorts: dict[tuple[torch.device, torch.dtype], Cohort] = {}
        adding: dict[tuple[torch.device, torch.dtype], Additions | None] = {}

        def visit(stream: Tensor) -> Tensor:
            self.counts[site][0] += 1
            if stream.ndim != 3 or stream.shape[:2] != (1, self._tokens):
                raise HookError(
                    f"{site} has shape {tuple(stream.shape)} in a pass over {self._tokens} packed "
                    f"tokens, expected [1 {self._tokens} d_model]"
                )
            kind = stream.device, stream.dtype
            if kind not in adding:
                adding[kind] = additions(programs, self.slots, *kind)
            only = adding[kind]
            if (only is None or only.deciding) and kind not in cohorts:
                cohorts[kind] = Cohort(pack(programs, *kind), self.slots)
            if only is not None:
                if only.deciding and self._prompting:
                    self._decide(cohorts[kind], stream)
                return only.add(stream, self._choose(only.rows))
            cohort, out = cohorts[kind], stream
            for part in self._parts:
                plan = cohort.plan(part.slots)
                if not plan.groups and not plan.deciders:
                    continue
                rows = part.rows(stream)
                steered = steer(plan, rows, part.place, part.registers)
                if steered is rows:
                    continue
                if part.places is None:
                    return steered.view(stream.shape)
                if out is stream:
                    out = stream.clone()
                part.put(out, steered)
            return out

        return visit
