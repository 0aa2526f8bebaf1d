"""Intervals and nulls for statistics of pairs of rows, where the bootstrap is unsound.

A bootstrap sample holds rows twice. Two copies of a row are each other's nearest neighbours in
both models, so CKA, RSA and Procrustes of a bootstrap sample are inflated: the draws lie above
the value itself. The jackknife leaves groups out and repeats none.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from steerkit.statistics import Estimate, Floats, group_codes

Rows = NDArray[np.int64]

BLOCKS = 50
"""Groups are left out in at most this many blocks."""
_ONE = 1 - 1e-9


def jackknife(
    statistic: Callable[[Rows], Floats],
    groups: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
    n_blocks: int = BLOCKS,
    unit: str = "",
) -> list[Estimate]:
    """Statistics in [-1, 1], bias-corrected, with intervals, by leaving out groups.

    Args:
        statistic: rows in, `[value]` out; reruns everything that depends on the rows.
        groups: what is left out together, one a row; blocks of groups where there are many.
        level: of the interval.
        seed: of the assignment of groups to blocks.
        n_blocks: at most so many blocks.
        unit: of the statistics.

    Returns:
        One estimate a statistic. On Fisher's scale z = atanh(value), with z_b what is left
        without block b: the estimate is B z - (B-1) mean z_b, the interval that +- t sqrt((B-1)/B
        sum (z_b - mean z)^2) with Student's t on B - 1 degrees of freedom; both are put back by
        tanh. A statistic that is 1 whatever is left out is 1 [1, 1]. NaN with fewer than two
        groups. The correction is small for CKA; without it the intervals of Procrustes, whose
        best rotation is fitted to the rows, would cover the truth in a fifth of cases.

    Source: Quenouille 1956; Tukey 1958; Arvesen 1969 (Annals of Mathematical Statistics 40) for
        functions of U-statistics, which CKA is.
    """
    from scipy.stats import t

    code = group_codes(groups)
    everything = np.arange(len(code))
    observed = np.asarray(statistic(everything), dtype=np.float64)
    n_groups = int(code.max()) + 1
    n = min(n_groups, n_blocks)
    if n < 2:
        return [Estimate(float(v), np.nan, np.nan, n_groups, unit) for v in observed]
    block = np.random.default_rng(seed).permutation(n_groups) % n
    left = np.stack([statistic(everything[block[code] != b]) for b in range(n)])
    z, around = np.arctanh(np.clip(observed, -_ONE, _ONE)), np.arctanh(np.clip(left, -_ONE, _ONE))
    spread = np.sqrt((n - 1) / n * ((around - around.mean(0)) ** 2).sum(0))
    half = float(t.ppf(0.5 + level / 2, n - 1)) * spread
    centre = n * z - (n - 1) * around.mean(0)
    exact = (observed >= _ONE) & (left >= _ONE).all(0)
    bounds = np.stack([np.tanh(centre + k * half) for k in (0, -1, 1)])
    bounds[:, exact] = 1.0
    return [Estimate(value, low, high, n_groups, unit) for value, low, high in bounds.T.tolist()]


def repaired(groups: Sequence[str], rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows of one side, and rows of other groups to go with them: nothing is left in common.

    Groups exchange as wholes, so that prompts that are alike do not stand in for each other;
    where two groups differ in size, as many rows are used as both have, so none occurs twice.
    """
    code = group_codes(groups)
    members = [np.flatnonzero(code == g) for g in range(int(code.max()) + 1)]
    left, right = [], []
    for g, h in enumerate(rng.permutation(len(members))):
        ours, theirs = rng.permutation(members[g]), rng.permutation(members[int(h)])
        size = min(len(ours), len(theirs))
        left.append(ours[:size])
        right.append(theirs[:size])
    return np.concatenate(left), np.concatenate(right)
