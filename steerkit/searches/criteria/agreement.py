"""Do single pairs, and single fits, point the same way?"""

import torch

from steerkit.searches.criteria.rows import CRITERIA, Rows, unit
from steerkit.statistics import Floats

AT_ONCE = 4096
"""Refitted directions held in memory at a time."""


class Agreement:
    """Mean cosine between h+ - h- of two different pairs, in [-1, 1].

    By sum_{p != q} u_p.u_q = |sum_p u_p|^2 - n over units, in time linear in pairs. Where
    prompts come without pairs, the mean over several random pairings, no two pairs of which
    share a prompt; such differences agree less, for their mates differ in all else.
    """

    measures = "mean cosine of h+ - h- between different pairs"
    unit = "cosine"

    def __call__(self, rows: Rows) -> Floats:
        """Sums of units; a pair's own copies are left out by their squares."""
        plan = rows.plan
        total = torch.zeros_like(plan.weights[0])
        for units, weights in zip(rows.units, plan.pair_weights, strict=True):
            together = (units.T @ weights).pow(2).sum(0)
            alone = units.pow(2).sum(1) @ weights.pow(2)
            compared = weights.sum(0).pow(2) - weights.pow(2).sum(0)
            total += torch.where(compared > 0, (together - alone) / compared, torch.nan)
        return (total / len(plan.pairs)).numpy()


class Stability:
    """Mean cosine between mean differences refitted on resampled groups, in [-1, 1].

    1: the direction does not depend on which groups were drawn. Groups are resampled inside
    each draw once more, so that its own bootstrap is one of the whole procedure.
    """

    measures = "mean cosine between mean differences refitted on resampled groups"
    unit = "cosine"

    def __call__(self, rows: Rows) -> Floats:
        """Group sums and two matrix products; pairwise cosines by the norm of the sum."""
        plan = rows.plan
        counts, draw = plan.refits
        n_groups, n_draws = counts.shape[1], plan.weights.shape[1]
        code, y = torch.from_numpy(plan.groups), plan.labels.double()
        sums, sizes = [], []
        for side in (y, 1 - y):
            empty = torch.zeros(n_groups, rows.z.shape[1], dtype=torch.float64)
            sums.append(empty.index_add(0, code, rows.z * side[:, None]))
            sizes.append(torch.zeros(n_groups, dtype=torch.float64).index_add(0, code, side))
        together = torch.zeros(n_draws, rows.z.shape[1], dtype=torch.float64)
        alone, n = torch.zeros(2, n_draws, dtype=torch.float64)
        for start in range(0, len(counts), AT_ONCE):
            w, own = counts[start : start + AT_ONCE].double(), draw[start : start + AT_ONCE]
            a, b = ((w @ s) / (w @ k)[:, None] for s, k in zip(sums, sizes, strict=True))
            fitted = (a - b).isfinite().all(1)
            units = unit((a - b)[fitted])
            together.index_add_(0, own[fitted], units)
            alone.index_add_(0, own[fitted], units.pow(2).sum(1))
            n += torch.bincount(own[fitted], minlength=n_draws)
        found = (together.pow(2).sum(1) - alone) / (n * (n - 1))
        return torch.where(n > 1, found, torch.nan).numpy()


CRITERIA.register("agreement")(Agreement())
CRITERIA.register("stability")(Stability())
