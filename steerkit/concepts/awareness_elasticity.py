"""How much behaviour changes with a score: a ratio, whose interval may be unbounded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerkit.statistics import Estimate, Floats, percentiles, row_draws


@dataclass(frozen=True)
class Elasticity:
    """Change of behaviour over change of score: a ratio of means over items.

    Attributes:
        fieller: with Fieller's interval, which is unbounded (-inf, inf) where the change of
            score is not told from 0.
        bootstrap: the same ratio with an interval from resampled groups.
    """

    fieller: Estimate
    bootstrap: Estimate

    @property
    def bounded(self) -> bool:
        """Whether Fieller's interval is an interval."""
        return bool(np.isfinite([self.fieller.low, self.fieller.high]).all())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; ends that are infinite are None."""

        def finite(e: Estimate) -> dict[str, Any]:
            return {k: v if not isinstance(v, float) or np.isfinite(v) else None
                    for k, v in e.to_json().items()}  # fmt: skip

        return {"fieller": finite(self.fieller), "bootstrap": finite(self.bootstrap)}

    def __str__(self) -> str:
        if not self.bounded:
            return f"{self.fieller.value:.3g}, unbounded: the score hardly moved"
        return str(self.fieller)


def elasticity(
    behaviour: Floats,
    score: Floats,
    groups: Sequence[str],
    n_resamples: int = 2000,
    seed: int = 0,
    *,
    level: float = 0.95,
) -> Elasticity:
    """Mean change of behaviour over mean change of score, with both intervals, by group.

    Args:
        behaviour: `[item]`.
        score: `[item]`.
        groups: of each item.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
        level: of both.

    Source: Fieller 1954, J. R. Statist. Soc. B 16, 175.
    """
    from scipy.stats import t

    weights = row_draws(groups, n_resamples=n_resamples, seed=seed)
    n_groups = len(set(groups))
    ratio = float(behaviour.mean() / score.mean()) if score.mean() else float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (weights.T @ behaviour) / (weights.T @ score)
    usual = percentiles(draws[np.isfinite(draws)], n_groups, level)
    code = np.unique(np.asarray(groups), return_inverse=True)[1]
    n = len(score)
    # Cluster-robust covariance of both means.
    sums = np.stack([np.bincount(code, weights=v - v.mean()) for v in (behaviour, score)])
    cov = sums @ sums.T / n**2 * n_groups / max(n_groups - 1, 1)
    q = float(t.ppf(0.5 + level / 2, max(n_groups - 1, 1))) ** 2
    over, under = float(behaviour.mean()), float(score.mean())
    # (over - r under)^2 <= q (Vo - 2 r C + r^2 Vu), solved for r.
    two, one, none = under**2 - q * cov[1, 1], over * under - q * cov[0, 1], over**2 - q * cov[0, 0]
    root = one**2 - two * none
    low, high = float("-inf"), float("inf")
    if two > 0 and root >= 0:
        low, high = float((one - root**0.5) / two), float((one + root**0.5) / two)
    unit = "behaviour per standard deviation"
    return Elasticity(
        Estimate(ratio, low, high, n_groups, unit), Estimate(ratio, *usual, n_groups, unit)
    )
