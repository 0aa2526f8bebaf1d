"""How sure a counted error rate is: independent answers behind it, and draws from its posterior."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerkit.statistics import Estimate, group_codes

Floats = NDArray[np.float64]


def error_draws(
    fpr: Estimate, fnr: Estimate, effective: tuple[float, float], n: int, seed: int
) -> tuple[Floats, Floats]:
    """Draws of the false-positive rate and of the sensitivity from both error rates."""
    rng = np.random.default_rng(seed)
    return (
        rate_draws(fpr.value, effective[0], n, rng),
        1 - rate_draws(fnr.value, effective[1], n, rng),
    )


def effective_number(values: Floats, rows: NDArray[np.bool_], clusters: Sequence[str]) -> float:
    """Independent answers among the rows: variance of one over that of the mean.

    Where all agree no variance can be seen, and clusters are what is independent.
    """
    x = values[rows]
    if not x.size:
        return 0.0
    code = group_codes([c for c, k in zip(clusters, rows, strict=True) if k])
    sums, sizes = np.bincount(code, weights=x), np.bincount(code)
    n, n_clusters, p = len(x), len(sums), float(x.mean())
    if p in (0.0, 1.0) or n_clusters == 1:
        return float(n_clusters)
    between = ((sums - p * sizes) ** 2).sum() / n**2 * n_clusters / (n_clusters - 1)
    return float(n) if between == 0 else float(min(n, p * (1 - p) / between))


def rate_draws(rate: float, n: float, draws: int, rng: np.random.Generator) -> Floats:
    """Draws of a rate seen as `rate` among `n`, by Jeffreys' prior."""
    return np.asarray(rng.beta(rate * n + 0.5, (1 - rate) * n + 0.5, draws))
