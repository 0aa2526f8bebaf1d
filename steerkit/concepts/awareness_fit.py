"""Difference of means with its layer chosen inside every fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import ActivationError
from steerkit.extraction.ranking import auc_columns
from steerkit.statistics import Floats, grouped_folds

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Held:
    """Scores of every row by a fit that saw none of its group.

    Attributes:
        scores: `[row]`, in standard deviations of the rows that were fitted on.
        folds: `[row]`, which fit each is from.
        sites: of each fit, the index of the site that its own rows chose.
    """

    scores: Floats
    folds: Rows
    sites: tuple[int, ...]


def mean_gap(x: Floats, y: Rows) -> Floats:
    """Unit vectors from the negative to the positive mean, `[site d_model]`; 0 where they agree."""
    gap = x[y == 1].mean(0) - x[y == 0].mean(0)
    found: Floats = gap / np.maximum(np.linalg.norm(gap, axis=-1, keepdims=True), 1e-30)
    return found


def aucs_by_site(x: Floats, y: Rows, groups: Sequence[str], n_folds: int, seed: int) -> Floats:
    """AUC over grouped folds at every site, the direction refitted in each, `[site]`.

    Args:
        x: `[row site d_model]`.
        y: 1 or 0 of each row.
        groups: of each row.
        n_folds: at most.
        seed: of the folds.
    """
    right, compared = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for train, test in grouped_folds(y, groups, n_folds=n_folds, seed=seed):
        units = mean_gap(x[train], y[train])
        value, pairs = auc_columns(np.einsum("rsd,sd->rs", x[test], units), y[test])
        right += np.where(pairs > 0, value * pairs, 0)
        compared += pairs
    with np.errstate(invalid="ignore"):
        found: Floats = right / compared
    return found


def cross_fitted(
    x: Floats,
    y: Rows,
    groups: Sequence[str],
    usable: NDArray[np.bool_],
    n_folds: int,
    seed: int,
) -> Held:
    """Score every row by a site and a direction that its fold's other rows chose and fitted.

    Args:
        x: `[row site d_model]`.
        y: 1 or 0 of each row.
        groups: of each row.
        usable: rows that may be fitted on; all are scored.
        n_folds: outer and inner.
        seed: of the folds.

    Raises:
        ActivationError: means that are the same, or rows that project on one point.
    """
    scores, folds = np.zeros(len(y)), np.zeros(len(y), dtype=np.int64)
    names, chosen = np.asarray(groups), []
    for number, (train, test) in enumerate(grouped_folds(y, groups, n_folds=n_folds, seed=seed)):
        rows = train[usable[train]]
        aucs = aucs_by_site(x[rows], y[rows], names[rows].tolist(), n_folds, seed)
        site = int(np.nanargmax(aucs))
        unit = mean_gap(x[rows, site], y[rows])
        seen = x[rows, site] @ unit
        if not seen.std() > 0:
            raise ActivationError(
                "test-like and deploy-like prompts have the same mean at every site; look at the "
                "contrast"
            )
        scores[test] = (x[test, site] @ unit - seen.mean()) / seen.std()
        folds[test] = number
        chosen.append(site)
    return Held(scores, folds, tuple(chosen))
