"""The mean gradient of some prompts, judged on others, with what chance gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerkit.statistics import (
    Estimate,
    Floats,
    Null,
    group_codes,
    null,
    percentiles,
    row_draws,
)

Folds = tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]


def folds_of(groups: Sequence[str], n_folds: int, *, seed: int = 0) -> Folds:
    """(train rows, test rows) of folds that hold whole groups, as many in each as can be."""
    code = group_codes(groups)
    order = np.random.default_rng(seed).permutation(int(code.max()) + 1)
    fold = np.empty_like(order)
    fold[order] = np.arange(len(order)) % min(n_folds, len(order))
    of_row = fold[code]
    return tuple(
        (np.flatnonzero(of_row != f), np.flatnonzero(of_row == f)) for f in range(fold.max() + 1)
    )


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Gradients of prompts in folds: each is met by the mean gradient of the other folds.

    Attributes:
        slopes: `[prompt d_model]`, in units of the metric per activation unit.
        groups: of the prompts; folds never split one.
        folds: (train rows, test rows).
        seed: of resamples, exchanged signs and random vectors.
    """

    slopes: Floats
    groups: Sequence[str]
    folds: Folds
    seed: int = 0

    def effects(self, weights: Floats) -> Floats:
        """Mean slope along the unit mean gradient of the other folds, for columns of weights.

        Weights count rows (resamples) or turn their sign (exchanged targets). A mean gradient
        of exactly zero points nowhere and adds nothing.
        """
        total = np.zeros(weights.shape[1])
        for train, test in self.folds:
            fitted = self.slopes[train].T @ weights[train]
            met = self.slopes[test].T @ weights[test]
            size = np.linalg.norm(fitted, axis=0)
            total += np.where(size > 0, (fitted * met).sum(0) / np.maximum(size, 1e-300), 0.0)
        return np.asarray(total / np.abs(weights).sum(0))

    @property
    def effect(self) -> float:
        """The cross-fitted effect: units of the metric per activation unit."""
        return float(self.effects(np.ones((len(self.slopes), 1)))[0])

    def estimate(self, scale: float, unit: str, *, n_resamples: int = 1000) -> Estimate:
        """The effect of `scale` activation units; groups are drawn and every fold fitted again."""
        n = len({*self.groups})
        draws = self.effects(row_draws(self.groups, n_resamples=n_resamples, seed=self.seed))
        low, high = percentiles(draws * scale, n)
        return Estimate(self.effect * scale, low, high, n, unit)

    def exchanged(self, scale: float, n: int) -> Null:
        """The same when the target of random groups is turned round (more becomes less).

        Both the fitting and the meeting prompts of a group turn: the null is that gradients
        of different groups do not agree.
        """
        code = group_codes(self.groups)
        rng = np.random.default_rng((self.seed, 1))
        signs = rng.choice((-1.0, 1.0), (int(code.max()) + 1, n))[code]
        return null(
            "targets turned round in random groups",
            self.effect * scale,
            self.effects(signs) * scale,
        )

    def random(self, scale: float, n: int, states: Floats | None = None) -> Null:
        """Size of the effect of random vectors of equal norm.

        Isotropic, or random mixtures of `states [prompt d_model]`: shaped by their covariance.
        """
        rng = np.random.default_rng((self.seed, 2))
        if states is None:
            vectors, name = rng.standard_normal((self.slopes.shape[1], n)), "random directions"
        else:
            vectors = (states - states.mean(0)).T @ rng.standard_normal((len(states), n))
            name = "random directions shaped by the covariance"
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = self.slopes.mean(0) @ vectors / np.linalg.norm(vectors, axis=0)
        return null(name, abs(self.effect) * scale, np.abs(moved) * scale)
