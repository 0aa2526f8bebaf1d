"""Does a probe of truth turn with negation? Polar consistency and the contradiction index.

A statement A and its negation not-A are each put twice, answered yes and answered no. A probe
gives p, the probability that the answer is right. Of a probe that knows the truth and negation,
yes to A and no to not-A are right together, and yes to both is wrong.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import ActivationError
from steerkit.statistics import Estimate, cluster_mean

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Polarity:
    """The two measures of a set of pairs, with what each pair gave.

    Read them together: a polar consistency of 0 is that of an ideal probe, and also of one that
    says 1/2, or yes, to everything. A contradiction index of 0.5 is that of random answers.

    Attributes:
        consistency: mean polar consistency, in [-1, 1]; 0 is ideal.
        contradiction: mean contradiction index, in [0, 2]; 0 is ideal, 0.5 chance.
        accuracy: fraction of pairs in which the right one of A and not-A is thought truer;
            NaN without labels.
        pair_consistency: `[pair]`.
        pair_contradiction: `[pair]`.

    Source: PA-CCS (arXiv:2511.21737).
    """

    consistency: Estimate
    contradiction: Estimate
    accuracy: Estimate
    pair_consistency: tuple[float, ...]
    pair_contradiction: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "consistency": self.consistency.to_json(),
            "contradiction": self.contradiction.to_json(),
            "accuracy": self.accuracy.to_json(),
            "pair_consistency": list(self.pair_consistency),
            "pair_contradiction": list(self.pair_contradiction),
        }

    def summary(self) -> str:
        """Both measures, never one alone."""
        return (
            f"contradiction index {self.contradiction} (ideal 0, chance 0.5), polar consistency "
            f"{self.consistency} (ideal 0, also of degenerate probes), accuracy {self.accuracy}"
        )

    def __repr__(self) -> str:
        return self.summary()


def polar_consistency(yes: Floats, no: Floats, not_yes: Floats, not_no: Floats) -> Floats:
    """Mean squared gap between answers that should agree, signed by how the answers turn.

    ((yes - not_no)^2 + (no - not_yes)^2) / 2 * sign(yes - not_yes) * sign(not_no - no), where
    `yes` and `no` are the probabilities for A answered yes and no, `not_yes` and `not_no`
    those for its negation.

    >>> polar_consistency(*(np.array([p]) for p in (0.9, 0.2, 0.3, 0.6)))
    array([0.05])
    """
    gap = ((yes - not_no) ** 2 + (no - not_yes) ** 2) / 2
    return np.asarray(gap * np.sign(yes - not_yes) * np.sign(not_no - no), dtype=np.float64)


def contradiction_index(yes: Floats, no: Floats, not_yes: Floats, not_no: Floats) -> Floats:
    """yes * not_yes + no * not_no: how far A and its negation are both affirmed, or both denied.

    >>> contradiction_index(*(np.array([p]) for p in (0.9, 0.2, 0.3, 0.6)))
    array([0.39])
    """
    return np.asarray(yes * not_yes + no * not_no, dtype=np.float64)


def polarity(
    yes: Floats,
    no: Floats,
    not_yes: Floats,
    not_no: Floats,
    *,
    labels: NDArray[Any] | None = None,
    groups: tuple[str, ...] = (),
    seed: int = 0,
) -> Polarity:
    """Both measures over pairs of a statement and its negation, intervals by group.

    Args:
        yes: probability that "A, yes" is right, `[pair]`.
        no: that "A, no" is.
        not_yes: that "not-A, yes" is.
        not_no: that "not-A, no" is.
        labels: 1 where A is true.
        groups: what is resampled whole; each pair on its own by default.
        seed: of resampling.

    Raises:
        ActivationError: lengths that differ, or numbers that are no probabilities.
    """
    given = {"yes": yes, "no": no, "not_yes": not_yes, "not_no": not_no}
    p = {name: np.asarray(values, dtype=np.float64) for name, values in given.items()}
    n = len(p["yes"])
    for name, values in p.items():
        if values.shape != (n,) or n == 0:
            raise ActivationError(
                f"'{name}' has shape {values.shape}; expected ({n},), one probability a pair, "
                "at least one pair"
            )
        if not ((values >= 0) & (values <= 1)).all():
            raise ActivationError(
                f"'{name}' holds {values[~((values >= 0) & (values <= 1))][0]:.3g}, which is no "
                "probability; give what p_yes and p_no return, not scores"
            )
    if (labels is not None and len(labels) != n) or (groups and len(groups) != n):
        raise ActivationError(f"labels and groups have one entry for each of {n} pairs")
    names = groups or tuple(f"pair{i}" for i in range(n))
    consistency, contradiction = polar_consistency(**p), contradiction_index(**p)
    truer = (p["yes"] - p["no"]) - (p["not_yes"] - p["not_no"])
    right = np.full(n, np.nan)
    if labels is not None:
        side = np.where(np.asarray(labels) == 1, 1.0, -1.0)
        right = np.where(truer == 0, 0.5, np.asarray(np.sign(truer) == side, dtype=np.float64))
    return Polarity(
        cluster_mean(consistency, names, seed=seed, unit="polar consistency"),
        cluster_mean(contradiction, names, seed=seed, unit="contradiction index"),
        cluster_mean(right, names, seed=seed, unit="fraction"),
        tuple(float(v) for v in consistency),
        tuple(float(v) for v in contradiction),
    )
