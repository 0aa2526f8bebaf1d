"""Probes of one concept for BiasLens: fitted on all templates, on resamples of them, held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from steerkit.activations import Activations
from steerkit.concepts.cavs import Cavs, Method, fit_cavs
from steerkit.errors import MethodError
from steerkit.extraction.training import Training
from steerkit.statistics import Floats, auc, grouped_folds, row_draws


@dataclass(frozen=True)
class Draws:
    """How the columns of every fit are laid out: observed, resamples, permutations."""

    resamples: int
    permutations: int
    random: int
    seed: int

    @property
    def resampled(self) -> slice:
        """Columns of resamples."""
        return slice(1, 1 + self.resamples)

    @property
    def permuted(self) -> slice:
        """Columns of exchanged references."""
        return slice(1 + self.resamples, None)

    def counts(self, groups: Sequence[str]) -> Floats:
        """Weights `[row 1 + resamples]`: concepts over the same templates share the draws."""
        if not self.resamples:
            return np.ones((len(groups), 1))
        drawn = row_draws(groups, n_resamples=self.resamples, seed=self.seed)
        return np.hstack([np.ones((len(groups), 1)), drawn])


@dataclass(frozen=True, eq=False)
class Concept:
    """Activations of one concept's contrast, and the columns that its probes are fitted to."""

    name: str
    acts: Activations
    labels: Floats
    weights: Floats
    folds: Floats
    """`[row fold]`: 1 where the row is fitted on."""

    @classmethod
    def of(cls, name: str, acts: Activations, draws: Draws) -> "Concept":
        """Labels, weights and folds of what a contrast left.

        Raises:
            MethodError: too few groups to hold any out.
        """
        y = np.asarray(acts.labels)
        groups = acts.groups
        if len({*groups}) < 3:
            raise MethodError(
                f"the contrast '{name}' has {len({*groups})} groups, too few to hold any out; "
                "give at least 3 templates"
            )
        weights = draws.counts(groups)
        labels = np.repeat(y[:, None], weights.shape[1], 1)
        folds = grouped_folds(y, groups, seed=draws.seed)
        return cls(name, acts, labels.astype(np.float64), weights, kept_rows(len(y), folds))

    def fit(self, site: int, draws: Draws, method: Method) -> tuple[Cavs, float]:
        """Probes of all columns at a site, and the held-out AUC of the observed one."""
        rows = Training.of(self.acts.values[:, site], self.acts.groups)
        y = torch.from_numpy(self.labels)
        cavs = fit_cavs(rows, y, torch.from_numpy(self.weights), method=method)
        return cavs, held_out_auc(rows, self.labels[:, 0], self.folds)


def held_out_auc(rows: Training, labels: Floats, folds: Floats) -> float:
    """Mean held-out AUC of a logistic probe, whatever stands for the concept: can it be read?"""
    y = torch.from_numpy(np.repeat(labels[:, None], folds.shape[1], 1).astype(np.float64))
    scores = (rows.x @ fit_cavs(rows, y, torch.from_numpy(folds)).weights).numpy()
    tests = [column == 0 for column in folds.T]
    return float(np.nanmean([auc(scores[t, f], labels[t]) for f, t in enumerate(tests)]))


def kept_rows(n: int, folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Floats:
    """`[row fold]`: 1 where a row is fitted on, 0 where it is held out."""
    kept = np.ones((n, len(folds)))
    for column, (_, test) in enumerate(folds):
        kept[test, column] = 0
    return kept
