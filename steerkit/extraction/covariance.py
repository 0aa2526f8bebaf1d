"""The covariance of all rows, shrunk: what whitening divides by."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.training import Training


@dataclass(frozen=True, eq=False)
class Shrunk:
    """(1 - r) S + r m I in the principal axes of the rows, m the mean variance of S.

    r is Ledoit and Wolf's. No labelling changes it. The whitening W is its inverse root.

    Attributes:
        rows: the rows.
        inside: the variance along each principal axis.
        outside: the variance in every direction that the rows do not span.
        shrinkage: r.

    Source: Ledoit and Wolf 2004, J. Multivariate Analysis 88, 365.
    """

    rows: Training
    inside: Float[Tensor, "rank"]
    outside: float
    shrinkage: float

    @classmethod
    def of(cls, rows: Training) -> "Shrunk":
        """Shrink the covariance of rows."""
        n, d = len(rows), rows.d_model
        mean = float(rows.spread.sum()) / (n * d)
        frobenius = float((rows.spread**2).sum()) / n**2
        noise = (float(((rows.coordinates**2).sum(1) ** 2).sum()) / n - frobenius) / (d * n)
        departure = frobenius / d - mean**2
        r = min(1.0, max(0.0, noise) / max(departure, 1e-300))
        return cls(rows, (1 - r) * rows.spread / n + r * mean, r * mean, r)

    def scaled(self, v: Float[Tensor, "d_model k"], power: float) -> Float[Tensor, "d_model k"]:
        """The covariance to a power, times vectors that lie in the span of the centred rows."""
        axes = self.rows.axes
        return axes.T @ (self.inside[:, None] ** power * (axes @ v))
