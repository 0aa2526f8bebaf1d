"""Mean silhouette of the two sides."""

import torch

from steerkit.searches.criteria.rows import CRITERIA, Rows
from steerkit.statistics import Floats

AT_ONCE = 2**24
"""Distances held in memory at a time."""


class Silhouette:
    """Mean over rows of (b - a) / max(a, b), in [-1, 1].

    a is a row's mean Euclidean distance to the others of its side, b that to the other side.
    A row alone on its side counts 0. Equal to scikit-learn's `silhouette_score`.
    Cost is quadratic in prompts.

    Source: Rousseeuw 1987, Journal of Computational and Applied Mathematics 20, 53.
    """

    measures = "mean (b - a) / max(a, b) of distances to the own and the other side"
    unit = "silhouette"

    def __call__(self, rows: Rows) -> Floats:
        """Distances once; every draw a product with them."""
        plan = rows.plan
        sides = (plan.negative, plan.positive)
        total = torch.zeros_like(plan.weights[0])
        step = max(1, AT_ONCE // len(rows.z))
        for start in range(0, len(rows.z), step):
            here = slice(start, start + step)
            weights, positive = plan.weights[here], plan.y[here] == 1
            far = torch.cdist(rows.z[here], rows.z, compute_mode="use_mm_for_euclid_dist")
            # By products, which leave rounding where a row meets itself.
            far[torch.arange(len(far)), torch.arange(start, start + len(far))] = 0
            to = [far @ side for side in sides]
            size = [side.sum(0) for side in sides]
            # A row's own copies are at distance 0 and are no neighbours of it.
            own = torch.where(positive, size[1], size[0]) - weights
            a = torch.where(positive, to[1], to[0]) / torch.where(own > 0, own, 1.0)
            b = torch.where(positive, to[0] / size[0], to[1] / size[1])
            most = torch.maximum(a, b)
            s = torch.where(most > 0, (b - a) / torch.where(most > 0, most, 1.0), most)
            total += (weights * torch.where(own > 0, s, 0.0 * b)).nan_to_num(nan=0.0).sum(0)
        missing = (sides[0].sum(0) == 0) | (sides[1].sum(0) == 0)
        return torch.where(missing, torch.nan, total / plan.weights.sum(0)).numpy()


CRITERIA.register("silhouette")(Silhouette())
