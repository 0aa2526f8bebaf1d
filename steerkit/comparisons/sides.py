"""A per-token value on one side of a contrast less that on the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerkit.comparisons.forced import ForcedTokens
from steerkit.statistics import (
    Estimate,
    Floats,
    Null,
    cluster_mean,
    null,
    percentiles,
    permutations,
    row_draws,
)

N_PERMUTATIONS = 999


@dataclass(frozen=True)
class SideShift:
    """A mean over tokens on a contrast's positive side less that on its negative side.

    Attributes:
        positive: mean over its tokens, such as the fraction shifted.
        negative: likewise.
        difference: with an interval that resamples groups.
        null: |difference| beside that with sides permuted, as pairs and groups allow.
    """

    positive: Estimate
    negative: Estimate
    difference: Estimate
    null: Null

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {k: getattr(self, k).to_json() for k in self.__dataclass_fields__}


def between_sides(
    tokens: ForcedTokens,
    values: Floats,
    sides: Sequence[int],
    groups: Sequence[str],
    *,
    unit: str,
    seed: int = 0,
) -> SideShift:
    """Compare the sides of a contrast; `sides` and `groups` are one a prompt.

    Either side may be the higher one, so the null is that of the absolute difference.
    """
    n_prompts = len(sides)
    sums = np.bincount(tokens.prompt, weights=values, minlength=n_prompts)
    sizes = np.bincount(tokens.prompt, minlength=n_prompts).astype(np.float64)
    label = np.array(sides, np.float64)

    def gap(of: Floats, counts: Floats) -> Floats:
        """Difference of means in each column of labels and of counts."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = [
                (sums[:, None] * m * counts).sum(0) / (sizes[:, None] * m * counts).sum(0)
                for m in (of, 1 - of)
            ]
        return np.asarray(means[0] - means[1])

    one = np.ones((n_prompts, 1))
    observed = float(gap(label[:, None], one)[0])
    drawn = gap(label[:, None], row_draws(groups, seed=seed))
    permuted = permutations(label, groups, N_PERMUTATIONS, np.random.default_rng(seed))
    chance = gap(permuted.astype(np.float64), one)
    n = len(set(groups))
    low, high = percentiles(drawn[~np.isnan(drawn)], n)
    mine = label[tokens.prompt]
    positive, negative = (
        cluster_mean(
            values[mine == k],
            [g for g, m in zip(tokens.groups, mine, strict=True) if m == k],
            unit=unit,
        )
        for k in (1, 0)
    )
    difference = Estimate(observed, low, high, n, f"difference, {unit}")
    chances = null("sides permuted, absolute", abs(observed), np.abs(chance))
    return SideShift(positive, negative, difference, chances)
