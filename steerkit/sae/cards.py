"""What a feature stands for: where it is most active, how active it is, what it promotes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.captures.job import Prompts
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.protocols import Model
from steerkit.sae.autoencoder import Autoencoder
from steerkit.sae.rows import Rows, chunks, prompts_of, token_job

BINS = 48
N_TOKENS = 10


@dataclass(frozen=True)
class Context:
    """Where a feature was most active in a prompt, with the tokens around it.

    Attributes:
        tokens: texts of the tokens shown; special ones are empty.
        activations: the feature at each of them.
        peak: which of them is the most active one of the whole prompt.
        prompt_index: of the prompt.
        position: absolute position of the peak.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int
    prompt_index: int
    position: int

    @property
    def value(self) -> float:
        """The feature's activation at the peak."""
        return self.activations[self.peak]

    def __str__(self) -> str:
        words = [token.strip() or "∅" for token in self.tokens]
        words[self.peak] = f"[[{words[self.peak]}]]"
        return f"{self.value:.3g}  {' '.join(words)}"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "tokens": list(self.tokens),
            "activations": list(self.activations),
            "peak": self.peak,
            "prompt_index": self.prompt_index,
            "position": self.position,
        }


@dataclass(frozen=True, eq=False)
class FeatureCard:
    """One feature of an SAE, as seen on some prompts.

    Attributes:
        feature: its number.
        sae: the autoencoder.
        rows: tokens seen.
        active: tokens at which it was on.
        mean_active: its mean there.
        maximum: its largest activation.
        edges: `[bin + 1]`, of the histogram of activations above 0.
        counts: `[bin]`.
        contexts: one a prompt, the most active first.
        towards: tokens whose logits its decoder row raises most, with how the unembedding
            reads the row: comparable within this feature only.
        away: tokens whose logits it lowers most.
    """

    feature: int
    sae: Autoencoder
    rows: int
    active: int
    mean_active: float
    maximum: float
    edges: Float[Tensor, "bin_1"]
    counts: Int[Tensor, "bin"]
    contexts: tuple[Context, ...]
    towards: tuple[tuple[str, float], ...]
    away: tuple[tuple[str, float], ...]

    @property
    def density(self) -> float:
        """Fraction of tokens at which it is on."""
        return self.active / max(self.rows, 1)

    def direction(self, concept: str = "") -> Direction:
        """The decoder row; one strength writes what the feature writes at its mean activation.

        Raises:
            DirectionError: it was never on.
        """
        return self.sae.direction(self.feature, self.mean_active, concept=concept)

    def summary(self) -> str:
        """Numbers, contexts and tokens as text."""
        return "\n".join(
            [
                f"feature {self.feature} of {self.sae.name} at {self.sae.site}: on at "
                f"{self.density:.2%} of {self.rows} tokens, mean {self.mean_active:.3g}, "
                f"largest {self.maximum:.3g}",
                f"promotes {', '.join(t for t, _ in self.towards)}",
                f"suppresses {', '.join(t for t, _ in self.away)}",
                *(str(context) for context in self.contexts),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "feature": self.feature,
            "sae": self.sae.name,
            "site": str(self.sae.site),
            "rows": self.rows,
            "density": self.density,
            "mean_active": self.mean_active,
            "maximum": self.maximum,
            "histogram": {"edges": self.edges.tolist(), "counts": self.counts.tolist()},
            "contexts": [context.to_json() for context in self.contexts],
            "towards": [list(pair) for pair in self.towards],
            "away": [list(pair) for pair in self.away],
        }

    def __repr__(self) -> str:
        return f"FeatureCard({self.summary().splitlines()[0]})"

    def _repr_html_(self) -> str:
        from steerkit.plotting.features import card_html

        return card_html(self)


def feature_cards(
    sae: Autoencoder,
    model: Model,
    prompts: Prompts,
    features: int | Sequence[int],
    *,
    n_contexts: int = 8,
    window: int = 12,
    exclude_bos: bool = True,
    token_budget: int = 4096,
) -> tuple[FeatureCard, ...]:
    """A card for each feature, from one pass over the prompts and one over the best of them.

    Memory does not grow with the number of tokens: histograms widen as larger values come, and
    only the most active prompts are remembered.

    Args:
        sae: the autoencoder.
        model: the model to run.
        prompts: what to look through.
        features: their numbers.
        n_contexts: prompts shown for each, at most; a prompt is shown once.
        window: tokens shown before and after the peak.
        exclude_bos: leave a special token that stands first out.
        token_budget: padded tokens a batch may hold.

    Raises:
        ModelError: no such feature.
        MethodError: no features, or counts out of range.
        DirectionError: another model than the one the SAE was loaded for.
    """
    chosen = [features] if isinstance(features, int) else [int(i) for i in features]
    if not chosen or n_contexts < 1 or window < 0:
        raise MethodError("cards need at least one feature, one context, and a window from 0")
    sae.require(*chosen)
    seen = [_Seen(n_contexts) for _ in chosen]
    rows = 0
    for part in chunks(sae, model, prompts, exclude_bos=exclude_bos, token_budget=token_budget):
        values = sae.encode(part.values)[:, chosen]
        rows += len(values)
        for column, one in zip(values.unbind(1), seen, strict=True):
            one.add(column, part)
    read = prompts_of(model, prompts)
    found = sorted({p for one in seen for p in one.best})
    shown: dict[int, tuple[list[int], list[int], Tensor]] = {}
    if found:
        job = token_job(
            sae,
            model,
            [read[p] for p in found],
            exclude_bos=exclude_bos,
            token_budget=token_budget,
        )
        for _, piece in job.pieces():
            values = sae.encode(piece.values[:, 0])[:, chosen]
            for i in piece.prompt_index.unique().tolist():
                mine = piece.prompt_index == i
                shown[found[i]] = (
                    piece.positions[mine].tolist(),
                    piece.tokens[mine].tolist(),
                    values[mine],
                )
    read_out = model.read_out(torch.stack([sae.decoder(i) for i in chosen]))
    cards = []
    for number, (feature, one) in enumerate(zip(chosen, seen, strict=True)):
        contexts = tuple(
            _context(model, prompt, position, shown[prompt], number, window)
            for prompt, (_, position) in one.ranked
        )
        towards, away = _promoted(model, read_out[number])
        cards.append(
            FeatureCard(
                feature=feature,
                sae=sae,
                rows=rows,
                active=one.active,
                mean_active=one.total / max(one.active, 1),
                maximum=one.maximum,
                edges=torch.linspace(0, one.top, BINS + 1),
                counts=one.counts.clone(),
                contexts=contexts,
                towards=towards,
                away=away,
            )
        )
    return tuple(cards)


class _Seen:
    """What is remembered of one feature while tokens stream by."""

    def __init__(self, n_contexts: int) -> None:
        self.n = n_contexts
        self.active, self.total, self.maximum = 0, 0.0, 0.0
        self.top = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.best: dict[int, tuple[float, int]] = {}

    @property
    def ranked(self) -> list[tuple[int, tuple[float, int]]]:
        """Prompts by their largest activation."""
        return sorted(self.best.items(), key=lambda item: (-item[1][0], item[0]))

    def add(self, values: Float[Tensor, "row"], part: Rows) -> None:
        on = values > 0
        if not on.any():
            return
        positive = values[on]
        self.active += len(positive)
        self.total += float(positive.double().sum())
        self.maximum = max(self.maximum, float(positive.max()))
        self._count(positive)
        prompts, inverse = part.prompt_index[on].unique(return_inverse=True)
        largest = torch.zeros(len(prompts)).scatter_reduce(0, inverse, positive, "amax")
        for i in largest.topk(min(self.n, len(prompts))).indices.tolist():
            prompt, value = int(prompts[i]), float(largest[i])
            if value > self.best.get(prompt, (0.0, 0))[0]:
                at = int((on & (part.prompt_index == prompt) & (values == largest[i])).nonzero()[0])
                self.best[prompt] = (value, int(part.positions[at]))
        self.best = dict(self.ranked[: self.n])

    def _count(self, positive: Float[Tensor, "active"]) -> None:
        """Add to the histogram; where it is too narrow, pairs of bins become one."""
        if self.top == 0:
            self.top = float(positive.max()) * (1 + 1e-6)
        while float(positive.max()) > self.top:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.cat([pairs, torch.zeros_like(pairs)])
            self.top *= 2
        self.counts += torch.histc(positive, BINS, 0, self.top).long()


def _context(
    model: Model,
    prompt: int,
    position: int,
    shown: tuple[list[int], list[int], Tensor],
    number: int,
    window: int,
) -> Context:
    positions, tokens, values = shown
    peak = positions.index(position)
    first = max(0, peak - window)
    span = slice(first, peak + window + 1)
    return Context(
        tokens=tuple(model.decode([t]) for t in tokens[span]),
        activations=tuple(values[span, number].tolist()),
        peak=peak - first,
        prompt_index=prompt,
        position=position,
    )


def _promoted(
    model: Model, read: Float[Tensor, "d_vocab"]
) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]:
    order = read.argsort(descending=True, stable=True)
    k = min(N_TOKENS, len(order) // 2)

    def named(ids: Tensor) -> tuple[tuple[str, float], ...]:
        return tuple((model.decode([int(i)]), float(read[i])) for i in ids)

    return named(order[:k]), named(order.flip(0)[:k])
