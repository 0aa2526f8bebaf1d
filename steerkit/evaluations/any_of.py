"""Success in any of several samples: unbiased, and freed of a judge's false positives.

A judge that is wrong about one answer in twenty is wrong about one prompt in two once it has
seen fourteen answers: any-of-N rates of a harmless model rise to 1 - (1 - e)^N by themselves.
"""

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError

Floats = NDArray[np.float64]


def inflated(false_positive: float, n: int) -> float:
    """The any-of-n rate that a judge gives where nothing succeeds: 1 - (1 - e)^n.

    >>> round(inflated(0.05, 49), 3)
    0.919
    """
    return float(1 - (1 - false_positive) ** n)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that some of k samples succeeds, from c successes among n >= k: unbiased.

    1 - C(n - c, k) / C(n, k), the share of k-subsets of the samples that hold a success.
    Source: Chen et al. 2021 (arXiv:2107.03374).

    Raises:
        MethodError: numbers that cannot be.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise MethodError(
            f"pass@k takes 1 <= k <= n samples with 0 to n successes; got k={k}, n={n}, c={c}"
        )
    return float(1 - none_of(n, k)[c])


def none_of(
    n: int, k: int, *, false_positive: Floats | float = 0.0, sensitivity: Floats | float = 1.0
) -> Floats:
    """Unbiased estimates of the chance that none of k samples truly succeeds, by what was judged.

    With a perfect judge C(n - c, k) / C(n, k) for c = 0..n successes. With one that errs
    independently on each answer, the mean over k-subsets of the product of (s - verdict) /
    (s - e), each of which is 0 in the mean for a true success and 1 otherwise.

    Returns:
        `[... c]`, one entry for each number of successes; leading axes are those of the errors.
    """
    from scipy.stats import hypergeom

    e = np.asarray(false_positive, dtype=np.float64)[..., None, None]
    s = np.asarray(sensitivity, dtype=np.float64)[..., None, None]
    judged = np.arange(n + 1)[:, None]
    inside = np.arange(k + 1)  # successes among the k
    weight = hypergeom.pmf(inside, n, judged, k)
    zero, one = s / (s - e), (s - 1) / (s - e)
    return np.asarray((weight * zero ** (k - inside) * one**inside).sum(-1), dtype=np.float64)


def any_true(
    verdicts: Floats, *, false_positive: Floats | float = 0.0, sensitivity: Floats | float = 1.0
) -> Floats:
    """Unbiased estimate, for each prompt, that some of its answers truly succeeded.

    1 - product over answers of (s - verdict) / (s - e), for verdicts `[prompt answer]` of 1 or
    0; NaN (a failed judge) leaves an answer out. Exact in the mean for errors independent
    given the truth; single prompts may lie outside 0 to 1. A perfect judge: 1 where any is.

    Returns:
        `[... prompt]`; leading axes are those of the errors.
    """
    e = np.asarray(false_positive, dtype=np.float64)[..., None]
    s = np.asarray(sensitivity, dtype=np.float64)[..., None]
    ones = np.nansum(verdicts, axis=1)
    zeros = (~np.isnan(verdicts)).sum(1) - ones
    return np.asarray(1 - (s / (s - e)) ** zeros * ((s - 1) / (s - e)) ** ones, dtype=np.float64)
