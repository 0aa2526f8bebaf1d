"""What both kinds of patching share: the question, read and checked, and its two runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerkit import __version__
from steerkit.batch import Batch, Tokenized
from steerkit.direction import Direction
from steerkit.lenses.maps import Head, PatchingMap
from steerkit.lenses.metrics import (
    AnswerMetric,
    Answers,
    Metric,
    MetricName,
    Text,
    check_metric,
    first_tokens,
    measured,
    own_answers,
)
from steerkit.lenses.pairs import (
    Align,
    Pairs,
    Where,
    read_basis,
    read_pairs,
    read_places,
    read_positions,
)
from steerkit.models import LanguageModel
from steerkit.models.heads import HeadPoint, Heads
from steerkit.models.patching import Place, Seen, visited
from steerkit.prompts import Contrast
from steerkit.site import Site
from steerkit.statistics import Floats


@dataclass(frozen=True)
class Job:
    """One run of one row: a place of the corrupted run that takes the clean run's state.

    Attributes:
        row: of the batch of pairs.
        place: a stream, or the heads of a layer.
        head: which head; -1 at a stream.
        position: from the end; None for every position that both sides have.
        cell: where its value goes: pair, row and column of the map.
    """

    row: int
    place: Place
    head: int
    position: int | None
    cell: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Both:
    """Both runs of some pairs: the corrupted batch, and all states of each side."""

    batch: Batch
    pairs: tuple[int, ...]
    shared: tuple[int, ...]
    clean: Seen
    corrupted: Seen
    values: Tensor
    """The corrupted runs' metric, `[pair]`, with its graph if one was asked for."""


@dataclass(eq=False)
class Task:
    """A question about pairs, and the tables that its answer is put into.

    Attributes:
        basis: orthonormal rows to which patches are confined; None for whole states.
        metric: with `tokens` of its own filled in by `both` where the runs give the answers.
        named: the metric's name.
        raw: `[pair place position]`, NaN until it is filled.
        ends: the metric of the clean and of the corrupted runs, `[side pair]`.
    """

    model: LanguageModel
    pairs: Pairs
    metric: Metric
    named: str
    own: bool
    places: tuple[Place, ...]
    heads: tuple[HeadPoint, ...]
    positions: tuple[int, ...]
    token_budget: int
    basis: Tensor | None
    raw: Floats = field(init=False)
    ends: Floats = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.pairs), len(self.rows), len(self.columns))
        self.raw = np.full(shape, np.nan)
        self.ends = np.full((2, len(self.pairs)), np.nan)

    @property
    def rows(self) -> tuple[Site | Head, ...]:
        """The places of the map, each head by itself."""
        return tuple(
            row
            for place in self.places
            for row in (
                [Head(place.layer, head) for head in range(self.heads[place.layer].n_heads)]
                if isinstance(place, Heads)
                else [place]
            )
        )

    @property
    def columns(self) -> tuple[int | None, ...]:
        """The positions; None alone where all are patched at once."""
        return self.positions or (None,)

    def batches(self, sides: int) -> list[list[int]]:
        """Pairs that run together, when every place is kept `sides` times."""
        width = self.model.info.d_model
        numbers = sum(width if isinstance(place, Site) else 2 * width for place in self.places)
        return self.pairs.batches(self.model, sides * numbers, self.token_budget)

    def both(self, group: Sequence[int], *, grad: bool = False) -> Both:
        """Run both sides of some pairs and note their metric.

        Raises:
            PromptError: runs that were to give two different answers and do not.
            ActivationError: a metric that is not a number.
        """
        batches = [self.pairs.batch(self.model, side, group) for side in ("clean", "corrupted")]
        seen = [
            visited(self.model, batch, keep=self.places, heads=self.heads, grad=grad and i == 1)
            for i, batch in enumerate(batches)
        ]
        index = torch.tensor(list(group))
        if self.own:
            assert isinstance(self.metric, AnswerMetric)
            self.metric.tokens[index] = own_answers(
                seen[0].logits[:, -1], seen[1].logits[:, -1], index
            )
        values = []
        for i, side in enumerate(("clean", "corrupted")):
            with torch.set_grad_enabled(grad and i == 1):
                found = measured(self.metric, seen[i].logits[:, -1], index, f"of the {side} run")
            self.ends[i, list(group)] = found.detach().double().cpu().numpy()
            values.append(found)
        shared = tuple(self.pairs.shared[i] for i in group)
        clean = seen[0] if self.basis is None else _confined(seen[0], seen[1], self.basis)
        return Both(batches[1], tuple(group), shared, clean, seen[1], values[1])

    def jobs(self, both: Both) -> Iterator[Job]:
        """Every run that some pairs ask for, in forward order."""
        first = 0
        for place in self.places:
            split = isinstance(place, Heads)
            n = self.heads[place.layer].n_heads if isinstance(place, Heads) else 1
            for head in range(n):
                for row, pair in enumerate(both.pairs):
                    for column, position in enumerate(self.columns):
                        if position is None or -position <= both.shared[row]:
                            cell = (pair, first + head, column)
                            yield Job(row, place, head if split else -1, position, cell)
            first += n

    def answer(self, method: str, ran: Mapping[str, int]) -> PatchingMap:
        """The map, once its tables are full."""
        tokens = getattr(self.metric, "tokens", None)
        items = [
            {
                "clean": _plain(a),
                "corrupted": _plain(b),
                "clean_tokens": list(self.pairs.clean[i].prompt),
                "corrupted_tokens": list(self.pairs.corrupted[i].prompt),
                **({} if tokens is None else {"answer_tokens": tokens[i].tolist()}),
            }
            for i, (a, b) in enumerate(self.pairs.prompts)
        ]
        return PatchingMap(
            method=method,
            metric=self.named,
            unit=str(getattr(self.metric, "unit", "")),
            places=self.rows,
            positions=self.positions,
            labels=self.pairs.labels(self.model, self.positions),
            raw=self.raw,
            clean=self.ends[0],
            corrupted=self.ends[1],
            groups=self.pairs.groups,
            items=tuple(items),
            provenance={
                "model": self.model.info.to_json(),
                "steering": list(self.model.steering),
                "steerkit": __version__,
                "confined_to": 0 if self.basis is None else len(self.basis),
                **ran,
            },
        )


def read_task(
    model: LanguageModel,
    clean: Sequence[Text] | Contrast,
    corrupted: Sequence[Text] | None,
    metric: MetricName | Metric,
    *,
    answers: Answers | None,
    streams: Sequence[str] | str | None,
    layers: Sequence[int] | None,
    positions: Where | Sequence[int],
    align: Align,
    groups: Sequence[str] | None,
    along: Direction | Tensor | None,
    token_budget: int,
) -> Task:
    """Read and check what a verb was given, before anything runs."""
    check_metric(metric)
    places, heads = read_places(model, streams, layers)
    pairs = read_pairs(model, clean, corrupted, align=align, groups=groups)
    tokens = _tokens(model, pairs, answers) if isinstance(metric, str) else None
    measure: Metric
    named: str
    if isinstance(metric, str):
        empty = torch.zeros(len(pairs), 2, dtype=torch.long)
        measure, named = AnswerMetric(empty if tokens is None else tokens, metric), metric
    else:
        measure, named = metric, _name(metric)
    return Task(
        model=model,
        pairs=pairs,
        metric=measure,
        named=named,
        own=isinstance(metric, str) and tokens is None,
        places=places,
        heads=heads,
        positions=read_positions(pairs, positions),
        token_budget=token_budget,
        basis=None if along is None else read_basis(model, along, places),
    )


def _tokens(model: LanguageModel, pairs: Pairs, answers: Answers | None) -> Tensor | None:
    """First tokens of the answers given, or of the prompts' own; None where those do not tell."""
    first = [two[0] for two in pairs.prompts]
    if answers is not None:
        return first_tokens(model, first, answers)
    if pairs.own_answers is None:
        return None
    tokens = first_tokens(model, first, pairs.own_answers, equal=True)
    return None if bool((tokens[:, 0] == tokens[:, 1]).any()) else tokens


def _confined(clean: Seen, corrupted: Seen, basis: Tensor) -> Seen:
    """The corrupted run's states with the clean run's part in a subspace."""
    streams: dict[Place, Tensor] = {}
    for place, own in corrupted.streams.items():
        n = min(own.shape[1], clean.streams[place].shape[1])
        here, there = own[:, -n:].detach(), clean.streams[place][:, -n:]
        q = basis.to(here)
        streams[place] = here + (there - here) @ q.T @ q
    return Seen(clean.logits, streams)


def _name(metric: Any) -> str:
    return str(
        getattr(metric, "name", None) or getattr(metric, "__name__", None) or type(metric).__name__
    )


def _plain(text: Text) -> str:
    return "" if isinstance(text, Tokenized) else getattr(text, "text", str(text))
