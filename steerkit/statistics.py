"""Intervals and nulls. No number without them: every score carries what these return.

Intervals resample groups (pairs, templates), never single prompts of a group, and nulls
are what the same procedure gives when there is nothing to find.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval. `n` counts independent groups."""

    value: float
    low: float
    high: float
    n: int
    unit: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Null:
    """What the same procedure gives when there is nothing to find.

    `p` = (1 + draws at least as extreme as the observed value) / (1 + draws).
    """

    name: str
    mean: float
    q95: float
    maximum: float
    p: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def null(name: str, observed: float, draws: Sequence[float] | Floats) -> Null:
    """Summarise null draws against an observed value; large values are extreme."""
    values = np.asarray(draws, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return Null(name, float("nan"), float("nan"), float("nan"), float("nan"), 0)
    p = (1 + int((values >= observed - 1e-12).sum())) / (1 + values.size)
    return Null(
        name,
        float(values.mean()),
        float(np.quantile(values, 0.95)),
        float(values.max()),
        float(p),
        int(values.size),
    )


def auc(scores: Sequence[float] | Floats, labels: Sequence[int] | NDArray[Any]) -> float:
    """Area under the ROC curve: P(positive scores above negative), ties counted half.

    NaN when a class is missing.

    >>> auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    """
    from scipy.stats import rankdata

    s = np.asarray(scores, dtype=np.float64)
    y = np.asarray(labels).astype(bool)
    n_pos, n_neg = int(y.sum()), int((~y).sum())
    if n_pos == 0 or n_neg == 0:
        return float("nan")
    return float((rankdata(s)[y].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def wilson(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """Wilson score interval of a proportion (Wilson 1927)."""
    from scipy.stats import norm

    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0, "fraction")
    z = float(norm.ppf(0.5 + level / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Estimate(p, float(low), float(high), n, "fraction")


def group_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    groups: Sequence[str],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Percentile interval of `statistic(row indices)`, resampling whole groups.

    `statistic` is called with the rows of the drawn groups, repeats included; pass one that
    reruns the whole chain (fit, choose, score) to have selection inside the interval.
    """
    members = _members(groups)
    rng = np.random.default_rng(seed)
    everything = np.arange(len(groups))
    draws = []
    for _ in range(n_resamples):
        picked = rng.integers(0, len(members), len(members))
        draws.append(statistic(np.concatenate([members[i] for i in picked])))
    values = np.asarray(draws, dtype=np.float64)
    values = values[~np.isnan(values)]
    observed = statistic(everything)
    if values.size == 0:
        return Estimate(observed, float("nan"), float("nan"), len(members), unit)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(observed), float(low), float(high), len(members), unit)


def cluster_mean(
    values: Sequence[float] | Floats,
    groups: Sequence[str],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Mean over prompts with a group-bootstrap interval; NaN rows do not apply.

    A rate (all values 0 or 1) whose every group agrees has a degenerate bootstrap, so its
    interval is the Wilson interval on the number of groups: never narrower than honest.
    """
    x = np.asarray(values, dtype=np.float64)
    keep = ~np.isnan(x)
    x, kept = x[keep], [g for g, k in zip(groups, keep, strict=True) if k]
    if x.size == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, unit)
    index = {g: i for i, g in enumerate(dict.fromkeys(kept))}
    code = np.array([index[g] for g in kept])
    sums = np.bincount(code, weights=x)
    sizes = np.bincount(code).astype(np.float64)
    if np.isin(x, (0.0, 1.0)).all() and (x == x[0]).all():
        bound = wilson(int(x[0]) * len(index), len(index), level=level)
        return Estimate(float(x.mean()), bound.low, bound.high, len(index), unit)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(index), (n_resamples, len(index)))
    draws = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(x.mean()), float(low), float(high), len(index), unit)


def permute_labels(
    labels: Sequence[int] | NDArray[Any],
    groups: Sequence[str],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Labels exchanged as the null hypothesis allows.

    Within groups where every group holds both labels (pairs); otherwise across groups,
    moving whole groups of one label and one size together.
    """
    y = np.asarray(labels).astype(np.int64)
    members = _members(groups)
    if all(len(set(y[m])) == 2 for m in members):
        out = y.copy()
        for m in members:
            out[m] = rng.permutation(y[m])
        return out
    if any(len(set(y[m])) == 2 for m in members):
        return rng.permutation(y)
    out = y.copy()
    for size in {len(m) for m in members}:
        same = [m for m in members if len(m) == size]
        for m, source in zip(same, rng.permutation(len(same)), strict=True):
            out[m] = y[same[source]]
    return out


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (family-wise error rate), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def grouped_folds(
    labels: Sequence[int] | NDArray[Any], groups: Sequence[str], *, n_folds: int = 5, seed: int = 0
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(train rows, test rows) of folds that never split a group and balance the labels."""
    from sklearn.model_selection import StratifiedGroupKFold

    y = np.asarray(labels)
    code = np.unique(np.asarray(groups), return_inverse=True)[1]
    n_groups = int(code.max()) + 1
    n = max(2, min(n_folds, n_groups, int(np.bincount(y.astype(int), minlength=2).min())))
    folds = StratifiedGroupKFold(n_splits=n, shuffle=True, random_state=seed)
    return [(a, b) for a, b in folds.split(np.zeros((len(y), 1)), y, code)]


def _members(groups: Sequence[str]) -> list[NDArray[np.int64]]:
    index: dict[str, list[int]] = {}
    for i, g in enumerate(groups):
        index.setdefault(g, []).append(i)
    return [np.array(rows) for rows in index.values()]
