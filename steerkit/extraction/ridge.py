"""Ridge regression of the label on the activations."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.methods import METHODS
from steerkit.extraction.penalty import feature_size
from steerkit.extraction.training import Training

GRID = tuple(10.0**k for k in range(-2, 6))
"""Penalties tried, for features of mean variance 1."""


class Ridge:
    """Weights of a ridge regression of the labels (1 and -1), penalty by cross-validation.

    Minimises sum (s - w.x - b)^2 + penalty |w|^2, the intercept not penalised, features
    divided by their root mean variance. The penalty has the lowest squared error when each
    group is left out in turn, exactly and without refitting (PRESS); of equals the smallest.
    Every labelling chooses its own. Rows that all belong to one group are left out singly.

    Source: Hoerl and Kennard 1970, Technometrics 12, 55; Allen 1974, Technometrics 16, 125.
    """

    supervised = True
    estimates = "(cov + penalty)^-1 cov(x, label), the regularised least-squares weights"

    def __call__(
        self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows."""
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int = 0
    ) -> Float[Tensor, "d_model k"]:
        """All labellings and penalties from one factorisation."""
        size = feature_size(rows)
        z, spread = rows.coordinates / size, rows.spread / size**2
        target = 2 * labels.to(z.dtype) - 1
        target = target - target.mean(0)
        chosen = torch.tensor(GRID, dtype=z.dtype)[left_out_error(rows, target).argmin(0)]
        w = (z.T @ target) / (spread[:, None] + chosen)
        return rows.axes.T @ w / size


METHODS.register("ridge")(Ridge())


def left_out_error(rows: Training, target: Float[Tensor, "row k"]) -> Float[Tensor, "penalty k"]:
    """Sum of squared errors at each penalty of `GRID` when each group in turn is left out.

    With H the matrix that maps targets to fitted values (the mean included), the errors of a
    left-out group g are (I - H_gg)^-1 times its residuals.

    Args:
        rows: the rows and their groups.
        target: centred.
    """
    size = feature_size(rows)
    z, spread = rows.coordinates / size, rows.spread / size**2
    projected = z.T @ target
    totals = []
    for penalty in GRID:
        shrunk = 1 / (spread + penalty)
        residual = target - z @ (shrunk[:, None] * projected)
        half = z * shrunk.sqrt()
        total = torch.zeros(target.shape[1], dtype=z.dtype)
        for members in _of_equal_size(rows.groups):
            block = half[members]
            hat = block @ block.mT + 1 / len(rows)
            inside = torch.eye(members.shape[1], dtype=z.dtype) - hat
            total += (torch.linalg.solve(inside, residual[members]) ** 2).sum((0, 1))
        totals.append(total)
    return torch.stack(totals)


def _of_equal_size(groups: Sequence[str]) -> Iterator[Tensor]:
    """The rows of the groups, `[group member]` for each size of group."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if len(members) == 1:
        members = {str(row): [row] for row in range(len(groups))}
    for size in sorted({len(m) for m in members.values()}):
        yield torch.tensor([m for m in members.values() if len(m) == size])
