"""AUCs in bulk: many labellings of the same scores, many resamples of the same rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.statistics import Estimate, Floats, group_codes, percentiles, row_draws, wilson


def auc_columns(scores: Floats, labels: NDArray[Any]) -> tuple[Floats, Floats]:
    """AUC of each column of `scores [row column]`, and how many pairs it compares.

    `labels` is `[row]` or `[row column]`; a column without both classes gives NaN and 0.
    """
    s = np.asarray(scores, dtype=np.float64)
    y = np.asarray(labels).astype(np.float64)
    s = s.reshape(len(s), -1)
    y = np.broadcast_to(y.reshape(len(y), -1), s.shape)
    order = np.argsort(s, axis=0)
    ordered = np.take_along_axis(s, order, axis=0)
    sorted_labels = np.take_along_axis(y, order, axis=0)
    rank_sum = (np.arange(1, len(s) + 1)[:, None] * sorted_labels).sum(0)
    tied = (ordered[1:] == ordered[:-1]).any(0)
    if tied.any():
        from scipy.stats import rankdata

        rank_sum[tied] = (rankdata(s[:, tied], axis=0) * y[:, tied]).sum(0)
    n_pos = y.sum(0)
    compared = n_pos * (len(y) - n_pos)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (rank_sum - n_pos * (n_pos + 1) / 2) / compared, compared


def weighted_auc(scores: Floats, labels: NDArray[Any], weights: Floats) -> tuple[Floats, Floats]:
    """AUC of `scores [row]` when row i counts `weights[i, k]` times, and the pairs it compares."""
    y = np.asarray(labels)
    values, level = np.unique(scores, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(values)))
    pos = np.add.reduceat((weights * y[:, None])[order], starts, axis=0)
    neg = np.add.reduceat((weights * (1 - y[:, None]))[order], starts, axis=0)
    below = neg.cumsum(0) - neg / 2
    compared = pos.sum(0) * neg.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (pos * below).sum(0) / compared, compared


def fold_auc(
    scores: Floats,
    labels: NDArray[Any],
    folds: NDArray[np.int64],
    groups: Sequence[str],
    *,
    draws: Floats | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """AUC of held-out scores `[row]`, comparing only within a fold, with its interval.

    Scores of different folds come from different fits, so their offsets and sizes do not
    compare. Whole groups are resampled, the fits are kept: the interval is about new
    prompts, for the directions as fitted. Where every comparison came out right (or wrong)
    the bootstrap has no width and the bound is Wilson's on the groups of the rarer class.
    `draws` may be given to share `row_draws` between calls.
    """
    y = np.asarray(labels).astype(np.int64)
    members = group_codes(groups)
    n_groups = int(members.max()) + 1
    if draws is None:
        draws = row_draws(groups, seed=seed)
    counts = np.hstack([np.ones((len(y), 1)), draws])
    right, compared = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        value, pairs = weighted_auc(scores[rows], y[rows], counts[rows])
        right += np.where(pairs > 0, value * pairs, 0)
        compared += pairs
    with np.errstate(invalid="ignore"):
        values = right / compared
    observed, redrawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if np.isnan(observed) or redrawn.size == 0:
        return Estimate(observed, float("nan"), float("nan"), n_groups, "AUC")
    if observed in (0.0, 1.0):
        rarer = min(len(np.unique(members[y == side])) for side in (0, 1))
        bound = wilson(int(observed) * rarer, rarer, level=level)
        return Estimate(observed, bound.low, bound.high, n_groups, "AUC")
    low, high = percentiles(redrawn, n_groups, level)
    return Estimate(observed, low, high, n_groups, "AUC")
