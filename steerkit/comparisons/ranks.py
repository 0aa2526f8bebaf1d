"""Spearman's correlation over few units, with its exact permutation distribution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerkit.errors import MethodError
from steerkit.statistics import Estimate, Floats

EXACT = 13
"""Units up to which every permutation counts; beyond it, `n_draws` random ones."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation over units, such as domains.

    Attributes:
        value: with a 95% interval, on Fisher's scale.
        p: two-sided, the fraction of permutations at least as extreme.
        exact: whether all permutations were counted.
        leave_one_out: the correlation without each unit, in their order.
    """

    value: Estimate
    p: float
    exact: bool
    leave_one_out: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "value": self.value.to_json(),
            "p": self.p,
            "exact": self.exact,
            "leave_one_out": list(self.leave_one_out),
        }


def rank_correlation(
    x: Sequence[float] | Floats,
    y: Sequence[float] | Floats,
    *,
    n_draws: int = 9999,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's correlation of one pair of values a unit; ties get mean ranks.

    Rows that share a unit must be averaged first: 2,500 rows of 10 domains are 10 units. The
    interval is tanh(atanh r +- t sqrt((1 + r^2/2) / (n - 3))), t on n - 2 degrees of freedom; up to
    13 units p counts all permutations.

    Raises:
        MethodError: fewer than four units, other lengths, or values that are not finite.

    Source: Spearman 1904; interval: Bonett and Wright 2000 (Psychometrika 65, 23).

    >>> rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]).p  # 2 of 24 permutations
    0.08333333333333333
    """
    from scipy.stats import rankdata, t

    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    n = len(a)
    if a.shape != b.shape or a.ndim != 1 or n < 4 or not np.isfinite([a, b]).all():
        raise MethodError(
            f"a rank correlation takes two finite values for each of at least 4 units; got "
            f"{a.shape} and {b.shape}"
        )
    first, second = rankdata(a), rankdata(b)
    r = _pearson(first, second)
    exact = n <= EXACT
    if np.isnan(r):
        p, low, high = 1.0, -1.0, 1.0
    else:
        p = _exact(first, second) if exact else _drawn(first, second, n_draws, seed)
        z, r_in = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), min(abs(r), 1.0)
        half = float(t.ppf(0.975, n - 2)) * float(np.sqrt((1 + r_in**2 / 2) / (n - 3)))
        low, high = float(np.tanh(z - half)), float(np.tanh(z + half))
        # Perfect order in few units is no proof of perfect order.
        if r_in > 1 - 1e-9:
            bound = float(np.tanh(np.arctanh(1 - 2 / n) - half))
            low, high = (bound, 1.0) if r > 0 else (-1.0, -bound)
    kept = (np.arange(n) != i for i in range(n))
    without = tuple(_pearson(rankdata(a[k]), rankdata(b[k])) for k in kept)
    return RankCorrelation(Estimate(r, low, high, n, "Spearman"), p, exact, without)


def _pearson(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip(a @ b / size, -1, 1)) if size > 0 else float("nan")


def _exact(a: Floats, b: Floats) -> float:
    """Two-sided p over all n! permutations, by counting sums over subsets.

    After k places are filled by a subset of the other ranks, only the subset and the sum so far
    matter. Ranks are halves at most, so four times a product is whole.
    """
    n = len(a)
    u, v = (np.rint(2 * r).astype(np.int64) for r in (a, b))
    top = int(np.sort(u) @ np.sort(v))
    counts: dict[int, Floats] = {0: np.eye(1, top + 1).ravel()}
    for place in range(n):
        grown: dict[int, Floats] = {}
        for taken, sums in counts.items():
            for j in range(n):
                if not taken >> j & 1:
                    step = int(u[place] * v[j])
                    into = grown.setdefault(taken | 1 << j, np.zeros(top + 1))
                    into[step:] += sums[: top + 1 - step]
        counts = grown
    sums = next(iter(counts.values()))
    middle = float(u.sum()) * float(v.sum()) / n
    away = np.abs(np.arange(top + 1) - middle) >= abs(float(u @ v) - middle) - 1e-9
    return float(sums[away].sum() / sums.sum())


def _drawn(a: Floats, b: Floats, n_draws: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((n_draws, len(a))), axis=1)
    centred = b - b.mean()
    away = np.abs(centred[order] @ a) >= abs(centred @ a) - 1e-9
    return float((1 + away.sum()) / (1 + n_draws))
