"""Changes of prompts under an intervention: their mean, whether it is chance, their ratio."""

from collections.abc import Sequence

import numpy as np

from steerkit.statistics import (
    Estimate,
    Floats,
    cluster_mean,
    group_codes,
    percentiles,
    row_draws,
)


def sign_flips(
    values: Floats, groups: Sequence[str], *, n_draws: int = 4999, seed: int = 0
) -> float:
    """Two-sided p of a mean of changes: each group's sum keeps or loses its sign.

    Every way to flip up to 12 groups is counted; of more groups, random ways are drawn.

    Source: Fisher 1935 (The Design of Experiments).
    """
    sums = np.bincount(group_codes(groups), weights=values)
    sums = sums[sums != 0]  # nothing to flip
    if len(sums) == 0:
        return 1.0
    if len(sums) <= 12:
        ways = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float((np.abs((1 - 2 * ways) @ sums) >= abs(sums.sum()) - 1e-9).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (n_draws, len(sums)))
    return float((1 + (np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).sum()) / (1 + n_draws))


def mean_change(values: Floats, groups: Sequence[str], *, unit: str, seed: int) -> Estimate:
    """Mean change; where prompts change all the same way or not at all, with a rate's interval.

    A bootstrap of changes that are all 1 would have no width.
    """
    sign = -1.0 if values.min(initial=0) < 0 else 1.0
    if not np.isin(sign * values, (0.0, 1.0)).all():
        return cluster_mean(values, groups, unit=unit, seed=seed)
    rate = cluster_mean(sign * values + 0.0, groups, unit="fraction")
    low, high = sorted((sign * rate.low, sign * rate.high))
    return Estimate(float(values.mean()), low, high, rate.n, unit)


def ratio_of_changes(
    mine: Floats, own: Floats, groups: Sequence[str], *, told: bool, seed: int
) -> Estimate:
    """Mean effect over mean own effect, the same groups drawn for both.

    NaN, with an interval without bounds, where the own effect is not told from random directions'
    or changes sign when resampled: such a ratio says nothing (Fieller 1954).
    """
    draws = row_draws(groups, seed=seed)
    n = len(set(groups))
    below = own @ draws
    home = percentiles(below / draws.sum(0), n)
    if not told or own.mean() == 0 or home[0] <= 0 <= home[1]:
        return Estimate(float("nan"), -np.inf, np.inf, n, "fraction of own effect")
    ratios = (mine @ draws) / np.where(below == 0, np.nan, below)
    low, high = percentiles(ratios[np.isfinite(ratios)], n)
    if not mine.any():
        # No prompt changed: as many may still change elsewhere as the rate's interval allows.
        high = mean_change(mine, groups, unit="", seed=seed).high / abs(float(own.mean()))
    return Estimate(float(mine.mean() / own.mean()), low, high, n, "fraction of own effect")
