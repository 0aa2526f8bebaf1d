"""Does a geometric index say more about models than a plain probe's AUC? The unit is a model."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError
from steerkit.evaluations.geometry_result import BeyondAuc
from steerkit.statistics import Estimate, null

Floats = NDArray[np.float64]


def index_beyond_auc(
    quality: Sequence[float],
    auc: Sequence[float],
    outcome: Sequence[float],
    *,
    n_permutations: int = 4999,
    seed: int = 0,
) -> BeyondAuc:
    """Partial rank correlation of an index with an outcome, given held-out AUC, over models.

    Args:
        quality: the index of each model.
        auc: held-out AUC of each on the same prompts.
        outcome: what should be foretold, such as its refusal rate.
        n_permutations: of the outcome's residuals (Freedman and Lane 1983); the p is two-sided.
        seed: of permuting.

    Raises:
        MethodError: fewer than five models, lengths that differ, or values all alike.
    """
    columns = [np.asarray(v, dtype=np.float64) for v in (quality, auc, outcome)]
    n = len(columns[0])
    if any(c.shape != (n,) or not np.isfinite(c).all() for c in columns) or n < 5:
        raise MethodError(
            "index, AUC and outcome are one finite number a model, of at least 5 models; got "
            f"{', '.join(str(c.size) for c in columns)}"
        )
    if np.ptp(columns[0]) == 0 or np.ptp(columns[2]) == 0:
        raise MethodError("the index or the outcome is the same in every model: nothing to rank")
    value = _partial(*columns)
    rest = np.arange(n)
    without = [_partial(*(c[rest != i] for c in columns)) for i in range(n)]
    rng = np.random.default_rng(seed)
    x, z = _residual(columns[0], columns[1]), _residual(columns[2], columns[1])
    draws = [abs(_correlation(x, z[rng.permutation(n)])) for _ in range(n_permutations)]
    return BeyondAuc(
        Estimate(value, min(without), max(without), n, "Spearman"),
        null("permuted outcomes", abs(value), draws),
        _correlation(_ranks(columns[0]), _ranks(columns[2])),
        _correlation(_ranks(columns[1]), _ranks(columns[2])),
    )


def _partial(quality: Floats, auc: Floats, outcome: Floats) -> float:
    return _correlation(_residual(quality, auc), _residual(outcome, auc))


def _residual(values: Floats, given: Floats) -> Floats:
    """Ranks of values less what the ranks of `given` foretell, by least squares."""
    y, x = _ranks(values), _ranks(given)
    size = float((x**2).sum())
    return y if size == 0 else np.asarray(y - x * float((x * y).sum()) / size)


def _ranks(values: Floats) -> Floats:
    from scipy.stats import rankdata

    ranks = np.asarray(rankdata(values), dtype=np.float64)
    return np.asarray(ranks - ranks.mean())


def _correlation(a: Floats, b: Floats) -> float:
    """Of centred values; 0 where either is all zeros, as when the AUC says it all."""
    size = float(np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()))
    return float((a * b).sum()) / size if size > 1e-9 else 0.0
