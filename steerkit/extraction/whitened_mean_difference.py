"""Difference of the class means after whitening."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.covariance import Shrunk
from steerkit.extraction.methods import METHODS
from steerkit.extraction.training import Training, gap


class WhitenedMeanDifference:
    """The mean difference of rows that were whitened, in the axes of the stream.

    Whitening multiplies by the symmetric inverse root of the covariance of all rows, shrunk
    by Ledoit and Wolf: every axis then has the same spread, so that one of massive spread no
    longer decides. It stands between the mean difference, cov^0 delta, and LDA, cov^-1 delta.

    Source: Marks and Tegmark 2023 (arXiv:2310.06824), of which it is the square root;
    whitening as in Belrose et al. 2023 (arXiv:2306.03819).
    """

    supervised = True
    estimates = "cov^-1/2 delta, delta the mean difference, cov the covariance of all rows"

    def __call__(
        self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows."""
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int = 0
    ) -> Float[Tensor, "d_model k"]:
        """All labellings from one factorisation."""
        return Shrunk.of(rows).scaled(gap(rows.x, labels), -0.5)


METHODS.register("whitened_mean_difference")(WhitenedMeanDifference())
