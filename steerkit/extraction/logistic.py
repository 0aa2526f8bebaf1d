"""Concept activation vector: the normal of a logistic-regression probe."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steerkit.extraction import column_probes, penalty
from steerkit.extraction.methods import METHODS
from steerkit.extraction.training import Training


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
        return penalty.fit_columns(rows, labels, loss=column_probes.LOGISTIC, seed=seed)


METHODS.register("logistic")(Logistic())
