"""Forward passes in which every batch row carries a change of its own at a place of its own.

A place is a stream of a layer (`Site`) or its attention heads (`Heads`). What a row is given
there is written as it is: no program of a table could hold a state for each row.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from steerkit.batch import Batch
from steerkit.errors import HookError
from steerkit.models.heads import HeadPoint, Heads
from steerkit.models.hooks import Visit, removed_after
from steerkit.models.steering import Session
from steerkit.protocols import Logits
from steerkit.site import Site

if TYPE_CHECKING:
    from steerkit.models.view import LanguageModel

Place = Site | Heads


@dataclass(frozen=True)
class Seen:
    """What a pass gave: logits in at least float32, and the streams that were kept."""

    logits: Tensor
    streams: Mapping[Place, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Rewrite:
    """Columns of rows that are replaced at one place.

    Attributes:
        rows: of the batch, one an entry.
        columns: of the batch, one an entry.
        states: what is put there, `[entry d_model]`; of heads `[entry d_head]`.
        heads: which head, one an entry; None at a site.
    """

    rows: Int[Tensor, "entry"]
    columns: Int[Tensor, "entry"]
    states: Tensor
    heads: Int[Tensor, "entry"] | None = None

    def __call__(self, stream: Tensor) -> Tensor:
        """The stream with its entries replaced; a copy."""
        index = [self.rows, self.columns, *([] if self.heads is None else [self.heads])]
        out = stream.clone()
        out[tuple(i.to(out.device) for i in index)] = self.states.to(out)
        return out


def visited(
    model: "LanguageModel",
    batch: Batch,
    *,
    write: Mapping[Place, Visit] | None = None,
    keep: Iterable[Place] = (),
    heads: Sequence[HeadPoint] = (),
    logits: Logits = "last",
    grad: bool = False,
) -> Seen:
    """One forward pass with writes at some places; other places are read after the writes.

    A steered view's interventions come first, with slot 1 on every row; a write replaces what
    they leave.

    Args:
        model: plain or steered.
        batch: what to run, on the model's device.
        write: what to do at each place.
        keep: places to return, `[batch pos d_model]`, of heads `[batch pos n_heads d_head]`.
        heads: from `find_heads`, where a place is `Heads`.
        logits: which to compute.
        grad: keep the autograd graph, from the first block's input on.

    Raises:
        HookError: a hook that did not fire exactly once.
    """
    engine, kept = model.engine, tuple(keep)
    writes = dict(write or {})
    session = Session()
    session.steer(model.table, [int(model.table is not None)] * len(batch))
    if grad:
        # Whether the weights ask for gradients or not: the graph begins here.
        first = Site(0, "resid_pre")
        writes[first] = _then(writes.get(first), lambda s: s.detach().requires_grad_())
    for site, visit in writes.items():
        if isinstance(site, Site):
            session.visits[site] = _counted(session, site, visit)
    session.capture([s for s in kept if isinstance(s, Site)], batch, grad=grad)
    session.begin_whole(batch)
    streams: dict[Place, Tensor] = {}
    fired: dict[Heads, int] = {}

    def at_heads(place: Heads) -> Visit:
        fired[place] = 0

        def visit(split: Tensor) -> Tensor:
            if not session.awake():
                return split
            fired[place] += 1
            after = writes[place](split) if place in writes else split
            if place in kept:
                streams[place] = after if grad else after.detach().clone()
            return after

        return visit

    with (
        engine.turns.taken() as session.awake,
        engine.undisturbed(grad=grad),
        engine.attached(session.guarded),
        removed_after() as handles,
    ):
        for place in dict.fromkeys((*writes, *kept)):
            if isinstance(place, Heads):
                handles.append(heads[place.layer].attach(at_heads(place)))
        out = engine.forward(batch, logits)
    session.check()
    if wrong := [f"{place} {n}" for place, n in fired.items() if n != 1]:
        raise HookError(f"in one pass the hooks at heads fired {', '.join(wrong)} times, not once")
    for site, stream in session.streams.items():
        streams[site] = stream
    return Seen(out.to(torch.promote_types(out.dtype, torch.float32)), streams)


def _counted(session: Session, site: Site, write: Visit) -> Visit:
    """A visit that writes after the interventions at its site, and counts."""
    steered = session.visits.get(site)
    count = session.counts.setdefault(site, [0])

    def visit(stream: Tensor) -> Tensor:
        if steered is not None:
            return write(steered(stream))
        count[0] += 1
        return write(stream)

    return visit


def _then(first: Visit | None, second: Callable[[Tensor], Tensor]) -> Visit:
    return second if first is None else lambda stream: second(first(stream))
