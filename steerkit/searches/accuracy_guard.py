"""A guard on right answers: what steering makes of prompts whose answer is known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from steerkit.errors import MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.searches.guards import Damage
from steerkit.searches.objectives import Unanswered
from steerkit.statistics import Floats, cluster_mean


@dataclass(frozen=True)
class AccuracyGuard:
    """Share of prompts rightly answered by the plain model less that of the steered one.

    A prompt counts by the difference of the two, so one that steering mends makes up for one
    that it breaks.

    Attributes:
        prompts: each with its `answer`.
        groups: the prompts' groups.
        limit: largest loss that is accepted, as a fraction.
        measured: what counts as not answered.
    """

    prompts: tuple[Prompt, ...]
    groups: tuple[str, ...]
    limit: float
    measured: Unanswered
    name: str = "accuracy"

    def __post_init__(self) -> None:
        missing = [p for p in self.prompts if not p.answer]
        if missing:
            raise MethodError(
                f"the guard 'accuracy' compares with each prompt's own answer, but {len(missing)} "
                f"of {len(self.prompts)} guarded prompts have none, such as "
                f"{missing[0].text[:40]!r}; give prompts an `answer`, or guard 'kl'"
            )

    def only(self, indices: Sequence[int]) -> Self:
        """The same guard on some of its prompts."""
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices),
        )

    def losses(self, plain: Model, view: Model, slots: Sequence[int]) -> Floats:
        """1 lost, 0 as before, -1 won, `[slot prompt]`."""
        before = self.measured.score(plain, self.prompts).values
        after = self.measured.score(view, self.prompts, slots).values
        found: Floats = after - before
        return found

    def meets(self, plain: Model, view: Model, slots: Sequence[int]) -> list[bool]:
        """Whether the mean of each slot is within the limit, without intervals."""
        return [bool(x.mean() <= self.limit) for x in self.losses(plain, view, slots)]

    def measure(
        self, plain: Model, view: Model, slots: Sequence[int], *, seed: int = 0
    ) -> list[Damage]:
        """The damage of each slot."""
        found = self.losses(plain, view, slots)
        means = [cluster_mean(x, self.groups, seed=seed, unit="share lost") for x in found]
        return [Damage(m, float(np.quantile(x, 0.95))) for m, x in zip(means, found, strict=True)]
