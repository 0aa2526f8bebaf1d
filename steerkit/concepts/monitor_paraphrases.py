"""Rewrites of what a monitor was tested on, against their originals."""

from typing import Any

import numpy as np

from steerkit.concepts.monitor_result import Paraphrased
from steerkit.concepts.monitor_sides import Sides
from steerkit.concepts.monitor_statistics import alarm_rate, paired_alarm_change
from steerkit.statistics import Estimate, Floats, cluster_mean


def paraphrased(
    sides: Sides,
    scores: Floats,
    other: Floats,
    owners: Any,
    tested: tuple[Any, Any],
    threshold: float,
    thresholds: Floats,
    seed: int,
) -> Paraphrased | None:
    """Rewrites of tested positives against their originals, and of unseen negatives."""
    caught, unseen = tested
    mine = np.isin(owners, caught)
    if not mine.any():
        return None
    items = np.unique(owners[mine])
    most = max(int((owners == i).sum()) for i in items)
    after = np.full((len(items), most), np.nan)
    for row, item in enumerate(items):
        values = other[owners == item]
        after[row, : len(values)] = values
    groups = sides.named(items)
    resolved = not np.isnan(threshold)
    nothing = Estimate(float("nan"), float("nan"), float("nan"), len(set(groups)), "fraction")
    false = np.isin(owners, unseen)

    def rate(values: Floats, rows: Any, cuts: Floats) -> Estimate:
        return alarm_rate(values, sides.named(rows), threshold, cuts, seed=seed + 2)

    return Paraphrased(
        recall=rate(other[mine], owners[mine], thresholds) if resolved else nothing,
        original=rate(scores[items], items, thresholds) if resolved else nothing,
        change=(
            paired_alarm_change(scores[items], after, groups, threshold, thresholds, seed=seed + 2)
            if resolved
            else nothing
        ),
        score_change=cluster_mean(
            np.nanmean(after, axis=1) - scores[items], groups, seed=seed, unit="half gaps"
        ),
        false_positives=(
            rate(other[false], owners[false], np.empty(0)) if resolved and false.any() else None
        ),
        n_rewrites=int(mine.sum()),
    )
