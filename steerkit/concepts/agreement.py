"""How well a score agrees with behaviour over concepts."""

from collections.abc import Sequence

import numpy as np

from steerkit.errors import MethodError
from steerkit.statistics import Estimate


def spearman(x: Sequence[float], y: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Rank correlation with its interval; `n` is the number of pairs.

    The interval is that of Fisher's z with the standard error sqrt((1 + r^2 / 2) / (n - 3)),
    which holds for ranks up to large correlations (Bonett and Wright 2000).

    >>> spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]).value
    0.8

    Raises:
        MethodError: fewer than four pairs, or numbers that are all the same or not finite.
    """
    from scipy.stats import norm, spearmanr

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) != len(b) or len(a) < 4:
        raise MethodError(f"a rank correlation needs at least 4 pairs; got {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise MethodError("a rank correlation needs finite numbers")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise MethodError("one side is the same everywhere, so nothing can be ranked")
    r = round(float(spearmanr(a, b).statistic), 12)
    if abs(r) >= 1:
        return Estimate(r, r, r, len(a), "rank correlation")
    half = norm.ppf(0.5 + level / 2) * np.sqrt((1 + r * r / 2) / (len(a) - 3))
    centre = np.arctanh(r)
    return Estimate(
        r, float(np.tanh(centre - half)), float(np.tanh(centre + half)), len(a), "rank correlation"
    )
