"""Top principal component of the differences between positive and negative rows."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.methods import METHODS
from steerkit.extraction.pairs import label_pairs
from steerkit.extraction.training import Training, gap


class PCA:
    """Axis along which positive-minus-negative differences are largest in mean square.

    Of pairs (groups of one positive and one negative row), the differences are those within
    pairs. Otherwise they are all differences of a positive and a negative row, with one
    covariance for both classes: 2 cov + delta delta'. The second moment is taken about
    zero, which is what shuffling the signs of the differences before PCA amounts to. The
    axis has no sign of its own: it is oriented to the positive class mean.

    Source: Zou et al. 2023, representation engineering (arXiv:2310.01405).
    """

    supervised = True
    estimates = "top eigenvector of E[dd'], d = positive - negative; sign from the labels"

    def __call__(
        self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows."""
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int = 0
    ) -> Float[Tensor, "d_model k"]:
        """One decomposition where labels only change the sign, as they do within pairs."""
        y = labels.to(torch.float64)
        pairs = label_pairs(rows.groups, y[:, 0])
        if len(pairs):
            # Exchanging labels within pairs only changes the signs of the differences.
            axes = _top(rows.x[pairs[:, 0]] - rows.x[pairs[:, 1]])[:, None]
        else:
            axes = _all_pairs(rows, y)
        sign = (axes * gap(rows.x, y)).sum(0).sign()
        return axes * torch.where(sign == 0, 1.0, sign)


METHODS.register("pca")(PCA())


def _top(differences: Float[Tensor, "group d"]) -> Float[Tensor, "d"]:
    """First right singular vector, through the smaller of the two Gram matrices."""
    n, d = differences.shape
    if d <= n:
        return torch.linalg.eigh(differences.T @ differences)[1][:, -1]
    left = torch.linalg.eigh(differences @ differences.T)[1][:, -1]
    axis = differences.T @ left
    return axis / axis.norm()


def _all_pairs(rows: Training, y: Tensor) -> Float[Tensor, "d_model k"]:
    """Top eigenvector of 2 cov + delta delta' for each labelling.

    In the principal axes of all rows the matrix is diagonal plus rank 1, so its top
    eigenvalue is the largest root of the secular equation sum(weight z^2 / (root - a)) = 1.
    """
    n = len(rows)
    delta = gap(rows.coordinates, y)
    balance = y.mean(0) * (1 - y.mean(0))
    diagonal = 2 * rows.spread[:, None] / n
    added = (1 - 2 * balance) * delta**2
    low = diagonal.max().expand(y.shape[1]).clone()
    high = low + added.sum(0)
    for _ in range(80):
        middle = (low + high) / 2
        too_low = (added / (middle - diagonal)).sum(0) > 1
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    axes = rows.axes.T @ (delta / (high - diagonal))
    return axes / axes.norm(dim=0)
