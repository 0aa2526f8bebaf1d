"""Jensen-Shannon divergence of softmaxed states, as it should be and as it was published.

`js` is the contrastive criterion of the activation-attack paper (Wang and Shu 2023,
arXiv:2311.09433). `js_repo` is what its published code computes instead, mean(M log M - M^2)
with M the mixture: it measures how peaked the mixture is and does not vanish when both sides
are the same. It is kept for comparison under its own name.

Both look at pairs without their labels: js(h+, h-) = js(h-, h+). Exchanging the two prompts of
every other pair leaves them as they are, so they find where mates differ in anything at all,
not where they differ in the concept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.searches.criteria.rows import CRITERIA, Rows
from steerkit.statistics import Floats

Pairs = Float[Tensor, "pair d_model"]


def js(positive: Pairs, negative: Pairs) -> float:
    """Mean Jensen-Shannon divergence of softmax(h+) and softmax(h-), in nats; 0 when equal.

    At most log 2. Softmax over raw states depends on their scale and is ruled by the few
    massive dimensions; look at RMS-normalised states too.
    """
    return float(js_of_pairs(positive, negative).mean())


def js_repo(positive: Pairs, negative: Pairs) -> float:
    """What the published code computes: mean over pairs and dimensions of M log M - M^2.

    There `F.kl_div` is given probabilities for log-probabilities, with its arguments in the
    other order, and the default mean over all elements; the two halves then add up to this.
    """
    return float(js_repo_of_pairs(positive, negative).mean())


def js_of_pairs(positive: Pairs, negative: Pairs) -> Float[Tensor, "pair"]:
    """The divergence of each pair."""
    p, q = (x.double().log_softmax(-1) for x in (positive, negative))
    m = torch.logaddexp(p, q) - np.log(2)
    return 0.5 * ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1))


def js_repo_of_pairs(positive: Pairs, negative: Pairs) -> Float[Tensor, "pair"]:
    """The published quantity of each pair."""
    p, q = (x.double().softmax(-1) for x in (positive, negative))
    m = (p + q) / 2
    return (torch.special.xlogy(m, m) - m * m).mean(-1)


@dataclass(frozen=True)
class OfPairs:
    """Mean over pairs of a function of the two states, over every matching there is."""

    function: Callable[[Pairs, Pairs], Float[Tensor, "pair"]]
    measures: str
    unit: str

    def __call__(self, rows: Rows) -> Floats:
        """One evaluation a pair, however many draws."""
        plan = rows.plan
        total, counted = torch.zeros(2, plan.n_draws, dtype=torch.float64)
        for (first, second), weights in zip(plan.pairs, plan.pair_weights, strict=True):
            # Both functions are symmetric: which of a pair is which does not matter.
            total += self.function(rows.x[first], rows.x[second]) @ weights.abs()
            counted += weights.abs().sum(0)
        return (total / counted).numpy()


CRITERIA.register("js")(
    OfPairs(js_of_pairs, "mean JS(softmax h+ || softmax h-) over pairs", "nats")
)
CRITERIA.register("js_repo")(
    OfPairs(js_repo_of_pairs, "mean(M log M - M^2), M the mixture of softmaxes: a fault", "")
)
