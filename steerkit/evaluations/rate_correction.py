"""Rates freed of a judge's known error."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError
from steerkit.evaluations.error_rates import effective_number, rate_draws
from steerkit.evaluations.judge_validation import JudgeValidation
from steerkit.statistics import Estimate, cluster_mean, percentiles

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CorrectedRate:
    """A rate as judged and as it is once the judge's error is taken out.

    Attributes:
        observed: fraction of answers that the judge calls 1.
        corrected: (observed - e) / (s - e), e false positives and s sensitivity; its interval
            holds the uncertainty of both samples.
        clipped: whether the estimate fell outside 0 to 1 and was cut there, a sign that the
            labelled answers are not like these.
        unclipped: what it was.

    Source: Rogan and Gladen 1978; intervals by draws as in Lang and Reiczigel 2014.
    """

    observed: Estimate
    corrected: Estimate
    clipped: bool
    unclipped: float

    def summary(self) -> str:
        """Both rates, and whether one was cut."""
        cut = f" (cut from {self.unclipped:.3g})" if self.clipped else ""
        return f"judged {self.observed}, corrected for the judge's error {self.corrected}{cut}"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"CorrectedRate({self.summary()})"


def corrected_rate(
    verdicts: Sequence[float] | Floats,
    clusters: Sequence[str],
    validation: JudgeValidation,
    *,
    n_draws: int = 4000,
    seed: int = 0,
) -> CorrectedRate:
    """The rate that a judge's verdicts stand for, by Rogan and Gladen's correction.

    Args:
        verdicts: 1 or 0 for each answer; NaN where the judge failed.
        clusters: what must not be split, for each.
        validation: of the same judge, on answers like these.
        n_draws: of the interval.
        seed: of drawing.

    Raises:
        MethodError: a judge no better than chance, or verdicts other than 0 and 1.
    """
    x = np.asarray(verdicts, dtype=np.float64)
    kept = ~np.isnan(x)
    if not kept.any() or not np.isin(x[kept], (0.0, 1.0)).all():
        raise MethodError("verdicts are 0 or 1, at least one of them; apply the threshold first")
    fpr, tpr = validation.false_positive.value, validation.sensitivity
    require_informative(validation)
    own = [c for c, k in zip(clusters, kept, strict=True) if k]
    observed = cluster_mean(x[kept], own, seed=seed, unit="fraction")
    raw = (observed.value - fpr) / (tpr - fpr)
    rng = np.random.default_rng(seed)
    q = rate_draws(
        observed.value, effective_number(x[kept], np.ones(len(own), bool), own), n_draws, rng
    )
    e, s = validation.error_draws(n_draws, seed=seed + 1)
    usable = s - e > 1e-3
    draws = np.clip((q - e)[usable] / (s - e)[usable], 0, 1)
    low, high = percentiles(draws, len(set(own)))
    value = float(np.clip(raw, 0, 1))
    corrected = Estimate(value, min(low, value), max(high, value), observed.n, "fraction")
    return CorrectedRate(observed, corrected, raw != value, float(raw))


def require_informative(validation: JudgeValidation) -> None:
    """Raise unless the judge says 1 more often where the label is 1 than where it is 0."""
    fpr, tpr = validation.false_positive.value, validation.sensitivity
    if not tpr > fpr:
        raise MethodError(
            f"the judge '{validation.name}' says 1 to {tpr:.0%} of what is labelled 1 and to "
            f"{fpr:.0%} of what is labelled 0: no rate can be corrected for such an error; use "
            "another judge or threshold"
        )
