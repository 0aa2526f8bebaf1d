"""What a selecting procedure said of every held-out row: a score and a probability."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.probing.calibration import platt, sigmoid
from steerkit.probing.nested import Choice, Trials
from steerkit.statistics import Estimate, Floats, cluster_mean


@dataclass(frozen=True, eq=False)
class Scored:
    """Held-out scores of the candidates that the outer folds chose; NaN for rows never scored.

    Attributes:
        scores: `[row]`, comparable within an outer fold.
        probabilities: `[row]`, by a Platt fit on the inner folds' scores of the same candidate.
        base: `[row]`, the training rate of positives.
        choices: of each outer fold.
        slopes: Platt slope of each outer fold.
        offsets: its intercepts.
    """

    scores: Floats
    probabilities: Floats
    base: Floats
    choices: tuple[Choice, ...]
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]

    @classmethod
    def of(cls, trials: Trials, labels: NDArray[np.int64]) -> "Scored":
        """Under the first labelling of the trials."""
        scores = trials.held_out()
        probabilities, base = np.full(len(labels), np.nan), np.full(len(labels), np.nan)
        slopes, offsets = [], []
        for k, outer in enumerate(trials.outers):
            inside = trials.inner_scores[k, trials.chosen[k, 0]]
            rows = np.flatnonzero(~np.isnan(inside))
            slope, offset = platt(inside[rows], labels[rows])
            probabilities[outer.test] = sigmoid(slope * scores[outer.test] + offset)
            base[outer.test] = labels[outer.train].mean()
            slopes.append(slope)
            offsets.append(offset)
        return cls(scores, probabilities, base, trials.choices, tuple(slopes), tuple(offsets))

    def accuracy(self, labels: NDArray[np.int64], groups: Sequence[str]) -> Estimate:
        """Share of rows on the right side of probability 0.5."""
        return accuracy(self.probabilities > 0.5, labels, groups)


def accuracy(said: NDArray[Any], labels: NDArray[np.int64], groups: Sequence[str]) -> Estimate:
    """Share of rows whose label was said, with an interval by groups."""
    right = (np.asarray(said).astype(bool) == (labels == 1)).astype(np.float64)
    return cluster_mean(right, groups, unit="fraction")
