"""Concept activation vector: the normal of a logistic-regression probe."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction import column_logistic
from steerkit.extraction.methods import METHODS
from steerkit.extraction.training import Training
from steerkit.statistics import grouped_folds

GRID = tuple(10.0**k for k in range(-4, 2))
"""Inverse penalties C tried, for features of mean variance 1."""


class Logistic:
    """Weights of an L2-regularised logistic regression, C by cross-validation.

    Features are centred and divided by one number, their root mean variance, so that a C
    means the same at every layer. C has the lowest held-out log-loss over five grouped folds
    of the given rows; of equals the smallest. `many` uses the C of column 0 for all columns.

    Source: Kim et al. 2018, concept activation vectors (arXiv:1711.11279).
    """

    supervised = True
    estimates = "the weights of the regularised log-odds, log p(positive | x) = w.x + b"

    def __call__(
        self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows."""
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int = 0
    ) -> Float[Tensor, "d_model k"]:
        """All labellings at the C that the observed one chose."""
        size = feature_size(rows)
        z = rows.coordinates / size
        chosen = choose_c(z, labels[:, 0], rows.groups, seed=seed)
        exact = column_logistic.fit(z, labels[:, :1], torch.tensor([chosen]).double())[0]
        if labels.shape[1] == 1:
            return rows.axes.T @ exact / size
        # A null is a rank statistic: at this tolerance its draws correlate 0.999 with exact ones.
        rest = column_logistic.fit(
            z,
            labels[:, 1:],
            torch.full((labels.shape[1] - 1,), chosen, dtype=z.dtype),
            tolerance=1e-2,
            max_steps=30,
        )[0]
        return rows.axes.T @ torch.cat([exact, rest], 1) / size


METHODS.register("logistic")(Logistic())


def feature_size(rows: Training) -> float:
    """Root mean variance of the features."""
    return float((rows.spread.sum() / (len(rows) * rows.d_model)).sqrt())


def choose_c(
    z: Float[Tensor, "row rank"], labels: Tensor, groups: Sequence[str], *, seed: int
) -> float:
    """The C of lowest held-out log-loss, every C and fold a column of one fit."""
    y = labels.to(z.dtype)
    folds = grouped_folds(labels.numpy(), groups, seed=seed)
    held_out = torch.zeros(len(y), len(folds), dtype=torch.bool)
    for column, (_, test) in enumerate(folds):
        held_out[torch.from_numpy(test), column] = True
    out = held_out.repeat(1, len(GRID))
    c = torch.tensor(GRID, dtype=z.dtype).repeat_interleave(len(folds))
    w, b = column_logistic.fit(
        z, y[:, None].expand_as(out), c, weights=(~out).to(z.dtype), tolerance=1e-2, max_steps=100
    )
    margin = (z @ w + b) * (1 - 2 * y[:, None])
    loss = torch.where(out, torch.nn.functional.softplus(margin), 0.0)
    totals = loss.sum(0).reshape(len(GRID), len(folds)).sum(1)
    return GRID[int(totals.argmin())]
