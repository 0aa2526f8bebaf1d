"""Distance of the class means in units of the spread within classes: d', and the Fisher ratio."""

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.searches.criteria.rows import CRITERIA, Plan, Rows, unit
from steerkit.statistics import Floats


def gap(positive: Float[Tensor, "row d_model"], negative: Float[Tensor, "row d_model"]) -> float:
    """Distance of the class means in pooled standard deviations along the mean difference."""
    n, m = len(positive), len(negative)
    plan = Plan.of([1] * n + [0] * m, [str(i) for i in range(n + m)])
    return float(Gap()(Rows.of(torch.cat([positive, negative]), plan))[0])


class Gap:
    """Effect size d' = |mu+ - mu-| / s, s the pooled standard deviation along mu+ - mu-.

    In sample: it grows with width over prompts even where there is nothing, alike at sites
    of one width. 0 where the means are the same, infinite where nothing varies along them.
    """

    measures = "|mu+ - mu-| / pooled sd of the rows along mu+ - mu-"
    unit = "sd"

    def __call__(self, rows: Rows) -> Floats:
        """Projections on the direction of every draw, one matrix product."""
        plan = rows.plan
        along = rows.z @ unit(rows.difference.T).T
        inside = torch.zeros_like(plan.weights[0])
        for weights in (plan.positive, plan.negative):
            mean = (weights * along).sum(0) / weights.sum(0)
            inside += (weights * (along - mean) ** 2).sum(0)
        spread = (inside / plan.weights.sum(0)).sqrt()
        return ratio(rows.difference.norm(dim=0), spread)


class Fisher:
    """Trace ratio tr S_B / tr S_W of the scatter between and within the two classes.

    S_B = sum_k (n_k / n) (mu_k - mu)(mu_k - mu)', S_W = (1 / n) sum_i (x_i - mu_k(i))(...)'.
    All dimensions count, not only those along the mean difference. Times n - 2 it is the
    index of Calinski and Harabasz (1974).
    """

    measures = "tr S_B / tr S_W, scatter between over scatter within classes"
    unit = "ratio"

    def __call__(self, rows: Rows) -> Floats:
        """From weighted sums alone."""
        plan = rows.plan
        squares = rows.z.pow(2).sum(1)
        n = plan.weights.sum(0)
        n_pos, n_neg = plan.positive.sum(0), plan.negative.sum(0)
        positive, negative = rows.means
        between = n_pos * n_neg / n**2 * rows.difference.pow(2).sum(0)
        centres = n_pos * positive.pow(2).sum(0) + n_neg * negative.pow(2).sum(0)
        within = ((squares @ plan.weights - centres) / n).clamp_min(0)
        return ratio(between, within)


def ratio(over: Tensor, under: Tensor) -> Floats:
    """over / under; 0 / 0 = 0, and a denominator of rounding is none."""
    nothing = under <= 1e-12 * over
    found = torch.where(nothing, torch.inf, over / torch.where(nothing, 1.0, under))
    return torch.where(over == 0, 0.0, found).numpy()


CRITERIA.register("gap")(Gap())
CRITERIA.register("fisher")(Fisher())
