"""One call's visits: run each row's program at each site, keep what was asked for, count."""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steerkit.batch import Batch, RequestState
from steerkit.errors import HookError
from steerkit.kernels.reference import apply, pack
from steerkit.models.hooks import Visit
from steerkit.program import Program, ProgramTable
from steerkit.protocols import Pool
from steerkit.site import Site


class Stop(Exception):
    """Raised by a visit when everything asked for has been seen; never leaves `run`."""


@dataclass
class Session:
    """The visits of one call, where its requests stand, and how often each hook fired."""

    visits: dict[Site, Visit] = field(default_factory=dict)
    streams: dict[Site, Tensor] = field(default_factory=dict)
    fired: dict[Site, int] = field(default_factory=dict)
    awake: Callable[[], bool] = lambda: True
    """Whether this call's turn is on; its hooks are dormant while a nested call runs."""
    slots: tuple[int, ...] = ()
    """Program of each row; on the host, so that no step waits for a device."""
    latches: MutableMapping[str, Tensor] = field(default_factory=dict)
    """What was decided about the requests of this call."""
    averages: bool = False
    """Whether some condition is about the whole prompt, which then has to be seen."""
    _now: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict)

    def begin(self, state: RequestState, length: int) -> None:
        """Begin a pass over the next `length` columns of the requests."""
        home = state.position.device
        self.latches = state.latches
        self._now = {
            home: {
                "absolute": state.absolute(length),
                "prompt_len": state.prompt_len,
                "row": state.row,
            }
        }

    def steer(self, table: ProgramTable | None, slots: Sequence[int]) -> None:
        """Plan the programs of each row's slot; a site where none acts gets no hook."""
        self.slots = tuple(slots)
        if table is None:
            return
        for site in table.sites:
            programs = table.at(site)
            if any(programs[slot] for slot in set(slots)):
                self.visits[site] = self._steering(site, programs)
                self.fired[site] = 0
                self.averages |= any(
                    latch.pooled == "mean_prompt"
                    for slot in set(slots)
                    for latch in programs[slot].latches
                )

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
            self.fired = {s: 0 for s in self.visits}
        waiting = set(sites)

        def keeping(site: Site, steer: Visit | None) -> Visit:
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
                    self.fired[site] += 1
                waiting.discard(site)
                if stop and not waiting:
                    raise Stop
                return after

            return visit

        for site in sites:
            self.visits[site] = keeping(site, self.visits.get(site))
            self.fired[site] = 0

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
        wrong = [f"{site} {n}" for site, n in sorted(self.fired.items()) if n != passes]
        if wrong:
            raise HookError(
                f"in {passes} forward pass{'es' if passes > 1 else ''} each hook must fire "
                f"{passes} time{'s' if passes > 1 else ''}, but they fired: {', '.join(wrong)}. "
                "The network skips, repeats or bypasses these modules; if its modules were "
                "replaced after `wrap`, wrap it again"
            )

    def _steering(self, site: Site, programs: tuple[Program, ...]) -> Visit:
        def visit(stream: Tensor) -> Tensor:
            self.fired[site] += 1
            now = self._now.get(stream.device)
            if now is None:
                first = next(iter(self._now.values()))
                now = {name: tensor.to(stream.device) for name, tensor in first.items()}
                self._now[stream.device] = now
            packed = pack(programs, stream.device, stream.dtype)
            return apply(
                packed,
                stream,
                absolute=now["absolute"],
                prompt_len=now["prompt_len"],
                row=now["row"],
                slot=self.slots,
                latches=self.latches,
            )

        return visit
