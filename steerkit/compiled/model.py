"""The compiled model that users hold: the protocol of every model, on one graph and one table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from steerkit.batch import Batch
from steerkit.compiled.capacity import Capacity
from steerkit.compiled.decoding import Decoding
from steerkit.compiled.engine import CompiledEngine, Receipt
from steerkit.compiled.refusals import check_engine, check_path
from steerkit.errors import InterventionError
from steerkit.models.checks import batch_on, check_logits, check_site, lowered
from steerkit.models.view import LanguageModel
from steerkit.program import ProgramTable
from steerkit.protocols import Intervention, Logits, Pool, Run
from steerkit.site import Site


def compiled(
    model: LanguageModel,
    capacity: Capacity | None = None,
    *,
    sites: Sequence[Site | str | int] | None = None,
    path: str = "compiled",
    backend: str | Callable[..., Any] = "inductor",
) -> "CompiledModel":
    """See `LanguageModel.compile`."""
    base = check_engine(model.engine, model.info)
    check_path(path, base.device.type)
    given = () if model.table is None else model.table.sites
    if sites is not None:
        chosen = tuple(Site.parse(site) for site in sites)
    else:
        chosen = given or tuple(Site(layer) for layer in range(model.info.n_layers))
    for site in chosen:
        check_site(site, model.info)
    if capacity is None:
        capacity = Capacity() if model.table is None else Capacity.of(model.table)
    recorder = None
    if path == "cuda_graph":
        from steerkit.compiled.replay import CudaGraphs

        recorder = CudaGraphs()
    engine = CompiledEngine(base, capacity, chosen, path=path, backend=backend, recorder=recorder)
    plain = CompiledModel(engine)
    return plain if model.table is None else plain._holding(model.table, model.steering)


@dataclass(frozen=True, eq=False, repr=False)
class CompiledModel(LanguageModel):
    """A language model whose steps are compiled whole; made by `LanguageModel.compile`.

    Views are slot assignments on one table: making one copies its programs into place, and
    nothing is traced again. A view holds its slots for as long as it lives. A batch in which
    no row is steered runs an untouched graph without any programs in it.
    """

    engine: CompiledEngine

    @property
    def path(self) -> str:
        """How this model runs: `compiled` or `cuda_graph`."""
        return self.engine.path

    @property
    def receipt(self) -> Receipt:
        """What really ran in the last call."""
        return self.engine.receipt

    @property
    def eager(self) -> LanguageModel:
        """The same view on the eager path."""
        return LanguageModel(self.engine.base, self.table, self.steering)

    def run(
        self,
        batch: Batch,
        *,
        sites: Sequence[Site] = (),
        pool: Pool | None = None,
        logits: Logits = "all",
        slots: Sequence[int] | Tensor | None = None,
        before: bool = False,
        grad: bool = False,
    ) -> Run:
        """Logits of a batch; streams and gradients are the eager path's.

        Raises:
            InterventionError: streams or gradients asked for, slots that the model lacks.
            PromptError: more rows or columns than the capacity has.
        """
        check_logits(logits)
        if sites or grad or pool is not None:
            what = "gradients" if grad else "streams"
            raise InterventionError(
                f"a compiled model gives logits, not {what}; ask its eager twin: .eager.run(...)"
            )
        chosen = self._slots(slots, len(batch))
        if logits == "none":
            return Run(None, {}, {})
        held = self.engine.slots.of(self.table)
        out = self.engine.score(
            batch_on(batch, self.engine.device), [held[slot] for slot in chosen], logits
        )
        return Run(out.float(), {}, {})

    def run_slots(
        self,
        batch: Batch,
        slots: Sequence[int],
        *,
        sites: Sequence[Site] = (),
        pool: Pool | None = None,
        logits: Logits = "answer",
    ) -> Run:
        """Every slot on every row, as one batch: a graph has one number of rows throughout."""
        each = [slot for slot in slots for _ in range(len(batch))]
        return self.run(
            batch.repeated(len(slots)), sites=sites, pool=pool, logits=logits, slots=each
        )

    def with_(self, *interventions: Intervention, force: bool = False) -> Self:
        """A steered view, as `LanguageModel.with_`; it takes a slot for each of its own.

        Raises:
            InterventionError: no slot free, or more than the capacity has room for.
        """
        view = super().with_(*interventions, force=force)
        if view is self or view.table is None:
            return self
        return self._holding(view.table, view.steering)

    def with_rows(self, *rows: Sequence[Intervention], force: bool = False) -> Self:
        """A view of several slots, as `LanguageModel.with_rows`.

        Raises:
            InterventionError: too few slots free, or more than the capacity has room for.
        """
        view = super().with_rows(*rows, force=force)
        assert view.table is not None
        return self._holding(view.table, view.steering)

    def edited(self, *interventions: Intervention, slot: int = 1, force: bool = False) -> Self:
        """This view with other interventions at a slot, in the same place of the table.

        For loops that edit while a batch is decoded: the new view takes over the slots, so it
        needs no free ones, rows that point there follow at their next step, and this view can
        be used no more. Where the slot now waits for other conditions than before, those of
        requests under way stay closed.

        Raises:
            InterventionError: no such slot, or more than the capacity has room for.
        """
        if self.table is None or not 1 <= slot <= len(self.table.slots):
            last = 0 if self.table is None else len(self.table.slots)
            raise InterventionError(
                f"no slot {slot} to edit; this view has slots 1..{last}, made by with_ or with_rows"
                if last
                else "a plain model has no slot to edit; make a view by with_ first"
            )
        i, new = slot - 1, lowered(interventions, self.info, force=force)
        table = ProgramTable((*self.table.slots[:i], new, *self.table.slots[slot:]))
        words = ", ".join(str(v) for v in interventions) or "nothing"
        steering = (*self.steering[:i], words, *self.steering[slot:])
        self.engine.hand_over(self.table, table)
        return replace(self, table=table, steering=steering)

    def set_strength(self, factor: float, *, slot: int = 1) -> None:
        """Multiply what a slot's programs change, in place and at once; 1 as they were made.

        One number is written to the device: for loops that change it at every step. For
        interventions in order each is scaled. 0 leaves the slot's rows untouched.

        Raises:
            InterventionError: no such slot, or a factor that is not finite.
        """
        (chosen,) = self._slots([slot], 1)
        self.engine.table.set_strength(self.engine.slots.of(self.table)[chosen], factor)

    @contextmanager
    def decoding(
        self, batch: Batch, *, slots: Sequence[int] | None = None, room: int = 64
    ) -> Iterator[Decoding]:
        """A batch under way: its prompts have run, and each `step` takes a token a row.

        Between steps slots may be changed (`move`), and what stands in them (`edited`,
        `set_strength`). The model runs nothing else while the context is open.

        Args:
            batch: prompts, and answers if they are to count as already given.
            slots: of each row, as in `run`.
            room: steps that there is room for.
        """
        chosen = self._slots(slots, len(batch))
        with self.engine.turn():
            given = batch_on(batch, self.engine.device)
            steps = Decoding(self.engine, given, self.table, chosen, room)
            try:
                yield steps
            finally:
                steps.close()

    def compile(self, *args: Any, **kwargs: Any) -> "CompiledModel":
        """Refused: it is compiled."""
        raise InterventionError(
            "this model is compiled already; for another capacity: .eager.compile(...)"
        )

    def __repr__(self) -> str:
        c = self.engine.capacity
        room = f"{self.path}, {c.slots} slots, {c.rows} rows of {c.length}"
        return f"{super().__repr__()[:-1]}, {room})".replace("LanguageModel", "CompiledModel", 1)

    def _groups(
        self, lengths: Sequence[int], token_budget: int, *, max_padding: float = 1.0
    ) -> list[list[int]]:
        """Batches of similar length of at most as many rows as there are."""
        rows = self.engine.capacity.rows
        groups = super()._groups(lengths, token_budget, max_padding=max_padding)
        return [group[i : i + rows] for group in groups for i in range(0, len(group), rows)]

    def _holding(self, table: ProgramTable, steering: tuple[str, ...]) -> Self:
        self.engine.slots.hold(table)
        return replace(self, table=table, steering=steering)
