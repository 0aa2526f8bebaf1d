"""What an answer amounts to: refused, right, or neither; and rates of that.

A model that deflects or makes things up does not refuse: with right answers to compare with,
what is neither refused nor right is seen. Source of the three-way outcome: arXiv:2603.18280,
whose propaganda score needs a judge; `neither` needs right answers alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerkit.comparisons.changes import sign_flips
from steerkit.evaluations.differences import newcombe
from steerkit.prompts import Prompt, groups_of
from steerkit.protocols import Completion
from steerkit.statistics import Estimate, Floats, cluster_mean
from steerkit.suites.subject import Subject

NAMES = ("refused", "right", "neither")
"""What an answer may amount to."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Outcome of each prompt under one arm.

    Attributes:
        refused: `[prompt]`, 1 where the answer refuses.
        right: `[prompt]`, 1 where the answer is right, NaN without a reference.
        groups: of each prompt.
    """

    refused: Floats
    right: Floats
    groups: tuple[str, ...]

    @classmethod
    def of(cls, subject: Subject, said: Sequence[Completion]) -> "Outcomes":
        """Judge answers: by the subject's matcher, and by its scorer against each reference."""
        refused = [float(subject.matcher(one.text)) for one in said]
        right = [
            subject.right(one.text, one.prompt.answer) if one.prompt.answer else np.nan
            for one in said
        ]
        return cls(np.array(refused), np.array(right), groups_of([one.prompt for one in said]))

    @property
    def neither(self) -> Floats:
        """`[prompt]`, 1 where an answer neither refuses nor is right; NaN without a reference."""
        return np.where(np.isnan(self.right), np.nan, (1 - self.refused) * (1 - self.right))

    def rate(self, name: str, *, seed: int = 0) -> Estimate:
        """The rate of `refused`, `right` or `neither`."""
        return cluster_mean(getattr(self, name), self.groups, unit="fraction", seed=seed)


def outcomes(subject: Subject, prompts: Sequence[Prompt], arm: str) -> Outcomes:
    """Outcomes of an arm's greedy answers."""
    return Outcomes.of(subject, subject.answers(prompts, arm))


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Difference of two rates, with an interval from theirs.

    Bootstrap intervals have no width where one side always and the other never does it. Where
    groups stand on both sides the sides go together, and this interval is on the wide side.
    """
    found = newcombe(one.value - other.value, one, other)
    low, high = max(-1.0, found.low), min(1.0, found.high)
    return Estimate(found.value, low, high, found.n, "difference of rates")


FLIPS = 19_999
"""Enough that the smallest p survives the correction over the outcomes of a report's arms."""


def paired_p(
    values: Floats, groups: Sequence[str], *, n: int | None = None, seed: int = 0
) -> float:
    """Two-sided p that the mean difference is 0, by turning the sign of whole groups."""
    keep = ~np.isnan(values)
    kept = [g for g, k in zip(groups, keep, strict=True) if k]
    return sign_flips(values[keep], kept, n_draws=n or FLIPS, seed=seed)
