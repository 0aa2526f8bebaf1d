"""Held-out separation: AUC on groups that a probe was not fitted on."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerkit.extraction.ranking import weighted_auc
from steerkit.searches.criteria.rows import CRITERIA, Plan, Rows
from steerkit.statistics import Floats


class HeldOut(ABC):
    """AUC on held-out groups, the probe refitted in each fold of each draw.

    Scores are compared within a fold only, for every fold has its own fit. Where classes are
    apart, it is 1 at every site and tells them no further.
    """

    measures: str
    unit = "AUC"

    @abstractmethod
    def fit(
        self,
        x: Float[Tensor, "row axis"],
        differences: Float[Tensor, "axis draw"],
        plan: Plan,
        train: NDArray[np.int64],
    ) -> Float[Tensor, "axis draw"]:
        """The probe of each draw, given its mean differences on the training rows."""

    def __call__(self, rows: Rows) -> Floats:
        """Every draw refits every fold; fits and scores are matrix products."""
        plan = rows.plan
        right, compared = np.zeros((2, plan.n_draws))
        for train, test in plan.folds:
            positive, negative = plan.positive[train], plan.negative[train]
            missing = (positive.sum(0) == 0) | (negative.sum(0) == 0)
            x = rows.z[train]
            differences = x.T @ (positive / positive.sum(0) - negative / negative.sum(0))
            fitted = self.fit(x, torch.where(missing, 0.0, differences), plan, train)
            value, pairs = auc_columns(
                (rows.z[test] @ fitted).numpy(), plan.y[test].numpy(), plan.weights[test].numpy()
            )
            pairs = np.where(missing.numpy(), 0, pairs)
            right += np.where(pairs > 0, value * pairs, 0)
            compared += pairs
        with np.errstate(invalid="ignore"):
            return right / compared


class MeanDifferenceAUC(HeldOut):
    """The probe is the difference of the class means."""

    measures = "AUC on held-out groups of the mean difference, refitted in each fold"

    def fit(self, x: Tensor, differences: Tensor, plan: Plan, train: NDArray[np.int64]) -> Tensor:
        """As given."""
        return differences


class DiscriminantAUC(HeldOut):
    """The probe is a linear discriminant, S^-1 (mu+ - mu-), which undoes the spread in classes.

    S is the within-class covariance of the fold's training rows, shrunk after Ledoit and
    Wolf. Resamples refit the means, not S. Under permuted labels S is the covariance of all
    training rows: it differs by a term along the mean difference, which changes the size of
    the probe alone (Sherman-Morrison).

    Source: Ledoit and Wolf 2004, J. Multivariate Analysis 88, 365.
    """

    measures = "AUC on held-out groups of a shrunk linear discriminant, refitted in each fold"

    def fit(self, x: Tensor, differences: Tensor, plan: Plan, train: NDArray[np.int64]) -> Tensor:
        """Two systems of equations, one for the observed labels and one for permuted ones."""
        side = plan.labels[train] == 1
        centred = x.clone()
        for rows in (side, ~side):
            if rows.any():
                centred[rows] -= x[rows].mean(0)
        n = 1 + plan.n_resamples
        observed = _whitened(centred, differences[:, :n])
        return torch.cat([observed, _whitened(x - x.mean(0), differences[:, n:])], 1)


def _whitened(
    centred: Float[Tensor, "row axis"], differences: Float[Tensor, "axis draw"]
) -> Float[Tensor, "axis draw"]:
    """S^-1 differences, S the shrunk covariance of the rows; as they are where nothing varies."""
    if not differences.shape[1]:
        return differences
    n, d = centred.shape
    covariance = centred.T @ centred / n
    mean = float(covariance.trace()) / d
    if mean <= 0:
        return differences
    size = covariance.pow(2).sum()
    noise = (centred.pow(2).sum(1).pow(2).mean() - size) / n
    departure = size - d * mean**2
    share = float((noise / departure.clamp_min(1e-300)).clamp(0, 1))
    shrunk = (1 - share) * covariance + (share + 1e-9) * mean * torch.eye(d, dtype=centred.dtype)
    solved: Tensor = torch.linalg.solve(shrunk, differences)
    return solved


def auc_columns(scores: Floats, labels: NDArray[Any], weights: Floats) -> tuple[Floats, Floats]:
    """AUC of each column of `scores [row column]` under its own labels and weights, and its pairs.

    Ties count half; NaN and 0 where a column lacks a side.
    """
    order = np.argsort(scores, axis=0)
    ordered = np.take_along_axis(scores, order, axis=0)
    pos = np.take_along_axis(weights * labels, order, axis=0)
    neg = np.take_along_axis(weights * (1 - labels), order, axis=0)
    compared = pos.sum(0) * neg.sum(0)
    with np.errstate(invalid="ignore"):
        value = (pos * (neg.cumsum(0) - neg)).sum(0) / compared
    tied = (ordered[1:] == ordered[:-1]).any(0)
    for column in np.flatnonzero(tied):
        here = slice(column, column + 1)
        value[here] = weighted_auc(scores[:, column], labels[:, column], weights[:, here])[0]
    return value, compared


CRITERIA.register("auc")(MeanDifferenceAUC())
CRITERIA.register("probe")(DiscriminantAUC())
