"""Whether a probe's probabilities are what they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.statistics import Estimate, Floats, Null, cluster_mean, null

N_SIMULATED = 999


@dataclass(frozen=True)
class Bin:
    """Held-out prompts of like probability: what was said, and how often it was so."""

    said: float
    rate: Estimate
    n: int

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"said": self.said, "rate": self.rate.to_json(), "n": self.n}


@dataclass(frozen=True)
class Calibration:
    """Held-out probabilities against what was so.

    Attributes:
        bins: of about equal numbers of prompts, by probability.
        brier: mean squared error of the probabilities; 0 is perfect.
        brier_constant: the same of the training rate of positives, said of every prompt.
        error: expected calibration error, the mean gap between said and found over the bins. Gaps
            of few prompts are never 0, so it is read against `error_null`, not with an interval:
            resampled, it only grows.
        error_null: the same error of labels drawn from the probabilities themselves: what a
            perfectly calibrated probe gives here. `p` is small where calibration is refuted.
        slopes: Platt slope of each outer fold, fitted on its inner folds; 0 says that the
            inner scores told nothing.
        offsets: its intercepts.
    """

    bins: tuple[Bin, ...]
    brier: Estimate
    brier_constant: Estimate
    error: float
    error_null: Null
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "bins": [b.to_json() for b in self.bins],
            "brier": self.brier.to_json(),
            "brier_constant": self.brier_constant.to_json(),
            "error": self.error,
            "error_null": self.error_null.to_json(),
            "slopes": list(self.slopes),
            "offsets": list(self.offsets),
        }

    def summary(self) -> str:
        """One line of plain text."""
        return (
            f"calibration: Brier {self.brier} (constant {self.brier_constant.value:.3g}), expected "
            f"error {self.error:.3g} (calibrated: 95% below {self.error_null.q95:.3g}, "
            f"p = {self.error_null.p:.2g})"
        )


def platt(scores: Floats, labels: NDArray[Any], *, steps: int = 100) -> tuple[float, float]:
    """Slope and intercept of p = sigmoid(slope * score + intercept), of highest likelihood.

    Targets are drawn in from 0 and 1 as by one more prompt of each label, which keeps the slope
    finite where scores separate. A negative slope is not allowed: scores of inner folds are
    easily below chance by accident, and a probe is never turned round. Then the slope is 0.

    Source: Platt 1999, Advances in Large Margin Classifiers; Lin et al. 2007, Machine
    Learning 68, 267.
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    n_pos, n_neg = y.sum(), (1 - y).sum()
    target = np.where(y > 0.5, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))
    centre, size = s.mean(), s.std()
    base = float(np.log(target.mean() / (1 - target.mean())))
    if not size > 0:
        return 0.0, base
    design = np.stack([(s - centre) / size, np.ones_like(s)], 1)
    found = np.array([0.0, base])

    def loss(at: Floats) -> float:
        logit = design @ at
        return float((np.logaddexp(0, logit) - target * logit).sum())

    for _ in range(steps):
        p = sigmoid(design @ found)
        gradient = design.T @ (p - target)
        curvature = (design * (p * (1 - p))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-10 * np.eye(2), gradient)
        # Halved until it helps: far from the optimum a Newton step overshoots.
        scale = 1.0
        while scale > 1e-8 and loss(found - scale * step) > loss(found):
            scale /= 2
        found = found - scale * step
        if np.abs(gradient).max() < 1e-9 * len(s):
            break
    if found[0] <= 0:
        return 0.0, base
    slope = float(found[0] / size)
    return slope, float(found[1] - slope * centre)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0, -x))


def reliability(
    probabilities: Floats,
    labels: NDArray[np.int64],
    groups: Sequence[str],
    base: Floats,
    *,
    slopes: Sequence[float] = (),
    offsets: Sequence[float] = (),
    n_bins: int = 10,
    seed: int = 0,
) -> Calibration:
    """Brier score, expected calibration error and reliability bins of held-out probabilities.

    Args:
        probabilities: `[row]`, of the positive side.
        labels: `[row]`, 1 or 0.
        groups: `[row]`, resampled whole by the intervals.
        base: `[row]`, training rate of positives: what a constant would say.
        slopes: of each fold, to be noted.
        offsets: of each fold, to be noted.
        n_bins: at most; each holds ten prompts or more.
        seed: of resampling and simulation.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels).astype(np.float64)
    n = len(p)
    n_bins = max(1, min(n_bins, n // 10))
    bin_of = np.empty(n, dtype=np.int64)
    bin_of[np.argsort(p, kind="stable")] = np.arange(n) * n_bins // n
    member = (bin_of[:, None] == np.arange(n_bins)).astype(np.float64)

    def expected(gaps: Floats) -> Floats:
        """Mean absolute gap over bins; `gaps` `[row draw]` of said less found."""
        return np.abs(member.T @ gaps).sum(0) / n

    gap = (p - y)[:, None]
    observed = float(expected(gap)[0])
    rng = np.random.default_rng(seed)
    simulated = p[:, None] - (rng.random((n, N_SIMULATED)) < p[:, None])
    chance = null("labels drawn from the probabilities", observed, expected(simulated))
    bins = tuple(
        Bin(
            float(p[bin_of == b].mean()),
            cluster_mean(
                y[bin_of == b],
                [g for g, here in zip(groups, bin_of == b, strict=True) if here],
                unit="fraction",
            ),
            int((bin_of == b).sum()),
        )
        for b in range(n_bins)
    )
    return Calibration(
        bins,
        cluster_mean((p - y) ** 2, groups, unit="squared error", seed=seed),
        cluster_mean((base - y) ** 2, groups, unit="squared error", seed=seed),
        observed,
        chance,
        tuple(slopes),
        tuple(offsets),
    )
