"""Many variants of one batch in one pass, each from the layer where it first differs.

The unsteered rows run once. A variant's rows join the batch at the first site where the
variant changes anything, as copies of the unsteered rows there, and run from then on beside
them: layers before that are shared, layers after it run as one batch. For one candidate a
layer at each of L layers this halves the work of a batch that holds all of them from the
start, and keeps what batching wins for short prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steerkit.batch import Batch, Tokenized
from steerkit.errors import HookError
from steerkit.models.chunks import in_chunks, rows_at_once, watched_inside
from steerkit.models.hooks import Visit, incoming, nudged, removed_after
from steerkit.models.steering import Stop
from steerkit.models.variants import Variants
from steerkit.protocols import Logits, Pool
from steerkit.site import Site

if TYPE_CHECKING:
    from steerkit.models.huggingface import HuggingFaceEngine

PROOF = ((4,), (3, 2, 3), (5, 3))
"""Lengths of the batches on which a network is proven; of the second, rows equal columns."""
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest relative difference in the proof; 0.05 in half precision, where batch shapes round."""


@dataclass
class _Climb:
    """One pass: which variants have joined, and what has been seen."""

    batch: Batch
    variants: Variants
    joining: dict[Site, tuple[int, ...]]
    """Variants by the site where their rows join."""
    plain: bool
    """Whether the unsteered rows are wanted to the end."""
    present: tuple[int, ...] = ()
    bare: bool = True
    """Whether the unsteered rows are still in the batch; they come first."""
    waiting: int = 0
    _batches: dict[int, Batch] = field(default_factory=dict)
    _moved: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = sum(map(len, self.joining.values()))

    def times(self, n: int) -> Batch:
        """The batch n times over."""
        if n not in self._batches:
            self._batches[n] = self.batch.repeated(n)
        return self._batches[n]

    @property
    def blocks(self) -> int:
        """How many copies of the batch there are now."""
        return len(self.present) + self.bare

    def visit(self, site: Site, stream: Tensor) -> Tensor:
        """Let variants join, and change those that act here."""
        new, rows = self.joining.get(site, ()), len(self.batch)
        who = self.variants.acts.get(site, frozenset())
        skip = rows * self.bare
        old = stream
        if who.intersection(self.present):
            changed = self._changed(site, stream[skip:], self.present)
            old = torch.cat([stream[:skip], changed]) if skip else changed
        if not new:
            return old
        joined = self._changed(site, stream[:rows].repeat(len(new), 1, 1), new)
        self.waiting -= len(new)
        if not (self.plain or self.waiting):
            old, self.bare = old[rows:], False
        self.present += new
        self._moved.clear()
        return torch.cat([old, joined]) if len(old) else joined

    def _changed(self, site: Site, stream: Tensor, variants: tuple[int, ...]) -> Tensor:
        if not self.variants.acts.get(site, frozenset()).intersection(variants):
            return stream
        return self.variants.change(site, stream, variants, self.times(len(variants)))

    def sorted(self, rows: Tensor) -> Tensor:
        """Rows of the batch as it is now, as rows of every variant in order; a copy."""
        n = len(self.batch)
        at = {v: i + self.bare for i, v in enumerate(self.present)}
        starts = torch.tensor([at.get(v, 0) * n for v in range(self.variants.n)])
        index = (starts[:, None] + torch.arange(n)).flatten()
        return rows[index.to(rows.device)]

    def widened(self, value: Any) -> Any:
        """A block's other input, with as many rows as the stream has."""
        if isinstance(value, tuple | list):
            return type(value)(map(self.widened, value))
        if isinstance(value, dict):
            return {k: self.widened(v) for k, v in value.items()}
        n = len(self.batch)
        # One row is broadcast, as it is without us; a vector counts columns, not rows.
        if not isinstance(value, Tensor) or value.ndim < 2 or n == 1 or len(value) != n:
            return value
        if id(value) not in self._moved:
            self._moved[id(value)] = value, value.repeat(self.blocks, *[1] * (value.ndim - 1))
        return self._moved[id(value)][1]


def staircase(
    engine: "HuggingFaceEngine",
    batch: Batch,
    variants: Variants,
    *,
    sites: Sequence[Site] = (),
    pool: Pool | None = None,
    logits: Logits = "answer",
    chunk: int | None = None,
) -> tuple[Tensor | None, dict[Site, Tensor], dict[Site, int]]:
    """Run every variant of a batch: logits, streams `[variant * row ...]`, and the receipt.

    Rows come variant after variant. Streams are read after the changes at their site. With
    `logits="none"` the pass ends at the deepest site asked for. On a CPU blocks run `chunk`
    rows at a time (see `models.chunks`), unless something happens inside them.

    Raises:
        HookError: a hook that did not fire exactly once.
    """
    stop = logits == "none"
    acting = [s for s in variants.acts if not (stop and s > max(sites))]
    joining: dict[Site, tuple[int, ...]] = {}
    for variant in range(variants.n):
        first = min((s for s in acting if variant in variants.acts[s]), default=None)
        if first is not None:
            # Rows join between blocks, also those that act inside one.
            at = first if first.stream == "resid_post" else Site(first.layer, "resid_pre")
            joining[at] = (*joining.get(at, ()), variant)
    climb = _Climb(batch, variants, joining, plain=sum(map(len, joining.values())) < variants.n)
    streams: dict[Site, Tensor] = {}
    fired: dict[Site, int] = {}

    def visiting(site: Site) -> Visit:
        fired[site] = 0

        def visit(stream: Tensor) -> Tensor:
            if not awake():
                return stream
            fired[site] += 1
            after = climb.visit(site, stream)
            if site in sites:
                kept = after if pool is None else pool(after, climb.times(climb.blocks))
                streams[site] = climb.sorted(kept).detach()
                if stop and len(streams) == len(sites):
                    raise Stop
            return after

        return visit

    visits = {site: visiting(site) for site in sorted({*acting, *joining, *sites})}
    out: Tensor | None = None
    modules = [block.module for block in engine.blocks]
    outside = all(site.stream in ("resid_pre", "resid_post") for site in visits)
    if engine.device.type != "cpu" or not outside or watched_inside(modules):
        modules = []
    chunk = chunk or rows_at_once(batch.width, engine.info.d_model)
    with engine.turns.taken() as awake, engine.undisturbed():
        try:
            with (
                in_chunks(modules, chunk, awake),
                engine.attached(visits),
                _widening(engine, climb, awake),
            ):
                out = engine.forward(batch, logits)
        except Stop:
            pass
    wrong = ", ".join(f"{site} {n}" for site, n in fired.items() if n != 1)
    if wrong:
        raise HookError(
            f"in one forward pass each hook must fire once, but they fired: {wrong}. The network "
            "skips, repeats or bypasses these modules; if its modules were replaced after "
            "`wrap`, wrap it again"
        )
    return (None if out is None else climb.sorted(out).float()), streams, fired


@contextmanager
def _widening(
    engine: "HuggingFaceEngine", climb: _Climb, awake: Callable[[], bool]
) -> Iterator[None]:
    """Give every block masks and positions for the rows that have joined."""

    def on_block(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not awake() or len(incoming(args, kwargs)) == len(climb.batch):
            return None
        # The stream itself has joined rows already, whatever its number of rows.
        rest = {k: v if k == "hidden_states" else climb.widened(v) for k, v in kwargs.items()}
        return (*args[:1], *map(climb.widened, args[1:])), rest

    with removed_after() as handles:
        # Not prepended: after the hooks in which rows join.
        handles.extend(
            block.module.register_forward_pre_hook(on_block, with_kwargs=True)
            for block in engine.blocks
        )
        yield


def why_not(engine: "HuggingFaceEngine") -> str:
    """Why rows cannot join a pass of this network under way; empty where they can.

    Proven once, on a handful of tokens: every variant of a probe must give what it gives
    alone. What a network computes before its blocks in a form that only fits its own rows
    (biases with one row for each row and head) shows there.
    """
    last = engine.info.n_layers - 1
    outside = [Site(last // 2), Site(last), Site(last, "resid_pre"), Site(last // 2, "resid_pre")]
    inside = [Site(last // 2, "attn_out")] if "attn_out" in engine.info.streams else []
    for sites in (outside, [*outside, *inside]):
        acts = {site: frozenset([i]) for i, site in enumerate(sites)}
        for lengths in PROOF:
            why = _differs(engine, sites, acts, lengths)
            if why:
                return why
    return ""


def _differs(
    engine: "HuggingFaceEngine",
    sites: Sequence[Site],
    acts: dict[Site, frozenset[int]],
    lengths: Sequence[int],
) -> str:
    """How a probe's variants, each of which acts at one site, differ from the same alone."""

    def change(site: Site, stream: Tensor, variants: tuple[int, ...], batch: Batch) -> Tensor:
        rows = torch.tensor([acts[site] == {v} for v in variants]).repeat_interleave(
            len(stream) // len(variants)
        )
        return torch.where(rows[:, None, None].to(stream.device), nudged(stream), stream)

    tokens = [
        Tokenized(tuple((7 * i + 3 * j + 3) % engine.info.d_vocab for j in range(n)))
        for i, n in enumerate(lengths)
    ]
    batch = Batch.collate(tokens, pad_id=0, device=engine.device)
    variants = Variants(acts, change, len(sites) + 1)
    try:
        together, _, _ = staircase(engine, batch, variants, logits="last", chunk=2)
    except (RuntimeError, ValueError, TypeError, IndexError, HookError) as error:
        return f"{type(error).__name__}: {error}"
    alone = []
    for site in (*sites, None):
        visits = {site: nudged} if site else {}
        with engine.turns.taken(), engine.undisturbed(), engine.attached(visits):
            alone.append(engine.forward(batch, "last"))
    expected = torch.cat(alone).float()
    assert together is not None
    gap = float((together - expected).norm() / expected.norm())
    if not gap <= CLOSE.get(alone[0].dtype, 0.05):
        return f"rows that join differ from rows alone by {gap:.2g} of their size"
    return ""
