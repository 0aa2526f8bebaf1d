"""Thresholds from clean scores, what they let through, and intervals that refit them."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.statistics import (
    Estimate,
    Floats,
    cluster_mean,
    group_codes,
    percentiles,
    row_draws,
    wilson,
)


@lru_cache(maxsize=4096)
def alarm_rank(n: int, fpr: float, confidence: float | None = None) -> int | None:
    """Which of `n` clean scores, counted from the smallest, is the threshold; None if none will do.

    Without `confidence`: the least rank at which the next clean score is above with a chance of
    at most `fpr`, on average over what was drawn to calibrate on (split conformal). With it: the
    least rank whose own rate is at most `fpr` in that share of such draws (a tolerance limit:
    the rate of rank r follows Beta(n + 1 - r, r)).

    >>> alarm_rank(99, 0.01), alarm_rank(98, 0.01), alarm_rank(299, 0.01, 0.95)
    (99, None, 299)
    """
    if n < 1:
        return None
    if confidence is None:
        # Rounded first: (99 + 1) * (1 - 0.01) is a hair above 99.
        rank = ceil(round((n + 1) * (1 - fpr), 9))
        return rank if rank <= n else None
    from scipy.stats import beta

    ranks = np.arange(1, n + 1)
    enough = np.flatnonzero(beta.cdf(fpr, n + 1 - ranks, ranks) >= confidence)
    return int(ranks[enough[0]]) if len(enough) else None


def clean_needed(fpr: float, confidence: float | None = None) -> int:
    """The fewest clean scores from which a threshold of this rate can be had.

    >>> clean_needed(0.01), clean_needed(0.01, 0.95)
    (99, 299)
    """
    if confidence is None:
        return ceil(round((1 - fpr) / fpr, 9))
    return ceil(round(np.log1p(-confidence) / np.log1p(-fpr), 9))


def clean_to_bound(fpr: float) -> int:
    """The fewest clean groups without one alarm whose 95% interval ends at or below the rate.

    >>> clean_to_bound(0.01)
    381
    """
    n = max(1, floor(1.9 / fpr))
    while wilson(0, n).high > fpr:
        n += 1
    return n


def fitted_threshold(scores: Floats, fpr: float, confidence: float | None = None) -> float:
    """The threshold that clean scores give; an alarm is a score *above* it. NaN if too few."""
    rank = alarm_rank(len(scores), fpr, confidence)
    return float("nan") if rank is None else float(np.sort(scores)[rank - 1])


def refitted_thresholds(
    scores: Floats,
    groups: Sequence[str],
    n_groups: int,
    fpr: float,
    confidence: float | None = None,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Floats:
    """The thresholds that other calibrations of the same size would have given, `[resample]`.

    Drawn from every clean score there is, not only from those that were calibrated on: a
    resample of those alone never exceeds their largest, which at 1% is often the threshold.

    Args:
        scores: all clean scores, `[prompt]`.
        groups: of each.
        n_groups: groups that a calibration has.
        fpr: the rate.
        confidence: as in `alarm_rank`.
        n_resamples: how many.
        seed: of the draws.
    """
    order = np.argsort(scores, kind="stable")
    code = group_codes(groups)
    n = int(code.max()) + 1
    picks = np.random.default_rng(seed).integers(0, n, (n_resamples, n_groups))
    cells = picks + n * np.arange(n_resamples)[:, None]
    times = np.bincount(cells.ravel(), minlength=n * n_resamples).reshape(n_resamples, n)
    below = times.T[code[order]].cumsum(0)
    # Where groups differ in size a draw may be too small for the rate: its largest score then.
    ranks = np.array([alarm_rank(k, fpr, confidence) or k for k in below[-1].tolist()])
    found: Floats = scores[order][(below >= ranks).argmax(0)]
    return found


def alarm_rate(
    scores: Floats,
    groups: Sequence[str],
    threshold: float,
    thresholds: Floats,
    *,
    seed: int = 0,
) -> Estimate:
    """Share of scores above the threshold; groups are resampled, and thresholds with them.

    The interval is the wider, at either end, of that bootstrap and of Wilson's clustered one
    for the threshold as it is: near 0 and 1 a bootstrap alone has no width. It is about this
    threshold and about others calibrated like it, and wider than either alone would need.

    Args:
        scores: `[prompt]`.
        groups: of each.
        threshold: the one in force.
        thresholds: refitted to resampled clean groups, one a resample; may be empty.
        seed: of the resampling.
    """
    fixed = cluster_mean((scores > threshold).astype(float), groups, unit="fraction")
    if not len(thresholds):
        return fixed
    weights = row_draws(groups, n_resamples=len(thresholds), seed=seed)
    draws = (weights * (scores[:, None] > thresholds)).sum(0) / weights.sum(0)
    low, high = percentiles(draws, fixed.n)
    return Estimate(fixed.value, min(low, fixed.low), max(high, fixed.high), fixed.n, "fraction")


def paired_alarm_change(
    before: Floats,
    after: Floats,
    groups: Sequence[str],
    threshold: float,
    thresholds: Floats,
    *,
    seed: int = 0,
) -> Estimate:
    """Share of alarms after less that before, item by item; thresholds are refitted.

    Args:
        before: `[item]`.
        after: `[item rewrite]`, NaN where an item has fewer rewrites.
        groups: of each item.
        threshold: the one in force.
        thresholds: one a resample.
        seed: of the resampling.
    """

    def change(cut: Any) -> Floats:
        there = ~np.isnan(after)
        found: Floats = ((after > cut) & there).sum(1) / there.sum(1) - (before > cut)
        return found

    observed = change(threshold)
    n = len(set(groups))
    if not len(thresholds):
        return cluster_mean(observed, groups, seed=seed, unit="difference of rates")
    weights = row_draws(groups, n_resamples=len(thresholds), seed=seed)
    cuts, inverse = np.unique(thresholds, return_inverse=True)
    each = np.stack([change(cut) for cut in cuts], 1)[:, inverse]
    draws = (weights * each).sum(0) / weights.sum(0)
    low, high = percentiles(draws, n)
    if not draws.any() and not observed.any():  # a bootstrap of nothing but zeros has no width
        high = wilson(0, n).high
        low = -high
    return Estimate(float(observed.mean()), low, high, n, "difference of rates")


def rates_of_columns(
    positives: Floats, clean: Floats, fpr: float, confidence: float | None = None
) -> NDArray[np.float64]:
    """Recall of every column at the threshold that the column's own clean scores give."""
    rank = alarm_rank(len(clean), fpr, confidence)
    if rank is None:
        return np.full(positives.shape[1], np.nan)
    found: Floats = (positives > np.sort(clean, axis=0)[rank - 1]).mean(0)
    return found
