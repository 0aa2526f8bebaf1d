"""Difference of the class means."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.methods import METHODS
from steerkit.extraction.training import Training, gap


class MeanDifference:
    """Mean of the positive rows minus mean of the negative rows, accumulated in float64.

    Source: Marks and Tegmark 2023 (arXiv:2310.06824); Arditi et al. 2024 (arXiv:2406.11717).
    """

    supervised = True
    estimates = "the mean difference, delta = E[x | positive] - E[x | negative]"

    def __call__(
        self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows."""
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int = 0
    ) -> Float[Tensor, "d_model k"]:
        """One matrix product for all labellings."""
        return gap(rows.x, labels)


METHODS.register("mean_difference")(MeanDifference())
