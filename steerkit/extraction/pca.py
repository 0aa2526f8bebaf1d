"""Top principal component of the differences between positive and negative rows."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.methods import METHODS
from steerkit.extraction.training import Training, gap


class PCA:
    """Axis along which positive-minus-negative differences are largest in mean square.

    Where groups hold both labels (pairs), the differences are those between the class means
    of each group. Otherwise they are all differences of a positive and a negative row, with
    one covariance for both classes: 2 cov + delta delta'. The second moment is taken about
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
        code = _codes(rows.groups)
        size = torch.bincount(code).to(torch.float64)
        held = torch.zeros(len(size), y.shape[1], dtype=torch.float64).index_add_(0, code, y)
        mixed = ((held > 0) & (held < size[:, None])).all(1)
        if not mixed.any():
            axes = _all_pairs(rows, y)
        elif (size[mixed] == 2).all():
            axes = _top(_within_groups(rows.x, y[:, :1], code, mixed)[0])[:, None]
        else:
            axes = torch.stack(
                [_top(_within_groups(rows.x, column[:, None], code, mixed)[0]) for column in y.T], 1
            )
        sign = (axes * gap(rows.x, y)).sum(0).sign()
        return axes * torch.where(sign == 0, 1.0, sign)


METHODS.register("pca")(PCA())


def _within_groups(x: Tensor, y: Tensor, code: Tensor, mixed: Tensor) -> Tensor:
    """Difference of the class means in each mixed group: `[k group d_model]`."""
    found = []
    for column in y.T:
        sums = []
        for side in (column, 1 - column):
            total = torch.zeros(len(mixed), x.shape[1], dtype=x.dtype)
            total.index_add_(0, code, x * side[:, None])
            count = torch.bincount(code, weights=side, minlength=len(mixed))
            sums.append(total[mixed] / count[mixed, None])
        found.append(sums[0] - sums[1])
    return torch.stack(found)


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


def _codes(groups: Sequence[str]) -> Tensor:
    number = {group: i for i, group in enumerate(sorted(set(groups)))}
    return torch.tensor([number[group] for group in groups])
