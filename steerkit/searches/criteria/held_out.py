"""Held-out separation by the mean difference."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steerkit.extraction.ranking import weighted_auc
from steerkit.searches.criteria.rows import CRITERIA, Rows
from steerkit.statistics import Floats


class HeldOutAUC:
    """AUC of the mean difference on held-out groups, refitted in each fold.

    Scores are compared within a fold only, for every fold has its own fit. Where classes are
    apart, it is 1 at every site and tells them no further.
    """

    measures = "AUC on held-out groups of a mean-difference probe, refitted in each fold"
    unit = "AUC"

    def __call__(self, rows: Rows) -> Floats:
        """Every draw refits every fold; fits and scores are matrix products."""
        plan = rows.plan
        right, compared = np.zeros((2, plan.n_draws))
        for train, test in plan.folds:
            positive, negative = plan.positive[train], plan.negative[train]
            x = rows.z[train]
            fitted = x.T @ (positive / positive.sum(0) - negative / negative.sum(0))
            scores = (rows.z[test] @ fitted).nan_to_num(nan=0.0).numpy()
            weights = plan.weights[test].numpy()
            missing = ~torch.isfinite(fitted).all(0).numpy()
            value, pairs = auc_columns(scores, plan.y[test].numpy(), weights)
            pairs = np.where(missing, 0, pairs)
            right += np.where(pairs > 0, value * pairs, 0)
            compared += pairs
        with np.errstate(invalid="ignore"):
            return right / compared


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


CRITERIA.register("auc")(HeldOutAUC())
