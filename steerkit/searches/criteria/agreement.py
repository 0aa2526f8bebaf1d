"""Do single pairs, and single fits, point the same way?"""

import torch

from steerkit.searches.criteria.rows import CRITERIA, Rows, unit
from steerkit.statistics import Floats

AT_ONCE = 2**17
"""Weights of refits held in memory at a time."""


class Agreement:
    """Mean cosine between h+ - h- of two different pairs, in [-1, 1].

    By sum_{p != q} u_p.u_q = |sum_p u_p|^2 - n over units, in time linear in pairs. Where
    prompts come without pairs, the mean over several random matchings, no two pairs of which
    share a prompt; such differences agree less, for their mates differ in all else.
    """

    measures = "mean cosine of h+ - h- between different pairs"
    unit = "cosine"

    def __call__(self, rows: Rows) -> Floats:
        """Sums of units; a pair's own copies are left out by their squares."""
        plan = rows.plan
        total, counted = torch.zeros(2, plan.n_draws, dtype=torch.float64)
        for (first, second), weights in zip(plan.pairs, plan.pair_weights, strict=True):
            # The sign of a weight turns the difference towards the positive side.
            units = unit(rows.z[first] - rows.z[second])
            together = (units.T @ weights).pow(2).sum(0)
            alone = units.pow(2).sum(1) @ weights.pow(2)
            compared = weights.abs().sum(0).pow(2) - weights.pow(2).sum(0)
            usable = compared > 0
            total += torch.where(usable, (together - alone) / compared, 0.0)
            counted += usable
        return (total / counted).numpy()


class Stability:
    """Mean cosine between mean differences refitted on resampled groups, in [-1, 1].

    1: the direction does not depend on which groups were drawn. Groups are resampled inside
    each draw once more, so that its own bootstrap is one of the whole procedure.
    """

    measures = "mean cosine between mean differences refitted on resampled groups"
    unit = "cosine"

    def __call__(self, rows: Rows) -> Floats:
        """One matrix product for all refits; pairwise cosines by the norm of the sum."""
        plan = rows.plan
        counts, draw = plan.refits
        code, y = torch.from_numpy(plan.groups), plan.y.T.contiguous()
        together = torch.zeros(plan.n_draws, rows.z.shape[1], dtype=torch.float64)
        alone, n = torch.zeros(2, plan.n_draws, dtype=torch.float64)
        step = max(1, AT_ONCE // len(code))
        for start in range(0, len(counts), step):
            own = draw[start : start + step]
            w = counts[start : start + step].double()[:, code]
            positive = w * y[own]
            negative = w - positive
            n_pos, n_neg = positive.sum(1, keepdim=True), negative.sum(1, keepdim=True)
            fitted = ((n_pos > 0) & (n_neg > 0)).flatten()
            found = (positive / n_pos - negative / n_neg)[fitted] @ rows.z
            own, units = own[fitted], unit(found)
            together.index_add_(0, own, units)
            alone.index_add_(0, own, units.pow(2).sum(1))
            n += torch.bincount(own, minlength=plan.n_draws)
        value = (together.pow(2).sum(1) - alone) / (n * (n - 1))
        return torch.where(n > 1, value, torch.nan).numpy()


CRITERIA.register("agreement")(Agreement())
CRITERIA.register("stability")(Stability())
