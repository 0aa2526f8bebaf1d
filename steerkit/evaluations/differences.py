"""Intervals of differences of rates."""

from collections.abc import Sequence

import numpy as np

from steerkit.statistics import Estimate, Floats, cluster_mean


def newcombe(gap: float, a: Estimate, b: Estimate, related: float = 0.0) -> Estimate:
    """Interval of a difference of rates from the intervals of both.

    gap - sqrt(u^2 - 2 r u v + v^2) with u = a - low(a), v = high(b) - b, and likewise above;
    r is how the rates go together, 0 for independent ones. Sources: Newcombe 1998, methods
    10; Zou and Donner 2008.

    >>> from steerkit.statistics import wilson
    >>> print(newcombe(56 / 70 - 48 / 80, wilson(56, 70), wilson(48, 80)))
    0.2 [0.0524, 0.334]
    """
    down, up = (a.value - a.low, b.high - b.value), (a.high - a.value, b.value - b.low)

    def width(u: float, v: float) -> float:
        return float(np.sqrt(max(u * u - 2 * related * u * v + v * v, 0.0)))

    return Estimate(gap, gap - width(*down), gap + width(*up), min(a.n, b.n), "fraction")


def related(a: Floats, b: Floats) -> float:
    """Correlation of two groups' rates over templates; 0 where one does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def paired_difference(
    values: Floats, groups: Sequence[str], *, seed: int = 0, unit: str = "difference of rates"
) -> Estimate:
    """Mean of paired differences. Of yes-or-no outcomes: the rate of gains less that of losses.

    So that prompts which all agree leave an interval as wide as their number allows. What gains
    does not lose: the two rates go together, and are not taken for independent ones.
    """
    known = values[~np.isnan(values)]
    if not np.isin(known, (-1.0, 0.0, 1.0)).all() or not len(known):
        return cluster_mean(values, groups, unit=unit, seed=seed)
    kept = [g for g, v in zip(groups, values, strict=True) if not np.isnan(v)]
    up, down = ((known == sign).astype(np.float64) for sign in (1, -1))
    gains, losses = (cluster_mean(v, kept, unit="fraction", seed=seed) for v in (up, down))
    found = newcombe(gains.value - losses.value, gains, losses, related(up, down))
    return Estimate(found.value, max(-1.0, found.low), min(1.0, found.high), found.n, unit)
