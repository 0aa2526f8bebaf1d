"""Linear discriminant analysis with Ledoit-Wolf shrinkage of the full covariance."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.methods import METHODS
from steerkit.extraction.training import Training, class_means


class LDA:
    """Inverse within-class covariance times the mean difference.

    The covariance S is shrunk to (1 - r) S + r m I, m its mean variance, with r by Ledoit
    and Wolf on the class-centred rows. Its size is up to a positive factor.

    Within-class covariance is the total one less a rank-1 term along delta, which changes
    only the size of S^-1 delta (Sherman-Morrison). So the total scatter, which no labelling
    changes, is factored once, and every labelling costs a matrix product.

    Source: Fisher 1936; Ledoit and Wolf 2004, J. Multivariate Analysis 88, 365.
    """

    supervised = True
    estimates = "cov^-1 delta, delta the mean difference, cov the within-class covariance"

    def __call__(
        self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows."""
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int = 0
    ) -> Float[Tensor, "d_model k"]:
        """All labellings from one factorisation."""
        n = len(rows)
        positive, negative = class_means(rows.coordinates, labels)
        delta = positive - negative
        shrinkage, mean_variance = _ledoit_wolf(rows, labels, positive, negative)
        variance = rows.spread[:, None] / n
        shrunk = (1 - shrinkage) * variance + shrinkage * mean_variance
        return rows.axes.T @ (delta / shrunk)


METHODS.register("lda")(LDA())


def _ledoit_wolf(
    rows: Training, labels: Tensor, positive: Tensor, negative: Tensor
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Shrinkage and mean variance of the class-centred rows, for each labelling."""
    z, n, d = rows.coordinates, len(rows), rows.d_model
    y = labels.to(z.dtype)
    delta = positive - negative
    weight = y.sum(0) * (1 - y).sum(0) / n
    # |row - its class mean|^2, without forming the class-centred rows.
    squared = (z**2).sum(1)[:, None]
    to_positive = squared - 2 * z @ positive + (positive**2).sum(0)
    to_negative = squared - 2 * z @ negative + (negative**2).sum(0)
    distance = torch.where(y > 0.5, to_positive, to_negative)
    norm2 = (delta**2).sum(0)
    mean_variance = (rows.spread.sum() - weight * norm2) / (n * d)
    frobenius = (
        (rows.spread**2).sum()
        - 2 * weight * (rows.spread[:, None] * delta**2).sum(0)
        + weight**2 * norm2**2
    ) / n**2
    noise = ((distance**2).sum(0) / n - frobenius) / (d * n)
    departure = frobenius / d - mean_variance**2
    shrinkage = (noise.clamp(min=0) / departure.clamp(min=1e-300)).clamp(max=1)
    return shrinkage, mean_variance
