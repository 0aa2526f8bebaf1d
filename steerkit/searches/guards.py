"""What a search must not break, measured on prompts that are to be left alone.

`kl`: KL(plain || steered) per token. `perplexity`: how much less likely the plain model's own
answers (or given texts) become, per token. `accuracy`: the share of right answers that is lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from steerkit.batch import Tokenized
from steerkit.errors import MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.registry import suggest
from steerkit.scoring import (
    TOKEN_BUDGET,
    answer_log_probs,
    answer_log_probs_by_slot,
    kl_by_slot,
    with_own_answers,
)
from steerkit.statistics import Estimate, Floats, cluster_mean

LIMITS = {"kl": 0.1, "perplexity": 0.1, "accuracy": 0.02}
"""What each guard accepts by default, in its own unit."""
NAMES = tuple(LIMITS)


@dataclass(frozen=True)
class Damage:
    """What one program does to the guarded prompts.

    Attributes:
        mean: mean over prompts, with its interval.
        p95: 95th percentile over all answer tokens of all prompts; over prompts where a guard
            has one value a prompt.
    """

    mean: Estimate
    p95: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"mean": self.mean.to_json(), "p95": self.p95}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Damage":
        """The inverse of `to_json`."""
        return cls(Estimate(**data["mean"]), float(data["p95"]))


class Guard(Protocol):
    """Damage as a number that stays at or below a limit; 0 where nothing changed."""

    @property
    def name(self) -> str:
        """How it is called in tables."""
        ...

    @property
    def limit(self) -> float:
        """Largest mean that is accepted."""
        ...

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of its prompts."""
        ...

    def only(self, indices: Sequence[int]) -> Self:
        """The same guard on some of its prompts."""
        ...

    def meets(self, plain: Model, view: Model, slots: Sequence[int]) -> list[bool]:
        """Whether the mean of each slot is within the limit, without intervals."""
        ...

    def measure(
        self, plain: Model, view: Model, slots: Sequence[int], *, seed: int = 0
    ) -> list[Damage]:
        """The damage of each slot."""
        ...


@dataclass(frozen=True)
class TokenGuard:
    """A guard with a value at every token of the guarded answers.

    Attributes:
        items: prompts with the plain model's answers, as tokens.
        groups: the prompts' groups.
        limit: largest mean that is accepted, in nats a token.
        token_budget: padded tokens a forward pass.
    """

    items: tuple[Tokenized, ...]
    groups: tuple[str, ...]
    limit: float
    token_budget: int = TOKEN_BUDGET
    name: str = ""

    @classmethod
    def on(
        cls,
        model: Model,
        prompts: Sequence[Prompt],
        groups: Sequence[str],
        *,
        limit: float,
        max_new_tokens: int,
        token_budget: int = TOKEN_BUDGET,
    ) -> Self:
        """Let the plain model answer, and guard those answers."""
        said = model.generate(prompts, max_new_tokens=max_new_tokens, token_budget=token_budget)
        return cls(tuple(with_own_answers(said)), tuple(groups), limit, token_budget)

    def only(self, indices: Sequence[int]) -> Self:
        """The same guard on some of its prompts."""
        return replace(
            self,
            items=tuple(self.items[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices),
        )

    def meets(self, plain: Model, view: Model, slots: Sequence[int]) -> list[bool]:
        """Whether the mean of each slot is within the limit, without intervals."""
        means = [
            np.nanmean([x.mean() if len(x) else np.nan for x in row])
            for row in self.tokens(plain, view, slots)
        ]
        return [bool(mean <= self.limit) for mean in means]

    def tokens(self, plain: Model, view: Model, slots: Sequence[int]) -> list[list[Floats]]:
        """The value at every token, `[slot][prompt][token]`."""
        raise NotImplementedError

    def measure(
        self, plain: Model, view: Model, slots: Sequence[int], *, seed: int = 0
    ) -> list[Damage]:
        """The damage of each slot."""
        return [damage(row, self.groups, seed=seed) for row in self.tokens(plain, view, slots)]


@dataclass(frozen=True)
class KLGuard(TokenGuard):
    """KL(plain || steered) per token over the whole of the plain model's own answers."""

    name: str = "kl"

    def tokens(self, plain: Model, view: Model, slots: Sequence[int]) -> list[list[Floats]]:
        """KL at every token, `[slot][prompt][token]`."""
        found = kl_by_slot(plain, view, self.items, slots, token_budget=self.token_budget)
        return [[x.numpy() for x in row] for row in found]


@dataclass(frozen=True)
class PerplexityGuard(TokenGuard):
    """log p(token) of the plain model minus that of the steered one, on the same answers.

    Its exponential is the ratio of the perplexities. Unlike KL it sees only the tokens that
    were said, and may be below 0.
    """

    name: str = "perplexity"

    def tokens(self, plain: Model, view: Model, slots: Sequence[int]) -> list[list[Floats]]:
        """Loss of log-probability at every token, `[slot][prompt][token]`, in nats."""
        budget = self.token_budget
        before = answer_log_probs(plain, self.items, token_budget=budget)
        after = answer_log_probs_by_slot(view, self.items, slots, token_budget=budget)
        return [[(a - b).numpy() for a, b in zip(before, row, strict=True)] for row in after]


def damage(tokens: Sequence[Floats], groups: Sequence[str], *, seed: int = 0) -> Damage:
    """Summarise values at every token of every prompt; a prompt without tokens drops out."""
    means = [float(x.mean()) if len(x) else float("nan") for x in tokens]
    pooled = np.concatenate([*tokens, np.empty(0)])
    p95 = float(np.quantile(pooled, 0.95)) if len(pooled) else float("nan")
    return Damage(cluster_mean(means, groups, seed=seed, unit="nats/token"), p95)


def check_guard(name: str | None, limit: float) -> None:
    """Refuse an unknown guard or a limit that is not a positive number."""
    if name is not None and name not in NAMES:
        raise MethodError(f"no guard named '{name}'; {suggest(name, NAMES)}, or None for no guard")
    if name is not None and not limit > 0:
        unit = "fraction of answers" if name == "accuracy" else "number of nats per token"
        raise MethodError(f"the guard's limit is a positive {unit}; got {limit}")
