"""One call's visits: run each row's program at each site, keep what was asked for, count."""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from steerkit.batch import Batch, RequestState
from steerkit.errors import HookError
from steerkit.kernels.place import Place
from steerkit.kernels.plan import Plan, plan_of
from steerkit.kernels.reference import pack, steer
from steerkit.models.hooks import Visit
from steerkit.program import Program, ProgramTable
from steerkit.protocols import Pool
from steerkit.site import Site

Slots = tuple[int, ...]


class Stop(Exception):
    """Raised by a visit when everything asked for has been seen; never leaves `run`."""


@dataclass
class Session:
    """The visits of one call, where its requests stand, and how often each hook fired."""

    visits: dict[Site, Visit] = field(default_factory=dict)
    streams: dict[Site, Tensor] = field(default_factory=dict)
    counts: dict[Site, list[int]] = field(default_factory=dict)
    """How often each hook fired, in a list of one: a visit need not look its site up."""
    awake: Callable[[], bool] = lambda: True
    """Whether this call's turn is on; its hooks are dormant while a nested call runs."""
    slots: tuple[int, ...] = ()
    """Program of each row; on the host, so that no step waits for a device."""
    latches: MutableMapping[str, Tensor] = field(default_factory=dict)
    """What was decided about the requests of this call."""
    averages: bool = False
    """Whether some condition is about the whole prompt, which then has to be seen."""
    _places: dict[torch.device, Place] = field(default_factory=dict)
    """Where the columns of this pass stand, on each device that asked."""

    def begin_whole(self, batch: Batch) -> None:
        """Begin the only pass over whole texts."""
        self.latches = {}
        place = Place(lambda: batch.absolute, batch.prompt_len, batch.rows, whole=not batch.padded)
        self._places = {batch.mask.device: place}

    def begin(
        self, state: RequestState, length: int, *, seen: int = 0, padded: bool | None = None
    ) -> None:
        """Begin a pass over the `length` columns that come `seen` columns after `state`.

        `padded` says whether there may be padding among them; None if it is not known.
        """
        home = state.position.device
        if padded is None:
            padded = home.type != "cpu" or bool((state.position + seen < 0).any())

        def absolute() -> Tensor:
            return state.advanced(seen).absolute(length)

        self.latches = state.latches
        self._places = {home: Place(absolute, state.prompt_len, state.row, whole=not padded)}

    def steer(self, table: ProgramTable | None, slots: Sequence[int]) -> None:
        """Plan the programs of each row's slot; a site where none acts gets no hook."""
        self.slots = tuple(slots)
        if table is None:
            return
        active, self.averages = acting(table, frozenset(slots))
        for site, programs in active:
            self.counts[site] = [0]
            self.visits[site] = self._steering(site, programs)

    @property
    def fired(self) -> dict[Site, int]:
        """How often each hook fired."""
        return {site: count for site, (count,) in self.counts.items()}

    def capture(
        self,
        sites: Sequence[Site],
        batch: Batch,
        *,
        pool: Pool | None = None,
        before: bool = False,
        grad: bool = False,
        stop: bool = False,
    ) -> None:
        """Plan what to keep; with `stop`, end the pass once all of it has been seen."""
        if stop and sites:
            deepest = max(sites)
            self.visits = {s: visit for s, visit in self.visits.items() if s <= deepest}
            self.counts = {s: self.counts[s] for s in self.visits}
        waiting = set(sites)

        def keeping(site: Site, steer: Visit | None) -> Visit:
            count = self.counts.setdefault(site, [0])

            def visit(stream: Tensor) -> Tensor:
                after = stream if steer is None else steer(stream)
                seen = stream if before else after
                kept = seen if pool is None else pool(seen, batch)
                if not grad:
                    kept = kept.detach()
                    # A copy: the network may go on to change its stream in place, and a
                    # view (a pool that slices) would keep all of the stream in memory.
                    if kept.untyped_storage().data_ptr() == seen.untyped_storage().data_ptr():
                        kept = kept.clone()
                self.streams[site] = kept
                if steer is None:
                    count[0] += 1
                waiting.discard(site)
                if stop and not waiting:
                    raise Stop
                return after

            return visit

        for site in sites:
            self.visits[site] = keeping(site, self.visits.get(site))

    @property
    def guarded(self) -> dict[Site, Visit]:
        """The visits, dormant outside this call's turn."""

        def guard(visit: Visit) -> Visit:
            return lambda stream: visit(stream) if self.awake() else stream

        return {site: guard(visit) for site, visit in self.visits.items()}

    def check(self, passes: int = 1) -> None:
        """Every planned hook must have fired once a pass.

        Raises:
            HookError: naming the sites and how often their hooks fired.
        """
        if all([count == passes for (count,) in self.counts.values()]):
            return
        wrong = [f"{site} {n}" for site, n in sorted(self.fired.items()) if n != passes]
        raise HookError(
            f"in {passes} forward pass{'es' if passes > 1 else ''} each hook must fire "
            f"{passes} time{'s' if passes > 1 else ''}, but they fired: {', '.join(wrong)}. "
            "The network skips, repeats or bypasses these modules; if its modules were "
            "replaced after `wrap`, wrap it again"
        )

    def _moved(self, device: torch.device) -> Place:
        """Where the columns of this pass stand, for streams on another device."""
        place = self._places[device] = next(iter(self._places.values())).to(device)
        return place

    def _steering(self, site: Site, programs: tuple[Program, ...]) -> Visit:
        count = self.counts[site]
        known: dict[tuple[torch.device, torch.dtype], tuple[Slots, Plan]] = {}

        def visit(stream: Tensor) -> Tensor:
            count[0] += 1
            kind, slots = (stream.device, stream.dtype), self.slots
            found = known.get(kind)
            if found is None or found[0] is not slots:
                found = known[kind] = slots, planned(programs, *kind, slots)
            place = self._places.get(kind[0]) or self._moved(kind[0])
            return steer(found[1], stream, place, self.latches)

        return visit


@lru_cache(maxsize=256)
def acting(
    table: ProgramTable, slots: frozenset[int]
) -> tuple[tuple[tuple[Site, tuple[Program, ...]], ...], bool]:
    """Sites where some of the slots act, each with its programs; and whether means decide."""
    every = ((site, table.at(site)) for site in table.sites)
    acting = tuple((site, at) for site, at in every if any(at[slot] for slot in slots))
    latches = [latch for _, at in acting for slot in slots for latch in at[slot].latches]
    return acting, any(latch.pooled == "mean_prompt" for latch in latches)


@lru_cache(maxsize=256)
def planned(
    programs: tuple[Program, ...], device: torch.device, dtype: torch.dtype, slots: Slots
) -> Plan:
    """What these rows do at a site, looked up once a call."""
    return plan_of(pack(programs, device, dtype), slots)
