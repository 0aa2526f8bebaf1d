"""Least-squares concept erasure: the direction that it reads."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.covariance import Shrunk
from steerkit.extraction.methods import METHODS
from steerkit.extraction.training import Training, gap


class LEACE:
    """What the least-squares eraser of the labels reads: the normal of the plane that it empties.

    Rows whose projection on it is constant tell no linear probe the label. The covariance is
    that of all rows, shrunk by Ledoit and Wolf. Up to the shrinkage it is LDA's direction, as
    within-class and total covariance differ by a term along delta; `Eraser` is what erases.

    Source: Belrose et al. 2023 (arXiv:2306.03819).
    """

    supervised = True
    estimates = "cov^-1 delta, delta the mean difference, cov the covariance of all rows"

    def __call__(
        self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows."""
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int = 0
    ) -> Float[Tensor, "d_model k"]:
        """All labellings from one factorisation."""
        return Shrunk.of(rows).scaled(gap(rows.x, labels), -1)


METHODS.register("leace")(LEACE())
