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


def detectable(estimate: Estimate) -> float:
    """The smallest true difference that would be found four times in five, in its own units.

    (1.96 + 0.84) standard errors, the standard error read off the 95% interval. A test that
    finds nothing says no more than that.

    >>> round(detectable(Estimate(0.0, -0.196, 0.196, 50)), 2)
    0.28
    """
    return (1.96 + 0.84) * (estimate.high - estimate.low) / (2 * 1.96)


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


def percentiles(draws: Floats, n_groups: int, level: float = 0.95) -> tuple[float, float]:
    """Expanded percentile interval of bootstrap draws over `n_groups` groups.

    Plain percentiles are too narrow by sqrt((n-1)/n) and by the normal standing for
    Student's t; taking them further out corrects both.

    Source: Hesterberg 2015, The American Statistician 69, 371.
    """
    from scipy.stats import norm, t

    n = max(n_groups, 2)
    tail = float(norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.5 + level / 2, n - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def row_draws(groups: Sequence[str], *, n_resamples: int = 1000, seed: int = 0) -> Floats:
    """How often each row is drawn when whole groups are resampled: `[row resample]`."""
    members = group_codes(groups)
    n_groups = int(members.max()) + 1
    picks = np.random.default_rng(seed).integers(0, n_groups, (n_resamples, n_groups))
    cells = picks + n_groups * np.arange(n_resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=n_groups * n_resamples)
    return counts.reshape(n_resamples, n_groups).T[members].astype(np.float64)


def wilson(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """Wilson score interval of a proportion (Wilson 1927)."""
    from scipy.stats import norm

    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0, "fraction")
    z = float(norm.ppf(0.5 + level / 2))
    p = successes / n
    low, high = _wilson_bounds(p, n, z)
    low, high = (0.0 if successes == 0 else low), (1.0 if successes == n else high)
    return Estimate(p, low, high, n, "fraction")


def group_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    groups: Sequence[str],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Interval of `statistic(row indices)` from resampling whole groups (see `percentiles`).

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
    low, high = percentiles(values, len(members), level)
    return Estimate(float(observed), low, high, len(members), unit)


def cluster_mean(
    values: Sequence[float] | Floats,
    groups: Sequence[str],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Mean over prompts with an interval that resamples groups; NaN rows do not apply.

    A rate (all values 0 or 1) gets the Wilson interval on its effective number of prompts,
    which is p(1-p) over the variance of the rate between groups, and the number of groups
    where all agree: near 0 and 1 a bootstrap is too narrow. Anything else gets the
    expanded percentile interval of a group bootstrap, and so does what has a `unit` other
    than `fraction`: a difference of rates or a KL of 0 is no rate.
    """
    x = np.asarray(values, dtype=np.float64)
    keep = ~np.isnan(x)
    x, kept = x[keep], [g for g, k in zip(groups, keep, strict=True) if k]
    if x.size == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, unit)
    code = group_codes(kept)
    sums: Floats = np.bincount(code, weights=x).astype(np.float64)
    sizes = np.bincount(code).astype(np.float64)
    if unit in ("", "fraction") and np.isin(x, (0.0, 1.0)).all():
        low, high = _rate_interval(sums, sizes, level)
        return Estimate(float(x.mean()), low, high, len(sums), unit)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(sums), (n_resamples, len(sums)))
    draws = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = percentiles(draws, len(sums), level)
    return Estimate(float(x.mean()), low, high, len(sums), unit)


def _rate_interval(sums: Floats, sizes: Floats, level: float) -> tuple[float, float]:
    """Wilson interval of a clustered rate, with Student's t on the groups for the normal."""
    from scipy.stats import t

    n_groups, n = len(sums), sizes.sum()
    p = sums.sum() / n
    if p in (0.0, 1.0) or n_groups == 1:
        bound = wilson(round(p * n_groups), n_groups, level=level)
        return bound.low, bound.high
    between = ((sums - p * sizes) ** 2).sum() / n**2 * n_groups / (n_groups - 1)
    effective = n if between == 0 else min(n, p * (1 - p) / between)
    return _wilson_bounds(p, effective, float(t.ppf(0.5 + level / 2, n_groups - 1)))


def _wilson_bounds(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return float(centre - half), float(centre + half)


def permute_labels(
    labels: Sequence[int] | NDArray[Any],
    groups: Sequence[str],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Labels exchanged as the null hypothesis allows.

    Within each group that holds both labels (a pair); the groups of one label exchange it
    among themselves, whole, so prompts that belong together keep one label.
    """
    return permutations(labels, groups, 1, rng)[:, 0]


def permutations(
    labels: Sequence[int] | NDArray[Any],
    groups: Sequence[str],
    n: int,
    rng: np.random.Generator,
    *,
    within: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """`n` columns of exchanged labels, `[row n]`, each as by `permute_labels`.

    Args:
        labels: 1 or 0 for each row.
        groups: what must not be split.
        n: columns.
        rng: the source of chance.
        within: a number for each row, constant in a group, such as its fold; groups of one
            label exchange it only with groups of the same number.
    """
    y = np.asarray(labels).astype(np.int64)
    code = group_codes(groups)
    first = np.unique(code, return_index=True)[1]
    held = np.bincount(code, weights=y)
    size = np.bincount(code)
    mixed = (held > 0) & (held < size)
    out = _shuffled(y, code, n, rng)
    stratum = np.zeros(len(first), np.int64) if within is None else np.asarray(within)[first]
    sides = _shuffled(y[first[~mixed]], stratum[~mixed], n, rng)
    whole = np.zeros((len(first), n), dtype=np.int64)
    whole[~mixed] = sides
    pure = ~mixed[code]
    out[pure] = whole[code[pure]]
    return out


def _shuffled(
    values: NDArray[np.int64], stratum: NDArray[np.int64], n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`n` columns of the values, each shuffled within strata."""
    order = np.argsort(stratum[:, None] + rng.random((len(values), n)), axis=0)
    out = np.empty((len(values), n), dtype=np.int64)
    sorted_values = values[np.argsort(stratum, kind="stable")]
    np.put_along_axis(out, order, sorted_values[:, None], axis=0)
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
    """(train rows, test rows) of folds that never split a group and balance the labels.

    Groups go, largest first and in seeded order among equals, to the fold that has least of
    what they bring. The order of rows does not matter. There are no more folds than groups
    that hold either label.
    """
    y = np.asarray(labels).astype(np.int64)
    code = group_codes(groups)
    content = np.stack([np.bincount(code, weights=y == side) for side in (0, 1)], 1)
    n = max(2, min(n_folds, *(int(k) for k in (content > 0).sum(0))))
    share = content / np.maximum(content.sum(0), 1)
    order = np.random.default_rng(seed).permutation(len(content))
    order = order[np.argsort(-content[order].sum(1), kind="stable")]
    held = np.zeros((n, 2))
    fold_of = np.zeros(len(content), dtype=np.int64)
    for group in order:
        # Less of the labels that this group brings, then fewer prompts in all.
        cost = held @ share[group] + 1e-6 * held.sum(1)
        fold = int(cost.argmin())
        fold_of[group] = fold
        held[fold] += content[group] / max(content.sum(), 1)
    fold_of_row = fold_of[code]
    return [(np.flatnonzero(fold_of_row != f), np.flatnonzero(fold_of_row == f)) for f in range(n)]


def group_codes(groups: Sequence[str]) -> NDArray[np.int64]:
    """Each row's group as a number, by the groups' names."""
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def _members(groups: Sequence[str]) -> list[NDArray[np.int64]]:
    """The rows of each group, groups by name."""
    code = group_codes(groups)
    order = np.argsort(code, kind="stable")
    return list(np.split(order, np.flatnonzero(np.diff(code[order])) + 1))
