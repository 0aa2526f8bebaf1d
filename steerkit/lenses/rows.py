"""Many patches a forward pass: each batch row carries its own, and joins where it is changed."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from steerkit.batch import Batch
from steerkit.lenses.tasks import Both, Job, Task
from steerkit.models import LanguageModel
from steerkit.models.heads import HeadPoint, Heads
from steerkit.models.hooks import Visit
from steerkit.models.patching import Place, Rewrite, visited
from steerkit.models.staircase import staircase
from steerkit.models.variants import Variants
from steerkit.site import Site

WASTE = 1.2
"""Rows that a joint pass may run for each one that is needed."""


def logits_of(
    task: Task, both: Both, jobs: Sequence[Job]
) -> Iterator[tuple[Sequence[Job], Tensor]]:
    """Last logits of every job, some jobs at a time, `[job d_vocab]`.

    Where rows can join a pass under way, the layers before the first patch run once for all;
    patches of heads and of steered views carry their rows from the start.
    """
    plain = task.model.table is None and not task.model.engine.resumes
    late = [job for job in jobs if plain and isinstance(job.place, Site)]
    early = [job for job in jobs if not (plain and isinstance(job.place, Site))]
    yield from _joining(task, both, late)
    at_once = max(1, task.token_budget // both.batch.width)
    for first in range(0, len(early), at_once):
        some = early[first : first + at_once]
        yield (
            some,
            patched_logits(
                task.model, both.batch, some, both.clean.streams, both.shared, task.heads
            ),
        )


def patched_logits(
    model: LanguageModel,
    batch: Batch,
    jobs: Sequence[Job],
    source: Mapping[Place, Tensor],
    shared: Sequence[int],
    heads: Sequence[HeadPoint],
) -> Tensor:
    """Last logits of the corrupted batch's rows, one row a job, `[job d_vocab]`.

    Jobs come in forward order. `source` holds the clean run's states, `shared` how many
    positions from the end both runs of each row have.
    """
    own = batch.take(torch.tensor([job.row for job in jobs], device=batch.rows.device))
    write: dict[Place, Visit] = {}
    for place in dict.fromkeys(job.place for job in jobs):
        entries = [
            (k, job.row, position, job.head)
            for k, job in enumerate(jobs)
            if job.place == place
            for position in _positions(job, shared)
        ]
        rows, taken, position, head = torch.tensor(entries).T
        states = source[place]
        index = [taken, states.shape[1] + position, *([head] if isinstance(place, Heads) else [])]
        write[place] = Rewrite(
            rows=rows,
            columns=own.width + position,
            states=states[tuple(i.to(states.device) for i in index)],
            heads=head if isinstance(place, Heads) else None,
        )
    return visited(model, own, write=write, heads=heads).logits[:, -1]


def _joining(task: Task, both: Both, jobs: Sequence[Job]) -> Iterator[tuple[Sequence[Job], Tensor]]:
    """Jobs as variants of the corrupted batch, or of one row of it after another.

    A variant is one place and position in all rows of its batch. Where many rows have nothing
    to patch there (their states are equal), rows go one by one instead.
    """
    n_rows = len(both.batch)
    cells = {(job.place, job.position) for job in jobs}
    together = len(cells) * n_rows <= WASTE * len(jobs)
    for rows in [range(n_rows)] if together else [range(r, r + 1) for r in range(n_rows)]:
        variants: dict[tuple[Place, int | None], list[Job]] = {}
        for job in jobs:
            if job.row in rows:
                variants.setdefault((job.place, job.position), []).append(job)
        batch = both.batch.take(torch.tensor(rows, device=both.batch.rows.device))
        at_once = max(1, task.token_budget // (batch.width * len(rows)))
        every = list(variants.values())
        for first in range(0, len(every), at_once):
            some = every[first : first + at_once]
            logits, _, _ = staircase(
                task.model.engine,  # type: ignore[arg-type]
                batch,
                _as_variants(some, both, rows),
                logits="last",
            )
            assert logits is not None
            ran = [
                (v * len(rows) + job.row - rows.start, job)
                for v, own in enumerate(some)
                for job in own
            ]
            index = torch.tensor([row for row, _ in ran], device=logits.device)
            yield [job for _, job in ran], logits[index, -1]


def _as_variants(jobs: Sequence[Sequence[Job]], both: Both, rows: range) -> Variants:
    acts: dict[Site, frozenset[int]] = {}
    for number, own in enumerate(jobs):
        site = own[0].place
        assert isinstance(site, Site)
        acts[site] = acts.get(site, frozenset()) | {number}

    def change(site: Site, stream: Tensor, who: tuple[int, ...], batch: Batch) -> Tensor:
        # (row of the stream, row of the pairs, position) of all that is replaced here.
        entries = [
            (k * len(rows) + job.row - rows.start, job.row, position)
            for k, variant in enumerate(who)
            if variant in acts[site]
            for job in jobs[variant]
            for position in _positions(job, both.shared)
        ]
        here, taken, position = torch.tensor(entries).T
        source = both.clean.streams[site]
        index = (taken.to(source.device), (source.shape[1] + position).to(source.device))
        return Rewrite(here, stream.shape[1] + position, source[index])(stream)

    return Variants(acts, change, len(jobs))


def _positions(job: Job, shared: Sequence[int]) -> Sequence[int]:
    """The positions, from the end, that a job replaces."""
    return range(-shared[job.row], 0) if job.position is None else (job.position,)
