"""The penalty of a linear probe, chosen by cross-validation that never splits a group."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction import column_probes
from steerkit.extraction.column_probes import Loss
from steerkit.extraction.training import Training
from steerkit.statistics import grouped_folds

GRID = tuple(10.0**k for k in range(-4, 2))
"""Inverse penalties C tried, for features of mean variance 1."""


def feature_size(rows: Training) -> float:
    """Root mean variance of the features."""
    return float((rows.spread.sum() / (len(rows) * rows.d_model)).sqrt())


def choose_c(
    z: Float[Tensor, "row rank"],
    labels: Tensor,
    groups: Sequence[str],
    *,
    loss: Loss = column_probes.LOGISTIC,
    seed: int,
) -> float:
    """The C of lowest held-out loss, every C and fold a column of one fit."""
    y = labels.to(z.dtype)
    folds = grouped_folds(labels.numpy(), groups, seed=seed)
    held_out = torch.zeros(len(y), len(folds), dtype=torch.bool)
    for column, (_, test) in enumerate(folds):
        held_out[torch.from_numpy(test), column] = True
    out = held_out.repeat(1, len(GRID))
    c = torch.tensor(GRID, dtype=z.dtype).repeat_interleave(len(folds))
    w, b = column_probes.fit(
        z,
        y[:, None].expand_as(out),
        c,
        loss=loss,
        weights=(~out).to(z.dtype),
        tolerance=1e-2,
        max_steps=100,
    )
    losses = torch.where(out, loss.value((z @ w + b) * (2 * y[:, None] - 1)), 0.0)
    totals = losses.sum(0).reshape(len(GRID), len(folds)).sum(1)
    return GRID[int(totals.argmin())]


def fit_columns(
    rows: Training, labels: Float[Tensor, "row k"], *, loss: Loss, seed: int
) -> Float[Tensor, "d_model k"]:
    """Weights of all labellings at the C that column 0, the observed one, chose.

    Features are centred and divided by one number, their root mean variance, so that a C
    means the same at every layer.
    """
    size = feature_size(rows)
    z = rows.coordinates / size
    chosen = choose_c(z, labels[:, 0], rows.groups, loss=loss, seed=seed)
    c = torch.full((labels.shape[1],), chosen, dtype=z.dtype)
    w = column_probes.fit(z, labels[:, :1], c[:1], loss=loss, tolerance=1e-9, max_steps=1000)[0]
    if labels.shape[1] > 1:
        # A null is a rank statistic: at this tolerance its draws correlate 0.999 with exact ones.
        rest = column_probes.fit(z, labels[:, 1:], c[1:], loss=loss, tolerance=1e-2, max_steps=30)
        w = torch.cat([w, rest[0]], 1)
    return rows.axes.T @ w / size
