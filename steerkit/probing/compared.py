"""A probe beside a control on the same prompts: the paired difference of their AUCs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steerkit.extraction.ranking import weighted_auc
from steerkit.probing.nested import Choice
from steerkit.statistics import Estimate, Floats, percentiles

State = Literal["beaten", "matched", "undecided"]


@dataclass(frozen=True)
class Arm:
    """A control that was scored on the probe's own folds.

    Attributes:
        name: in tables.
        auc: its held-out AUC.
        accuracy: its held-out accuracy.
        difference: the probe's AUC less this one's, groups resampled in pairs. A control below
            1/2 (words that were balanced mislead across folds) inflates it, which is why a
            verdict also asks the probe to be above chance.
        choices: what each outer fold chose, if it chose.
    """

    name: str
    auc: Estimate
    accuracy: Estimate
    difference: Estimate
    choices: tuple[Choice, ...] = ()

    def state(self, margin: float) -> State:
        """`beaten`: the difference's interval is above 0. Else `matched` where it also ends
        below the margin, and `undecided` where it does not: too few prompts to tell.
        """
        if self.difference.low > 0:
            return "beaten"
        return "matched" if self.difference.high <= margin else "undecided"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "name": self.name,
            "auc": self.auc.to_json(),
            "accuracy": self.accuracy.to_json(),
            "difference": self.difference.to_json(),
            "choices": [c.to_json() for c in self.choices],
        }


def auc_difference(
    first: Floats,
    second: Floats,
    labels: NDArray[Any],
    folds: tuple[NDArray[np.int64], NDArray[np.int64]],
    draws: Floats,
    groups: Sequence[str],
) -> Estimate:
    """AUC of `first` less that of `second` on the same rows, with a paired group bootstrap.

    Args:
        first: `[row]` held-out scores.
        second: `[row]` of the other.
        labels: `[row]`, 1 or 0.
        folds: within which scores of each compare.
        draws: `[row resample]`, shared, from `row_draws`.
        groups: `[row]`.
    """
    counts = np.hstack([np.ones((len(labels), 1)), draws])
    values = _auc(first, labels, folds[0], counts) - _auc(second, labels, folds[1], counts)
    redrawn = values[1:][~np.isnan(values[1:])]
    n_groups = len(set(groups))
    if redrawn.size == 0:
        return Estimate(float(values[0]), float("nan"), float("nan"), n_groups, "AUC difference")
    low, high = percentiles(redrawn, n_groups)
    return Estimate(float(values[0]), low, high, n_groups, "AUC difference")


def _auc(scores: Floats, labels: NDArray[Any], folds: NDArray[np.int64], counts: Floats) -> Floats:
    right, compared = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        value, pairs = weighted_auc(scores[rows], labels[rows], counts[rows])
        right += np.where(pairs > 0, value * pairs, 0)
        compared += pairs
    with np.errstate(invalid="ignore", divide="ignore"):
        return right / compared
