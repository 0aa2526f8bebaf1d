"""The normal of a linear support vector machine."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steerkit.extraction import column_probes, penalty
from steerkit.extraction.methods import METHODS
from steerkit.extraction.training import Training


class SVM:
    """Weights of the linear machine with the squared hinge loss, C by cross-validation.

    Minimises |w|^2 / 2 + C sum max(0, 1 - margin)^2, the intercept not penalised: only rows
    inside the margin pull. Features are scaled and C is chosen as `logistic` does, by the
    held-out loss of its own. `many` uses the C of column 0 for all columns.

    Source: Cortes and Vapnik 1995, Machine Learning 20, 273; squared: Chang, Hsieh and Lin
    2008, JMLR 9, 1369.
    """

    supervised = True
    estimates = "the normal of the widest soft margin, squared hinge loss"

    def __call__(
        self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows."""
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int = 0
    ) -> Float[Tensor, "d_model k"]:
        """All labellings at the C that the observed one chose."""
        return penalty.fit_columns(rows, labels, loss=column_probes.SQUARED_HINGE, seed=seed)


METHODS.register("svm")(SVM())
