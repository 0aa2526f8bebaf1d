"""Held-out scores of fitted directions, and what the same procedure gives by chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerkit.extraction.labelled import Labelled
from steerkit.extraction.methods import fit_columns
from steerkit.extraction.ranking import auc_columns, fold_auc
from steerkit.extraction.text_baseline import text_scores
from steerkit.extraction.training import Training
from steerkit.protocols import Extractor
from steerkit.statistics import Estimate, grouped_folds, permutations, row_draws

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Scores of one method at one site.

    Attributes:
        auc: AUC over grouped folds, compared within folds, with a group-bootstrap interval.
        draws: the same AUC under each permuted labelling.
    """

    auc: Estimate
    draws: Floats


@dataclass(frozen=True, eq=False)
class Plan:
    """The folds and permuted labellings that every site and method share."""

    data: Labelled
    folds: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    permuted: NDArray[np.int64]
    fold_of: NDArray[np.int64]
    seed: int

    @classmethod
    def make(cls, data: Labelled, *, n_folds: int, n_permutations: int, seed: int) -> "Plan":
        """Folds over prompts; rows follow their prompt."""
        data.require_groups()
        folds = tuple(grouped_folds(data.labels, data.groups, n_folds=n_folds, seed=seed))
        fold_of = np.zeros(len(data.labels), dtype=np.int64)
        for number, (_, test) in enumerate(folds):
            fold_of[test] = number
        rng = np.random.default_rng(seed)
        # Across groups only within a fold: every exchange is as balanced as what was observed.
        exchanged = permutations(data.labels, data.groups, n_permutations, rng, within=fold_of)
        permuted = np.hstack([data.labels[:, None], exchanged])
        return cls(data, folds, permuted, fold_of, seed)

    @property
    def row_folds(self) -> NDArray[np.int64]:
        """The fold of each row."""
        return self.fold_of[self.data.owner]

    def score(self, x: Tensor, methods: Mapping[str, Extractor]) -> dict[str, HeldOut]:
        """Refit every method in every fold, under the observed and every permuted labelling."""
        groups = np.asarray(self.data.row_groups)
        labels = self.permuted[self.data.owner]
        right = {name: np.zeros(labels.shape[1]) for name in methods}
        compared = np.zeros(labels.shape[1])
        held_out = {name: np.zeros(len(labels)) for name in methods}
        for number in range(len(self.folds)):
            test = self.row_folds == number
            rows = Training.of(x[~test], groups[~test].tolist())
            columns = torch.from_numpy(labels[~test])
            pairs = np.zeros(labels.shape[1])
            for name, method in methods.items():
                w = fit_columns(method, rows, columns, seed=self.seed)
                scores = (x[test] @ w).numpy()
                value, pairs = auc_columns(scores, labels[test])
                right[name] += np.where(pairs > 0, value * pairs, 0)
                held_out[name][test] = scores[:, 0]
            compared += pairs
        return {
            name: HeldOut(self.estimate(held_out[name]), right[name][1:] / compared[1:])
            for name in methods
        }

    def random(self, x: Tensor, n: int, *, shaped: bool = False) -> Floats:
        """AUC of random directions, turned to whichever side separates better.

        Isotropic, or `shaped` by the covariance of the rows: random mixtures of them.
        """
        generator = torch.Generator().manual_seed(self.seed)
        wide = len(x) if shaped else x.shape[1]
        directions = torch.randn(wide, n, generator=generator, dtype=torch.float64)
        if shaped:
            directions = (x - x.mean(0)).T @ directions
        scores = (x @ directions).numpy()
        labels = self.data.row_labels
        right, compared = np.zeros(n), np.zeros(n)
        for number in range(len(self.folds)):
            test = self.row_folds == number
            value, pairs = auc_columns(scores[test], labels[test])
            right += np.where(pairs > 0, value * pairs, 0)
            compared += pairs
        return 0.5 + np.abs(right / compared - 0.5)

    def text(self) -> Estimate | None:
        """AUC of the words alone, on the same folds."""
        data = self.data
        scores = text_scores(data.prompts, data.labels, self.folds)
        if scores is None:
            return None
        return fold_auc(scores, data.labels, self.fold_of, data.groups, seed=self.seed)

    @cached_property
    def _draws(self) -> Floats:
        return row_draws(self.data.row_groups, seed=self.seed)

    def estimate(self, scores: Floats) -> Estimate:
        """AUC of held-out scores `[row]` with its interval, the draws shared by all."""
        data = self.data
        return fold_auc(scores, data.row_labels, self.row_folds, data.row_groups, draws=self._draws)


def maxima(scores: Sequence[HeldOut]) -> Floats:
    """The largest permuted AUC over all sites and methods, one for each labelling.

    Compared with these, a p-value is corrected for having looked everywhere.
    """
    return np.max([s.draws for s in scores], axis=0)
