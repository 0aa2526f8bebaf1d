"""Held-out scores of subspaces: a probe inside, on folds that neither has seen."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerkit.errors import ActivationError
from steerkit.extraction.ranking import auc_columns
from steerkit.extraction.scoring import HeldOut, Plan
from steerkit.extraction.spans import Labelling, Span
from steerkit.extraction.training import Training

Floats = NDArray[np.float64]

LEAST_VARIANCE = 1e-9
"""Added to the variance inside a subspace, as a fraction of its mean."""


def score(
    plan: Plan, x: Tensor, method: Span, ks: Sequence[int], categories: Tensor
) -> dict[int, HeldOut]:
    """Refit subspace and probe in every fold, under the observed and every permuted labelling.

    Raises:
        ActivationError: a k above the rank that a fold's training rows have.
    """
    groups = np.asarray(plan.data.row_groups)
    labels = plan.permuted[plan.data.owner]
    tally = _Tally(plan, ks, labels)
    for number in range(len(plan.folds)):
        test = plan.row_folds == number
        rows = Training.of(x[~test], groups[~test].tolist())
        labelling = Labelling.of(torch.from_numpy(labels[~test]), categories[~test])
        axes = method(rows, labelling, max(ks))
        if axes.shape[2] < max(ks):
            raise ActivationError(
                f"k {max(ks)} is more than the {axes.shape[2]} dimensions that the "
                f"{len(rows)} training rows of fold {number} give; ask for fewer, or capture "
                "more prompts"
            )
        seen, new = (torch.einsum("rd,kda->kra", x[part], axes) for part in (~test, test))
        tally.add(test, seen, new)
    return tally.held_out()


def random(
    plan: Plan, x: Tensor, ks: Sequence[int], n: int, *, shaped: bool = False
) -> dict[int, Floats]:
    """AUC of the same probe in random subspaces, isotropic or mixtures of the rows."""
    if n == 0:
        return {j: np.empty(0) for j in ks}
    generator = torch.Generator().manual_seed(plan.seed)
    wide, k = (len(x) if shaped else x.shape[1]), max(ks)
    axes = torch.randn(wide, n * k, generator=generator, dtype=torch.float64)
    if shaped:
        axes = (x - x.mean(0)).T @ axes
    inside = (x @ axes).reshape(len(x), n, k).transpose(0, 1)
    tally = _Tally(plan, ks, np.repeat(plan.data.row_labels[:, None], n, axis=1))
    for number in range(len(plan.folds)):
        test = plan.row_folds == number
        tally.add(test, inside[:, ~test], inside[:, test])
    return {j: tally.right[j] / tally.compared for j in ks}


def discriminants(
    inside: Float[Tensor, "column row k"], labels: Float[Tensor, "row column"]
) -> Float[Tensor, "column k"]:
    """Inverse covariance times mean difference of each column's coordinates: Fisher's probe.

    The covariance is that of all rows, which gives the direction that the one within classes
    does (see `lda`).
    """
    y = labels.T.to(inside.dtype)[:, None]
    delta = ((y / y.sum(2, keepdim=True) - (1 - y) / (1 - y).sum(2, keepdim=True)) @ inside)[:, 0]
    centred = inside - inside.mean(1, keepdim=True)
    scatter = centred.mT @ centred
    floor = LEAST_VARIANCE * scatter.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(inside.shape[2], dtype=inside.dtype)
    found: Tensor = torch.linalg.solve(scatter + floor[:, None, None] * eye, delta)
    return found


class _Tally:
    """Pairs ordered rightly in the folds so far, for each k and column."""

    def __init__(self, plan: Plan, ks: Sequence[int], labels: NDArray[np.int64]) -> None:
        self.plan, self.labels = plan, labels
        self.right = {k: np.zeros(labels.shape[1]) for k in ks}
        self.compared = np.zeros(labels.shape[1])
        self.observed = {k: np.zeros(len(labels)) for k in ks}

    def add(self, test: NDArray[np.bool_], seen: Tensor, new: Tensor) -> None:
        """One fold: coordinates of its training and of its test rows, `[column row k]`."""
        pairs = np.zeros(self.labels.shape[1])
        for k in self.right:
            w = discriminants(seen[:, :, :k], torch.from_numpy(self.labels[~test]))
            scores = torch.einsum("kra,ka->rk", new[:, :, :k], w).numpy()
            value, pairs = auc_columns(scores, self.labels[test])
            self.right[k] += np.where(pairs > 0, value * pairs, 0)
            self.observed[k][test] = scores[:, 0]
        self.compared += pairs

    def held_out(self) -> dict[int, HeldOut]:
        """What the folds gave, column 0 with its interval."""
        return {
            k: HeldOut(self.plan.estimate(self.observed[k]), (right / self.compared)[1:])
            for k, right in self.right.items()
        }
