"""What a search must not break: KL per token on prompts that are to be left alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from steerkit.batch import Tokenized
from steerkit.errors import MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.registry import suggest
from steerkit.scoring import TOKEN_BUDGET, kl_by_slot, with_own_answers
from steerkit.statistics import Estimate, Floats, cluster_mean

NAMES = ("kl",)


@dataclass(frozen=True)
class Damage:
    """What one program does to the guarded prompts.

    Attributes:
        mean: mean over prompts of the mean KL per answer token, in nats, with its interval.
        p95: 95th percentile over all answer tokens of all prompts.
    """

    mean: Estimate
    p95: float


@dataclass(frozen=True)
class KLGuard:
    """KL(plain || steered) per token over the whole of the plain model's own answers.

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
    name: str = "kl"

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
    ) -> "KLGuard":
        """Let the plain model answer, and guard those answers."""
        said = model.generate(prompts, max_new_tokens=max_new_tokens, token_budget=token_budget)
        return cls(tuple(with_own_answers(said)), tuple(groups), limit, token_budget)

    def only(self, indices: Sequence[int]) -> "KLGuard":
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
        """KL at every token, `[slot][prompt][token]`."""
        found = kl_by_slot(plain, view, self.items, slots, token_budget=self.token_budget)
        return [[x.numpy() for x in row] for row in found]

    def measure(
        self, plain: Model, view: Model, slots: Sequence[int], *, seed: int = 0
    ) -> list[Damage]:
        """The damage of each slot."""
        return [damage(row, self.groups, seed=seed) for row in self.tokens(plain, view, slots)]


def damage(tokens: Sequence[Floats], groups: Sequence[str], *, seed: int = 0) -> Damage:
    """Summarise KL at every token of every prompt; a prompt without answer tokens drops out."""
    means = [float(x.mean()) if len(x) else float("nan") for x in tokens]
    pooled = np.concatenate([*tokens, np.empty(0)])
    p95 = float(np.quantile(pooled, 0.95)) if len(pooled) else float("nan")
    return Damage(cluster_mean(means, groups, seed=seed, unit="nats/token"), p95)


def check_guard(name: str | None, limit: float) -> None:
    """Refuse an unknown guard or a limit that is not a positive number."""
    if name is not None and name not in NAMES:
        raise MethodError(f"no guard named '{name}'; {suggest(name, NAMES)}, or None for no guard")
    if name is not None and not limit > 0:
        raise MethodError(f"the guard's limit is a positive number of nats per token; got {limit}")
